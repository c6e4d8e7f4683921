"""What the TPU compiler says of programs that do not fit, and what compiling leaves behind."""

import jax
import pytest

from chexmix_jax.planning import compile as compile_lib
from chexmix_jax.planning.compile import bytes_needed


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
            " temporaries (32.89G) exceeds available HBM (31.25G).",
            32.89 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: … Used 512.5M of 15.75G hbm. Exceeded …", 512.5 * 2**20),
        ("INVALID_ARGUMENT: something else", None),
    ],
)
def test_what_does_not_fit_is_told_from_what_does_not_compile(message, size):
  assert bytes_needed(message) == size


def test_settings_are_as_before_afterwards():
  names = ("jax_optimization_level", "jax_enable_compilation_cache")
  before = [getattr(jax.config, name) for name in names]
  with compile_lib._settings():
    assert [getattr(jax.config, name) for name in names] == ["O0", False]
  assert [getattr(jax.config, name) for name in names] == before
