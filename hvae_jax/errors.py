"""What ends a program without a traceback: a mistake, or a wish to stop."""

from hvae_jax.values import shorten


class RunError(Exception):
    """Something the person who started a run can put right.

    The message is one line that names the field, its value and what to do. Command line
    programs print it without a traceback and exit with status 1.

    Example:
      >>> raise RunError("config.training.batch_size=0 must be at least 1")
      Traceback (most recent call last):
      hvae_jax.errors.RunError: config.training.batch_size=0 must be at least 1
    """


def data_error(value: object, problem: str, field: str = "name") -> RunError:
    """The one line that says what is wrong with a field of `config.data`."""
    return RunError(" ".join(f"config.data.{field}={shorten(value)}: {problem}".split("\n")))


def first_line(error: Exception) -> str:
    """The kind of an error and what it says first, for a line that tells of it; at most 200 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


class Stopped(Exception):
    """Training ended early because it was asked to; the same command goes on from `step`.

    Attributes:
      step: of the checkpoint that is on disk.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}; the same command resumes from there")
        self.step = step
