"""What a value of a config is, whoever wrote the config: Python counts True among the integers."""

import math
from typing import Any

# What a float holds, and what indexes an array on the devices.
_MOST, MAX_SIZE = 1e308, 2**31 - 1


def is_integer(value: Any, least: int = 0, most: int | None = None) -> bool:
    """Whether it is an integer, no bool, and in that range.

    Example:
      >>> is_integer(3), is_integer(True), is_integer(3, least=4), is_integer(2**40, most=MAX_SIZE)
      (True, False, False, False)
    """
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return value >= least and (most is None or value <= most)


def is_number(value: Any) -> bool:
    """Whether it is a finite number that a float holds, and no bool.

    Example:
      >>> is_number(1e-3), is_number(2), is_number(10**400), is_number("2"), is_number(float("nan"))
      (True, True, False, False, False)
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -_MOST <= value <= _MOST and math.isfinite(value)


def are_numbers(values: Any, length: int | None = None) -> bool:
    """Whether it is a tuple of finite numbers, of that length."""
    return isinstance(values, tuple) and all(map(is_number, values)) and length in (None, len(values))


def shorten(value: object) -> str:
    """A value for an error, which should stay one line.

    Example:
      >>> len(shorten((1,) * 1000)) < 200, shorten("x")
      (True, "'x'")
    """
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:150]} … {text[-30:]}"
