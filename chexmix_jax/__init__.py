"""CheXmix in JAX: `chexmix_jax.load(DIR)` gives a trained model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from chexmix_jax.inference.model import load as load
else:

  def __getattr__(name: str) -> Any:
    """`load` is fetched when it is asked for, so that importing the package stays cheap."""
    if name == "load":
      from chexmix_jax.inference.model import load

      return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
