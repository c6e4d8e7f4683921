"""A run directory: its job as JSON, and Orbax checkpoints of state and data position.

    RUN/job.json                     the whole config, the vocabulary and the tokens' card
    RUN/checkpoints/STEP/params      parameters, a plain nested dict of arrays
    RUN/checkpoints/STEP/train       optimizer state, step and random key
    RUN/checkpoints/STEP/data        position in the data, the same for any number of processes
    RUN/checkpoints/STEP/window      metrics of the steps since the last line of the log
    RUN/checkpoints/STEP/validation  what validations have found so far, of a run that has any
"""

import contextlib
import gc
import itertools
import json
import pathlib
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grain
import jax
import orbax.checkpoint as ocp

from chexmix_jax import config as config_lib
from chexmix_jax.errors import UserError
from chexmix_jax.files import write_whole
from chexmix_jax.models.transformer import Params
from chexmix_jax.models.unstack import unstack, unstack_layers
from chexmix_jax.parallel import distributed
from chexmix_jax.parallel.devices import return_freed_memory
from chexmix_jax.parallel.sharding import parameter_name
from chexmix_jax.training.step import TrainState

T = TypeVar("T")

_LARGE = 1 << 26  # Numbers.


def write_job(run_dir: pathlib.Path, job: dict[str, Any]) -> None:
  """Writes job.json; a run made with another job is a UserError that names what differs."""
  path = run_dir / "job.json"
  job = json.loads(json.dumps(job))
  if path.exists():
    differing = config_lib.differing(read_job(run_dir), job)
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


def ranked_steps(run_dir: pathlib.Path) -> list[int]:
  """The same, by how much they are to be preferred for use: the newest last, or the best.

  The best is that of the validations, of a run that has any.
  """
  steps = saved_steps(run_dir)
  best = (_newest_validation(run_dir, steps) or {}).get("best")
  return [step for step in steps if step != best] + ([best] if best in steps else [])


def last_step(run_dir: pathlib.Path) -> int:
  """With which a run ends: that of its job, or where it has stopped early."""
  steps = saved_steps(run_dir)
  stopped = (_newest_validation(run_dir, steps) or {}).get("stopped", False)
  return steps[-1] if stopped else read_job(run_dir)["train"]["steps"]


def _newest_validation(run_dir: pathlib.Path, steps: list[int]) -> dict[str, Any] | None:
  """What the newest checkpoint that knows of validations knows; None where none does."""
  for step in reversed(steps):
    with contextlib.suppress(OSError, ValueError):
      if found := _read_validation(run_dir / "checkpoints" / str(step)):
        return found
  return None


def _read_validation(folder: pathlib.Path) -> dict[str, Any] | None:
  """That of a checkpoint, see Checkpoints.save; None where it has none."""
  if not (folder / "validation").exists():
    return None
  return json.loads((folder / "validation" / "metadata").read_text())


class _BestStep:
  """Orbax's policy that keeps one checkpoint, whatever comes after it."""

  step: int | None = None

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
  """Asynchronous saving and sharded restoring of a run's checkpoints.

  Every process writes and reads the shards of its own devices. The `keep` newest are kept, and the
  best.
  """

  def __init__(self, run_dir: pathlib.Path, keep: int = 2):
    self._run_dir = run_dir
    if jax.process_index() == 0:
      for path in sorted((run_dir / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
        _warn(f"{path} is a checkpoint whose saving was cut short; it is removed.")
    self._best = _BestStep()
    policies = [ocp.checkpoint_managers.LatestN(keep), self._best]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=True,
    )
    self._manager = ocp.CheckpointManager((run_dir / "checkpoints").absolute(), options=options)

  def save(
      self,
      state: TrainState,
      iterator: grain.DatasetIterator,
      window: dict[str, Any] | None = None,
      validation: dict[str, Any] | None = None,
  ) -> None:
    """Starts saving state, data position and the window of metrics under the state's step.

    `validation` (for JSON) is what the run's validations have found: `best` is the step of the
    best checkpoint, this one's perhaps, and `stopped` says whether the run ends early with it.
    """
    train = {"opt_state": state.opt_state, "step": state.step, "key": state.key}
    items = {} if validation is None else {"validation": ocp.args.JsonSave(validation)}
    self._best.step = None if validation is None else validation["best"]
    self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            train=ocp.args.StandardSave(train),
            data=ocp.args.JsonSave(iterator.get_state()),
            window=ocp.args.JsonSave(window or {}),
            **items,
        ),
    )

  def restore(
      self, abstract: TrainState, iterator: grain.DatasetIterator
  ) -> tuple[TrainState, dict[str, Any], dict[str, Any] | None]:
    """The newest state that can be read, on the shardings of `abstract`; its window, validation.

    Sets the iterator to its position. Newer checkpoints, which cannot be read, are renamed. Raises
    UserError where none can be read.
    """
    train = {"opt_state": abstract.opt_state, "step": abstract.step, "key": abstract.key}

    def read(folder: pathlib.Path) -> tuple[TrainState, Any, dict[str, Any], Any]:
      # Not by way of the manager: where one process cannot read, the others would wait for it.
      params = ocp.StandardCheckpointHandler().restore(
          folder / "params", args=ocp.args.StandardRestore(abstract.params)
      )
      rest = ocp.StandardCheckpointHandler().restore(
          folder / "train", args=ocp.args.StandardRestore(train)
      )
      data, window = (
          ocp.JsonCheckpointHandler().restore(folder / name, args=ocp.args.JsonRestore())
          for name in ("data", "window")
      )
      state = TrainState(rest["step"], params, rest["opt_state"], rest["key"])
      return state, data, window, _read_validation(folder)

    steps = distributed.exchange("the restoring", saved_steps(self._run_dir))[0]
    (state, data, window, validation), step = _read_last(self._run_dir, steps, read)
    if jax.process_index() == 0:
      for newer in steps[steps.index(step) + 1 :]:
        _set_aside(self._run_dir / "checkpoints" / str(newer))
    distributed.exchange("the end of the restoring")
    self._manager.reload()
    iterator.set_state(data)
    return state, window, validation

  def check(self) -> None:
    """Raises what a save that has ended in the background met."""
    if not self._manager.is_saving_in_progress():
      self._manager.wait_until_finished()

  def wait(self) -> None:
    """Waits for saves under way."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves under way, and ends."""
    try:
      self._manager.wait_until_finished()
    finally:
      self._manager.close()


def _read_last(
    run_dir: pathlib.Path, steps: list[int], read: Callable[[pathlib.Path], T]
) -> tuple[T, int]:
  """What `read` gives of the last of these checkpoints that all processes can read; its step."""
  problem = ""
  for step in reversed(steps):
    folder = (run_dir / "checkpoints" / str(step)).absolute()
    found, ours = _try(read, folder)
    problems = distributed.exchange(f"the reading of {folder}", ours)
    if found is not None and not any(problems):
      return found, step
    del found
    problem = next(filter(None, problems))
    if jax.process_index() == 0:
      _warn(f"{folder} cannot be read ({problem}); it is passed over.")
  tried = ", ".join(map(str, sorted(steps)))
  raise UserError(
      f"{run_dir} has no checkpoint that can be read (tried those of step {tried}: {problem}); put"
      " back a copy of one, or train again."
  )


def _try(read: Callable[[pathlib.Path], T], folder: pathlib.Path) -> tuple[T | None, str]:
  """What `read` gives, or None and why it cannot."""
  hook = sys.unraisablehook

  def quiet(unraisable: "sys.UnraisableHookArgs") -> None:
    is_other_read = isinstance(unraisable.object, types.CoroutineType)
    if not is_other_read and str(unraisable.exc_value) != "Event loop is closed":
      hook(unraisable)

  # When one of Orbax's many reads has failed, the others say so too, later and on pages.
  sys.unraisablehook = quiet
  try:
    found = read(folder)
  except (UserError, MemoryError, jax.errors.JaxRuntimeError):
    raise
  except Exception as error:  # Orbax raises no narrower class for damaged arrays.
    return None, f"{type(error).__name__}: {str(error)[:200].splitlines()[0]}"
  sys.unraisablehook = hook
  return found, ""


def _set_aside(folder: pathlib.Path) -> None:
  """Renames a checkpoint that cannot be read, so that its step can be saved again."""
  for number in itertools.count(1):
    aside = folder.with_name(f"{folder.name}.unreadable{number}")
    if not aside.exists():
      folder.rename(aside)
      _warn(f"{folder} is now {aside.name}; delete it when nobody needs it.")
      return


def _warn(sentence: str) -> None:
  print(f"WARNING: {sentence}", file=sys.stderr)


def load_params(
    run_dir: pathlib.Path,
    abstract: Params,
    step: int | None = None,
    as_saved: bool = False,
    layers_apart: bool = False,
) -> tuple[Params, int]:
  """Parameters of a run's checkpoint and its step.

  By default that is the best of a run with validations, and else the newest; where it cannot be
  read, the newest other one.

  They come on the shardings of `abstract`, where it has any, and in its precision or `as_saved`;
  with `layers_apart` as `unstack_layers` leaves them, in no more memory than stacked ones.
  UserError where there is no such checkpoint, or where it is of another shape, naming the first
  parameter that differs.
  """
  steps = distributed.exchange(f"the steps of {run_dir}", ranked_steps(run_dir))[0]
  if not steps:
    raise UserError(f"{run_dir} has no checkpoint; train it first.")
  if step is not None:
    if step not in steps:
      there = ", ".join(map(str, sorted(steps)))
      raise UserError(f"{run_dir} has no checkpoint of step {step}; it has {there}.")
    steps = [step]

  def read(folder: pathlib.Path) -> Params:
    return _read_params(folder / "params", abstract, as_saved, layers_apart)

  return _read_last(run_dir, steps, read)


def _read_params(
    path: pathlib.Path, abstract: Params, as_saved: bool, layers_apart: bool
) -> Params:
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
    restore_args = ocp.args.PyTreeRestore(
        part, ocp.checkpoint_utils.construct_restore_args(part)
    )
    restored = jax.tree.leaves(ocp.PyTreeCheckpointHandler().restore(path, args=restore_args))
    for i in group:
      is_apart = layers_apart and names[i].startswith("layers.")
      leaves[i] = unstack(restored[i]) if is_apart else restored[i]
    del restored
    gc.collect()  # A cycle holds what was read.
    return_freed_memory()
  params = jax.tree.unflatten(tree, leaves)
  return unstack_layers(params) if layers_apart else params


def _flatten_tree(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
  return {parameter_name(path): leaf for path, leaf in leaves}
