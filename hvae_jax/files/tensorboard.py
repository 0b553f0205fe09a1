"""The rate log as TensorBoard scalars."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from hvae_jax.errors import RunError


class TensorBoard:
    """Writes rows to a folder's `tensorboard/` as scalars, under the names of the rate log.

    A resumed run writes some steps a second time; TensorBoard is told to forget the first.
    """

    def __init__(self, folder: pathlib.Path, interval: int = 1) -> None:
        """Writes nothing yet.

        Args:
          folder: of the run.
          interval: steps between rows.

        Raises:
          RunError: tensorboardX is not installed.
        """
        try:
            from tensorboardX import event_file_writer, summary
            from tensorboardX.proto import event_pb2
        except ImportError as error:
            raise RunError('--tensorboard needs tensorboardX: pip install -e ".[tensorboard]"') from error
        self._folder, self._interval = folder / "tensorboard", interval
        self._make_writer, self._summary, self._events = event_file_writer.EventsWriter, summary, event_pb2
        self._writer: Any = None

    def report(self, row: Mapping[str, Any]) -> None:
        """Writes one row, at once; a list becomes one scalar per layer (and, before that, per marked vector).

        Raises:
          RunError: no space, or no permission.
        """
        try:
            if self._writer is None:
                self._writer = self._open(row["step"])
            for name, value in row.items():
                if name in ("step", "epoch", "split", "monte_carlo_rates") or value is None:
                    continue
                self._add(f"{row['split']}/{name}", value, row["step"])
            self._writer.flush()
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Lets go of the file."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                raise self._error(error) from error

    def _open(self, step: int) -> Any:
        # Not tensorboardX's SummaryWriter: its thread would meet a full disk where nobody hears of it.
        self._folder.mkdir(parents=True, exist_ok=True)
        suffix = f".{time.time_ns()}"  # two writers in one second share no file
        writer = self._make_writer(str(self._folder / "events"), suffix)
        # The first step of the interval that the first row tells of.
        start = (step - 1) // self._interval * self._interval + 1
        log = self._events.SessionLog(status=self._events.SessionLog.START)
        for content in ({"file_version": "brain.Event:2"}, {"session_log": log}):
            writer.write_event(self._events.Event(wall_time=time.time(), step=start, **content))
        return writer

    def _add(self, name: str, value: float | list[Any], step: int) -> None:
        if isinstance(value, list):
            for number, entry in enumerate(value, start=1):
                self._add(f"{name}_{number}", entry, step)
            return
        summary = self._summary.scalar(name, value)
        self._writer.write_event(self._events.Event(wall_time=time.time(), step=step, summary=summary))

    def _error(self, error: OSError) -> RunError:
        return RunError(
            f"{self._folder} cannot be written: {error.strerror}; make room, or leave out --tensorboard, and "
            "run the same command again: it resumes from the last checkpoint"
        )
