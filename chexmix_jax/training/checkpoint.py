"""A run directory: its job as JSON, and Orbax checkpoints of state and data position.

    RUN/job.json                 the whole config, the vocabulary and the tokens' card
    RUN/checkpoints/STEP/params  parameters, a plain nested dict of arrays
    RUN/checkpoints/STEP/train   optimizer state, step and random key
    RUN/checkpoints/STEP/data    position in the data, the same for any number of processes
"""

import gc
import json
import pathlib
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from chexmix_jax.errors import UserError
from chexmix_jax.files import write_whole
from chexmix_jax.models.transformer import Params, unstack, unstack_layers
from chexmix_jax.parallel.devices import return_freed_memory
from chexmix_jax.parallel.sharding import parameter_name
from chexmix_jax.training.step import TrainState

_LARGE = 1 << 26  # Numbers.


def write_job(run_dir: pathlib.Path, job: dict[str, Any]) -> None:
  """Writes job.json; a run made with another job is a UserError that names what differs."""
  path = run_dir / "job.json"
  job = json.loads(json.dumps(job))
  if path.exists():
    old, new = _flatten(read_job(run_dir)), _flatten(job)
    differing = sorted(k for k in old | new if old.get(k) != new.get(k))
    if differing:
      raise UserError(
          f"{run_dir} holds a run made with another {', '.join(differing[:5])};"
          " name another --output or delete that folder."
      )
    return
  run_dir.mkdir(parents=True, exist_ok=True)
  write_whole(path, json.dumps(job, indent=2))


def read_job(run_dir: pathlib.Path) -> dict[str, Any]:
  """The job a run was made with; UserError where there is none."""
  path = run_dir / "job.json"
  if not path.exists():
    raise UserError(f"{run_dir} is not a run directory (no job.json); name the --output of train.")
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise UserError(f"{path} is damaged; delete {run_dir} and train again.") from error


def saved_steps(run_dir: pathlib.Path) -> list[int]:
  """Steps of a run's complete checkpoints, rising; Orbax gives a folder its number at the end."""
  folder = run_dir / "checkpoints"
  return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


class Checkpoints:
  """Asynchronous saving and sharded restoring of a run's checkpoints."""

  def __init__(self, run_dir: pathlib.Path, keep: int = 2):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    self._manager = ocp.CheckpointManager((run_dir / "checkpoints").absolute(), options=options)

  def save(self, state: TrainState, iterator: grain.DatasetIterator) -> None:
    """Starts saving state and data position under the state's step."""
    train = {"opt_state": state.opt_state, "step": state.step, "key": state.key}
    self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            train=ocp.args.StandardSave(train),
            data=ocp.args.JsonSave(iterator.get_state()),
        ),
    )

  def restore(self, abstract: TrainState, iterator: grain.DatasetIterator) -> TrainState:
    """The newest state, on the shardings of `abstract`; sets the iterator to its position."""
    train = {"opt_state": abstract.opt_state, "step": abstract.step, "key": abstract.key}
    restored = self._manager.restore(
        self._manager.latest_step(),
        args=ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract.params),
            train=ocp.args.StandardRestore(train),
            data=ocp.args.JsonRestore(),
        ),
    )
    iterator.set_state(restored.data)
    train = restored.train
    return TrainState(train["step"], restored.params, train["opt_state"], train["key"])

  def close(self) -> None:
    """Waits for saves under way."""
    self._manager.wait_until_finished()
    self._manager.close()


def load_params(
    run_dir: pathlib.Path,
    abstract: Params,
    step: int | None = None,
    as_saved: bool = False,
    layers_apart: bool = False,
) -> tuple[Params, int]:
  """Parameters of a run's checkpoint (the newest by default) and its step.

  They come on the shardings of `abstract`, where it has any, and in its precision or `as_saved`;
  with `layers_apart` as `unstack_layers` leaves them, in no more memory than stacked ones.
  UserError where there is no such checkpoint, or where it is of another shape, naming the first
  parameter that differs.
  """
  steps = saved_steps(run_dir)
  if not steps:
    raise UserError(f"{run_dir} has no checkpoint; train it first.")
  step = steps[-1] if step is None else step
  if step not in steps:
    there = ", ".join(map(str, steps))
    raise UserError(f"{run_dir} has no checkpoint of step {step}; it has {there}.")
  path = (run_dir / "checkpoints" / str(step) / "params").absolute()
  # Not by way of a Checkpointer, which warns of a file that is never there.
  saved = ocp.PyTreeCheckpointHandler().metadata(path).tree
  saved_shapes = {k: tuple(v.shape) for k, v in _flatten_tree(saved).items()}
  for name, leaf in _flatten_tree(abstract).items():
    if saved_shapes.pop(name, None) != leaf.shape:
      raise UserError(
          f"{path} is a checkpoint of another shape: {name} is not {leaf.shape};"
          " use the config that it was trained with."
      )
  if saved_shapes:
    raise UserError(
        f"{path} is a checkpoint of another shape: it also holds {min(saved_shapes)};"
        " use the config that it was trained with."
    )
  if as_saved:
    abstract = jax.tree.map(
        lambda leaf, there: jax.ShapeDtypeStruct(leaf.shape, there.dtype, sharding=leaf.sharding),
        abstract,
        saved,
    )
  # What is being read is in memory three times until it is on its device: the large parameters come
  # one by one and first, while there is room.
  leaves, tree = jax.tree.flatten(abstract)
  names = list(_flatten_tree(abstract))
  order = sorted(range(len(leaves)), key=lambda i: leaves[i].size, reverse=True)
  groups = [[i] for i in order if leaves[i].size > _LARGE]
  groups.append([i for i in order if leaves[i].size <= _LARGE])
  for group in groups:
    part = [leaf if i in group else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)]
    part = jax.tree.unflatten(tree, part)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      restore_args = ocp.checkpoint_utils.construct_restore_args(part)
      restored = checkpointer.restore(path, ocp.args.PyTreeRestore(part, restore_args))
    restored = jax.tree.leaves(restored)
    for i in group:
      is_apart = layers_apart and names[i].startswith("layers.")
      leaves[i] = unstack(restored[i]) if is_apart else restored[i]
    del restored
    gc.collect()  # A cycle holds what was read.
    return_freed_memory()
  params = jax.tree.unflatten(tree, leaves)
  return unstack_layers(params) if layers_apart else params, step


def _flatten_tree(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
  return {parameter_name(path): leaf for path, leaf in leaves}


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {
      name: value
      for key, child in tree.items()
      for name, value in _flatten(child, f"{prefix}.{key}" if prefix else key).items()
  }
