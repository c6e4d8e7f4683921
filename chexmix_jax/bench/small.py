"""The small model that benchmarks time when no checkpoint is given."""

from chexmix_jax.models.transformer import TransformerConfig

# The PyTorch implementation's own times are known for it.
SMALL = TransformerConfig(
    vocab_size=8192, num_layers=6, width=256, num_heads=8, mlp_dim=1024, rotary_dim=12, dropout=0.0,
    scan_layers=False,
)  # fmt: skip
