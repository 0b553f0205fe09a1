"""Save and restore a training state with orbax."""

import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import jax
import numpy as np
import orbax.checkpoint as ocp

from hvae_jax import processes
from hvae_jax.errors import RunError

T = TypeVar("T")

# Names of what a checkpoint consists of; the first is orbax's own for a checkpoint of one thing.
_STATE, _PROGRESS = "default", "progress"


def checksum(folder: pathlib.Path, step: int) -> str | None:
    """Of the state that a checkpoint holds; None where none was kept, as in version 0.1.0."""
    del folder, step
    return None


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
        try:
            items = {
                _STATE: ocp.args.StandardSave(numpy_state),
                _PROGRESS: ocp.args.JsonSave(dict(progress or {})),
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
          like: a state of the same structure and shapes.
          step: as listed by the folder's names.

        Raises:
          RunError: there is none, it is damaged, or it is of another model.
        """
        step = self.latest_step() if step is None else step
        if step is None or not (self._folder / str(step)).is_dir():
            raise RunError(
                f"{self._folder} holds no checkpoint" + ("" if step is None else f" of step {step}")
            )
        target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        try:
            self._check_shapes(step, target)
            items = {_STATE: ocp.args.StandardRestore(target)}
            return cast(T, self._manager.restore(step, args=ocp.args.Composite(**items))[_STATE])
        except RunError:
            raise
        except Exception as error:
            raise self._damaged(step, error) from error

    def progress(self) -> dict[str, Any]:
        """What was saved beside the newest state; empty where nothing was.

        Raises:
          RunError: it is damaged.
        """
        step = self.latest_step()
        if step is None or not (self._folder / str(step) / _PROGRESS).exists():
            return {}
        try:
            items = {_PROGRESS: ocp.args.JsonRestore()}
            return self._manager.restore(step, args=ocp.args.Composite(**items))[_PROGRESS]
        except Exception as error:
            raise self._damaged(step, error) from error

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

    def _damaged(self, step: int, error: Exception) -> RunError:
        earlier = [s for s in self._manager.all_steps() if s < step]
        advice = f"resume from step {max(earlier)}" if earlier else "start again"
        return RunError(
            f"checkpoint {self._folder / str(step)} is damaged ({_first_line(error)}); "
            f"delete that folder and run the same command to {advice}"
        )

    def _save_error(self, error: Exception) -> RunError:
        return RunError(
            f"checkpoint in {self._folder} cannot be written ({_first_line(error)}); make room or mend "
            "permissions and run the same command again: it resumes from the last complete checkpoint"
        )


def _alone(folder: pathlib.Path) -> dict[str, Any]:
    """Options that keep orbax from waiting for other processes: one alone writes, whole arrays."""
    if processes.count() == 1:
        return {}
    mine = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=mine, active_processes={mine}, barrier_sync_key_prefix=f"{mine}"
    )
    return {"multiprocessing_options": alone, "create": False}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
