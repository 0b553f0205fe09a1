"""The one exception that programs built on this library show as a single line."""


class RunError(Exception):
    """Something the person who started a run can put right.

    The message is one line that names the field, its value and what to do. Command line
    programs print it without a traceback and exit with status 1.

    Example:
      >>> raise RunError("config.training.batch_size=0 must be at least 1")
      Traceback (most recent call last):
      hvae_jax.errors.RunError: config.training.batch_size=0 must be at least 1
    """
