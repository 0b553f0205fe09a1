"""Folders and files that flags name: read in one way by all programs, before any work."""

import contextlib
import os
import pathlib
import re
import tempfile

from hvae_jax.errors import RunError

# What Matplotlib writes without a program beside it.
PICTURE_KINDS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


def folder_flag(name: str, value: str | os.PathLike[str]) -> pathlib.Path:
    """The folder that `--name=value` means; it need not be there.

    Args:
      name: of the flag, without dashes.
      value: as given; a ~ at its start is the home folder.

    Raises:
      RunError: an address such as gs://, a file, or a folder below a file.
    """
    path = _local(name, value)
    existing = _first_existing(name, path)
    if not existing.is_dir():
        where = "it" if existing == path else existing
        raise RunError(f"{_label(name)}={value} must be a folder, but {where} is a file")
    return path


def file_flag(
    name: str, value: str | os.PathLike[str], kinds: tuple[str, ...] | None = PICTURE_KINDS
) -> pathlib.Path:
    """The file to write that `--name=value` means; `make_parent` makes its folder where there is none.

    Args:
      name: of the flag, without dashes.
      value: as given; a ~ at its start is the home folder.
      kinds: suffixes that the file may have; an empty one for a name without. Of pictures by default; None
        allows any.

    Raises:
      RunError: an address such as gs://, a folder, another kind, or a place that cannot be written.
    """
    path = _local(name, value)
    existing = _first_existing(name, path)
    if (existing == path and path.is_dir()) or str(value).endswith(os.sep):
        raise RunError(f"{_label(name)}={value} must be a file, but it names a folder")
    if kinds is not None and path.suffix.lower() not in kinds:
        known = ", ".join(kind for kind in kinds if kind)
        raise RunError(f"{_label(name)}={value} ends in {path.suffix!r}; the file's name must end in {known}")
    if existing != path and not existing.is_dir():
        raise RunError(f"{_label(name)}={value} cannot be written: {existing} is a file, not a folder")
    if existing == path and not path.is_file():
        raise RunError(f"{_label(name)}={value} must be a file, but it is a device or a pipe")
    folder = path.parent if existing == path else existing
    if not os.access(folder, os.W_OK | os.X_OK) or (existing == path and not os.access(path, os.W_OK)):
        raise RunError(f"{_label(name)}={value} cannot be written: no permission to write in {folder}")
    try:
        tempfile.TemporaryFile(dir=folder).close()  # has no name, so that nothing changes
    except OSError as error:  # what permissions do not say: a disk that is full, /proc
        raise RunError(f"{_label(name)}={value} cannot be written: {error.strerror}: {folder}") from error
    return path


def source_flag(name: str, value: str | os.PathLike[str], in_folder: str = "") -> pathlib.Path:
    """The file to read that `--name=value` means.

    Args:
      name: of the flag, without dashes.
      value: as given; a ~ at its start is the home folder.
      in_folder: a folder means the file of this name in it; with none a folder is refused.

    Raises:
      RunError: an address such as gs://, no file, or a folder.
    """
    path = _local(name, value)
    existing = _first_existing(name, path)
    if existing != path:
        raise RunError(f"{_label(name)}={value} does not exist")
    if path.is_dir():
        if not in_folder:
            raise RunError(f"{_label(name)}={value} must be a file, but it is a folder")
        path = path / in_folder
        if not path.is_file():
            raise RunError(f"{_label(name)}={value} is a folder without {in_folder}")
    return path


def make_parent(file: pathlib.Path) -> None:
    """Makes the folder that a file is to be written into, with those above it.

    Raises:
      RunError: it cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error.strerror}: {error.filename}") from error


def _label(name: str) -> str:
    """Of a flag with its dashes, of an argument without a flag as it is, in capitals."""
    return name if name.isupper() else f"--{name}"


def _local(name: str, value: str | os.PathLike[str]) -> pathlib.Path:
    text = os.fspath(value)
    if not text:
        raise RunError(f"{_label(name)} is empty; give a path, or leave the flag out")
    if re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]*://|(gs|s3):/)", text):
        raise RunError(f"{_label(name)}={text} is an address; give a path of this machine (mount or copy it)")
    try:
        path = pathlib.Path(text).expanduser()
    except RuntimeError as error:  # no such user, or nobody knows a home folder
        raise RunError(f"{_label(name)}={text}: {error}; write the folder out") from error
    ups = [place for place, part in enumerate(path.parts) if part == ".."]
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # said where it is looked at
        if not all(pathlib.Path(*path.parts[:place]).exists() for place in ups):
            return path.resolve()  # a way back out of what is not there would be made on the way
    return path


def _first_existing(name: str, path: pathlib.Path) -> pathlib.Path:
    """The path itself, or the nearest above it that is there."""
    place = path
    try:
        for place in (path, *path.absolute().parents):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                place.lstat()
                break
        place.stat()  # a link to nothing is there, but cannot be used
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{_label(name)}={path} cannot be used: {reason}") from error
    return place
