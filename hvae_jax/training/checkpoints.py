"""Save and restore a training state with orbax, and know one whose bytes have changed since."""

import ast
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from hvae_jax.errors import RunError, first_line
from hvae_jax.training import old_states, processes

CHECKPOINTS_FOLDER = "checkpoints"
T = TypeVar("T")

# Names of what a checkpoint consists of; the first is orbax's own for a checkpoint of one thing.
_STATE, _PROGRESS = "default", "progress"
# The file of the latter, and that of the former which says what arrays there are.
_PROGRESS_FILE, _TREE_FILE = "metadata", "_METADATA"
# Kept beside what a loop saved as its progress; checkpoints of 0.1.0 have neither.
_CHECKSUM, _PROGRESS_CHECKSUM = "checksum", "progress_checksum"


class Checkpoints:
    """A folder of checkpoints, each complete or absent; the newest few are kept."""

    def __init__(self, folder: pathlib.Path, num_kept: int) -> None:
        # Orbax logs every save, and pages of tracebacks for an error that also reaches us as an exception.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._folder = folder.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(max_to_keep=num_kept, **_alone(folder))
            handlers = {_STATE: ocp.StandardCheckpointHandler(), _PROGRESS: ocp.JsonCheckpointHandler()}
            self._manager = ocp.CheckpointManager(self._folder, item_handlers=handlers, options=options)
        except OSError as error:
            raise RunError(f"{folder} cannot be used for checkpoints: {error}") from error

    @property
    def folder(self) -> pathlib.Path:
        """Where they are."""
        return self._folder

    def latest_step(self) -> int | None:
        """The newest step on disk, None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, progress: Mapping[str, Any] | None = None) -> None:
        """Starts writing `state`; it may be changed or donated once this returns.

        Args:
          step: names the checkpoint.
          state: a tree of arrays.
          progress: what else a loop needs to go on; plain values, for JSON.

        Raises:
          RunError: this checkpoint, or the one before it, could not be written.
        """
        # Copied, since the write goes on in the background while training donates its buffers.
        numpy_state = jax.tree.map(np.array, state)
        self._reserve(sum(leaf.nbytes for leaf in jax.tree.leaves(numpy_state)))
        content = json.loads(json.dumps(dict(progress or {})))
        content[_CHECKSUM] = sum_state(numpy_state)
        content[_PROGRESS_CHECKSUM] = _sum_progress(content)
        try:
            items = {
                _STATE: ocp.args.StandardSave(numpy_state),
                _PROGRESS: ocp.args.JsonSave(content),
            }
            self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore raise many kinds for a full disk
            raise self._save_error(error) from error

    def wait(self) -> None:
        """Returns when every checkpoint is on disk.

        Raises:
          RunError: one could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._save_error(error) from error

    def restore(self, like: T, step: int | None = None) -> T:
        """The state saved at `step`, or the newest.

        Args:
          like: a state of the same structure and shapes; one that an earlier version saved becomes such
            a one, see `old_states`.
          step: as listed by the folder's names.

        Raises:
          RunError: there is none, its bytes are not those that were saved, it is of another model, or of a
            newer version.
        """
        step = self.latest_step() if step is None else step
        if step is None or not (self._folder / str(step)).is_dir():
            steps = ", ".join(map(str, self.steps())) or "none"
            raise RunError(
                f"{self._folder} holds no checkpoint"
                + ("" if step is None else f" of step {step}; the steps there are: {steps}")
            )
        wanted = self._read_progress(step).get(_CHECKSUM)
        try:
            self._check_files(step)
            names = self._read_names(step)
            saved = old_states.as_saved(like, names)
            self._check_fields(step, saved, names)
            target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), saved)
            self._check_shapes(step, target)
            items = {_STATE: ocp.args.StandardRestore(target)}
            state = self._manager.restore(step, args=ocp.args.Composite(**items))[_STATE]
        except RunError:
            raise
        except Exception as error:
            raise self._damaged(step, first_line(error)) from error
        if wanted is not None and sum_state(state) != wanted:
            raise self._damaged(step, "its numbers are not those that were saved")
        return old_states.as_now(like, state)

    def progress(self) -> dict[str, Any]:
        """What was saved beside the newest state; empty where nothing was.

        Raises:
          RunError: it is damaged.
        """
        step = self.latest_step()
        if step is None:
            return {}
        content = self._read_progress(step)
        return {name: value for name, value in content.items() if name not in (_CHECKSUM, _PROGRESS_CHECKSUM)}

    def steps(self) -> list[int]:
        """Of the checkpoints there are, those that are being written included, in order."""
        return sorted(self._manager.all_steps())

    def delete(self, step: int) -> None:
        """Removes the checkpoint of a step once all others are on disk.

        Raises:
          RunError: one could not be written.
        """
        self.wait()
        if step in self._manager.all_steps():  # else it made room for others by now
            self._manager.delete(step)

    def close(self) -> None:
        """Waits for running saves and lets go of the folder."""
        self._manager.close()

    def _reserve(self, num_bytes: int) -> None:
        # A disk that fills up in the middle of a save ends in many errors from many threads; asked for
        # the space first, it is one.
        probe = self._folder.with_suffix(".partial")
        try:
            with probe.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            raise self._save_error(error) from error
        finally:
            probe.unlink(missing_ok=True)

    def _read_progress(self, step: int) -> dict[str, Any]:
        try:
            content = _read_progress(self._folder / str(step))
            if _PROGRESS_CHECKSUM in content and content[_PROGRESS_CHECKSUM] != _sum_progress(content):
                raise ValueError("its progress is not what was saved")
        except (OSError, ValueError) as error:
            raise self._damaged(step, first_line(error)) from error
        return content

    def _check_files(self, step: int) -> None:
        # Of a file that cannot be read orbax's threads report on their own, past every handler, as often as
        # there are arrays; read here first, it is one exception.
        base = f"file://{self._folder / str(step) / _STATE}/"
        files = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
        for name in files.list().result():
            files.read(name).result()

    def _read_names(self, step: int) -> set[tuple[str, ...]]:
        """Of what was saved: a path for each array and each empty dict."""
        tree = json.loads((self._folder / str(step) / _STATE / _TREE_FILE).read_text(encoding="utf-8"))
        return {ast.literal_eval(path) for path in tree["tree_metadata"]}

    def _check_fields(self, step: int, like: Any, names: set[tuple[str, ...]]) -> None:
        """Refuses fields that this version does not know, those that hold no arrays as well."""
        for name, known in (("", like), *((name, getattr(like, name)) for name in _fields(like))):
            if not _fields(known):
                continue
            there = {path[1] if name else path[0] for path in names if not name or path[:1] == (name,)}
            if unknown := sorted(there - set(_fields(known))):
                what = ", ".join(f"{name}.{field}" if name else field for field in unknown)
                raise RunError(
                    f"checkpoint {self._folder / str(step)} holds {what}, which this version of hvae_jax "
                    "does not know: a newer one wrote it; use that one"
                )

    def _check_shapes(self, step: int, target: Any) -> None:
        # Orbax reports a mismatch in pages; compared here first, it is one line.
        stored = jax.tree.leaves(self._manager.item_metadata(step)[_STATE].tree)
        have = sorted(tuple(leaf.shape) for leaf in stored)
        want = sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(target))
        if have != want:
            raise RunError(
                f"checkpoint {self._folder / str(step)} is of another model: it holds {len(have)} arrays of "
                f"{sum(map(np.prod, have)):.0f} numbers, this model has {len(want)} of "
                f"{sum(map(np.prod, want)):.0f}; use another folder"
            )

    def _damaged(self, step: int, problem: str) -> RunError:
        earlier = [s for s in self._manager.all_steps() if s < step]
        advice = f"resume from step {max(earlier)}" if earlier else "start again"
        return RunError(
            f"checkpoint {self._folder / str(step)} is damaged ({problem}); "
            f"delete that folder and run the same command to {advice}"
        )

    def _save_error(self, error: Exception) -> RunError:
        return RunError(
            f"checkpoint in {self._folder} cannot be written ({first_line(error)}); make room or mend "
            "permissions and run the same command again: it resumes from the last complete checkpoint"
        )


def checksum(folder: str | os.PathLike[str], step: int | None = None) -> str | None:
    """What a run's checkpoint is known by: the sum of its state that was taken when it was saved.

    Args:
      folder: of the run, or its folder of checkpoints.
      step: of the checkpoint; the newest by default.

    Returns:
      A hexadecimal number; None for a checkpoint of 0.1.0, which has none.

    Raises:
      RunError: no such checkpoint, or a damaged one.
    """
    path = pathlib.Path(folder)
    path = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = steps_of(path)
    if not steps or step not in (None, *steps):
        raise RunError(f"{path} holds no checkpoint" + ("" if step is None else f" of step {step}"))
    step = steps[-1] if step is None else step
    try:
        return _read_progress(path / str(step)).get(_CHECKSUM)
    except (OSError, ValueError) as error:
        raise RunError(f"checkpoint {path / str(step)} is damaged ({first_line(error)})") from error


def latest_step(run_folder: str | os.PathLike[str]) -> int | None:
    """The newest step that a run saved, by the names of its checkpoints; None where there is none."""
    return max(steps_of(pathlib.Path(run_folder) / CHECKPOINTS_FOLDER), default=None)


def steps_of(folder: pathlib.Path) -> list[int]:
    """The steps of a folder's checkpoints in order; none where there is no folder."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(entry.name) for entry in entries if entry.name.isdigit() and entry.is_dir())


def _read_progress(folder: pathlib.Path) -> dict[str, Any]:
    if not (folder / _PROGRESS).is_dir():
        return {}
    content = json.loads((folder / _PROGRESS / _PROGRESS_FILE).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("its progress is not that of a run")
    return content


def sum_state(state: Any) -> str:
    """A hexadecimal number that tells a tree of arrays from one with another bit anywhere."""
    total = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(state):
        array = np.asarray(leaf, order="C")
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _sum_progress(content: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != _PROGRESS_CHECKSUM}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=16).hexdigest()


def _fields(value: Any) -> tuple[str, ...]:
    """Of a named tuple; none of anything else."""
    return getattr(value, "_fields", ()) if isinstance(value, tuple) else ()


def _alone(folder: pathlib.Path) -> dict[str, Any]:
    """Options that keep orbax from waiting for other processes: one alone writes, whole arrays."""
    if processes.count() == 1:
        return {}
    mine = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=mine, active_processes={mine}, barrier_sync_key_prefix=f"{mine}"
    )
    return {"multiprocessing_options": alone, "create": False}
