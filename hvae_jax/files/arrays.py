"""Files of named arrays."""

import io
import pathlib
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from hvae_jax.errors import RunError
from hvae_jax.files.text import write_bytes


def write_arrays(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """As a compressed NPZ, which is there as a whole or not at all.

    Raises:
      RunError: no space, or no permission.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(file, buffer.getvalue())


def read_arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Of such a file.

    Raises:
      RunError: absent or damaged.
    """
    try:
        with np.load(file) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{file} is absent or damaged; evaluate again") from error
