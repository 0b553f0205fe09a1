"""Reading and writing the files of a folder: text in UTF-8 whatever the locale, whole or not at all."""

import contextlib
import csv
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from hvae_jax.errors import RunError


def read_text(file: pathlib.Path) -> str:
    """The file's content.

    Raises:
      RunError: absent, not a file, not readable, or not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RunError(f"{file} does not exist") from error
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{file} is damaged ({error}); restore it or use another folder") from error


def read_json(file: pathlib.Path) -> Any:
    """The file's content.

    Raises:
      RunError: absent, or not JSON.
    """
    text = read_text(file)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(f"{file} is damaged ({error}); restore it or use another folder") from error


def write_json(file: pathlib.Path, content: Any) -> None:
    """Writes the whole file or nothing: an interrupted write leaves the old content."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def write_text(file: pathlib.Path, text: str) -> None:
    """Writes the whole file or nothing.

    Raises:
      RunError: no space, no permission, or a folder of that name.
    """
    write_bytes(file, text.encode("utf-8"))


def write_rows(file: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """As CSV: the columns of all rows in the order in which they first come, a cell that a row lacks empty.

    Raises:
      RunError: no space, or no permission.
    """
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())


def write_bytes(file: pathlib.Path, content: bytes) -> None:
    """The same of bytes."""
    partial = file.with_name(file.name + ".partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, file)
    except OSError as error:
        _remove(partial)
        raise RunError(
            f"{file} cannot be written: {error.strerror}; what was there before is kept"
        ) from error


def _remove(file: pathlib.Path) -> None:
    with contextlib.suppress(OSError):  # what kept it from being written may keep it from being removed
        file.unlink(missing_ok=True)
