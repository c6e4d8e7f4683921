"""A new classifier begins as a linear probe of the model as it is.

Linear probing, then fine-tuning: Kumar et al. 2022 (arXiv 2202.10054) found that a classifier which
begins at random spoils the features before it has learned to read them. Shape suffixes:
N documents, S of a row, D width, F findings, K strengths of the penalty.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from chexmix_jax.data.masking import MaskingConfig
from chexmix_jax.data.pipeline import EpochStart
from chexmix_jax.labels import have_both_kinds
from chexmix_jax.models.transformer import Transformer
from chexmix_jax.parallel.distributed import batch_share, whole_batch
from chexmix_jax.parallel.sharding import named_sharding
from chexmix_jax.progress import progress
from chexmix_jax.training.probe import STRENGTHS, fit_probes
from chexmix_jax.training.setup import Setup
from chexmix_jax.training.step import TrainState, are_pictures
from chexmix_jax.training.trainable import join

_DOCUMENTS = 5000
"""That are read at most."""


def with_linear_start(setup: Setup, state: TrainState) -> TrainState:
  """The state with a classifier that is fitted to frozen states of whole training pictures.

  The penalty is chosen by the log-loss of every fifth document, from probes fitted to the others. A
  finding that all or none of these have begins with how often it is there.
  """
  states_ND, targets_NF = _read(setup, state)
  is_held_N = np.arange(len(states_ND)) % 5 == 4
  is_probed_F = have_both_kinds([targets_NF[~is_held_N]])
  odds_F = (np.sum(targets_NF == 1, axis=0) + 1) / (np.sum(targets_NF == 0, axis=0) + 1)
  linear = {"kernel": np.zeros((states_ND.shape[1], len(odds_F))), "bias": np.log(odds_F)}
  classifier = {"linear": linear}
  if is_probed_F.any():
    known_NF = targets_NF[:, is_probed_F]
    tried = fit_probes(states_ND[~is_held_N, None], known_NF[~is_held_N], STRENGTHS)
    scores_NFK = tried.scores(states_ND[is_held_N, None])[:, 0]
    signs_NF1 = 2 * known_NF[is_held_N, :, None] - 1
    losses_FK = np.nansum(np.logaddexp(0, -signs_NF1 * scores_NFK), axis=0)
    best_F1 = losses_FK.argmin(-1)[:, None]
    probes = fit_probes(states_ND[:, None], known_NF, STRENGTHS)
    weights_DF1 = np.take_along_axis(probes.weights_LDFS[0], best_F1[None], axis=-1)
    linear["kernel"][:, is_probed_F] = weights_DF1[..., 0]
    linear["bias"][is_probed_F] = np.take_along_axis(probes.bias_LFS[0], best_F1, axis=-1)[:, 0]
    classifier |= {"mean": probes.mean_LD[0], "scale": 1 / probes.scale_LD[0]}
  began = state.params["classifier"]
  placed = jax.tree.map(
      lambda new, old: jax.device_put(np.asarray(new, old.dtype), old.sharding),
      {**began, **classifier},
      began,
  )
  return dataclasses.replace(state, params={**state.params, "classifier": placed})


def _read(setup: Setup, state: TrainState) -> tuple[np.ndarray, np.ndarray]:
  """States (N, D) of the first training documents, nothing hidden, and their targets (N, F)."""
  config = setup.config
  assert config.model.classifier is not None
  rows = config.data.batch_size // config.accumulation
  sharding = named_sharding(setup.mesh, ("batch", None))
  whole = dataclasses.replace(config.data, masking=MaskingConfig())
  batches = EpochStart(
      whole, "train", _DOCUMENTS, rows, *batch_share(sharding, rows),
      config.model.classifier.findings,
  )  # fmt: skip

  def read(state, batch):
    model = Transformer(config.model, join(state.params, state.frozen))
    states_BSD = model.picture_states(
        batch["inputs"], are_pictures(setup.vocabulary, batch), batch["positions"],
        batch["segment_ids"], batch["labels"].shape[1],
    )  # fmt: skip
    return states_BSD, batch["labels"]

  read_all = jax.jit(read, out_shardings=NamedSharding(setup.mesh, PartitionSpec()))

  def found() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    quiet = jax.process_index() > 0
    for local in progress(batches, quiet=quiet, desc="linear probe", unit="batch", leave=False):
      batch = whole_batch(sharding, rows, local)
      states_BSD, labels_BSF = jax.device_get(read_all(state, batch))
      is_document_BS = np.isfinite(labels_BSF).any(-1)
      yield states_BSD[is_document_BS], labels_BSF[is_document_BS]

  states, targets = zip(*found(), strict=True)
  return np.concatenate(states), np.concatenate(targets)
