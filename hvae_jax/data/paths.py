"""Where a data set lies on this machine."""

from pathlib import Path

from hvae_jax.errors import data_error


def find(name: str, kind: str, hint: str) -> Path:
    """The file or folder that a data set's name says, `~` expanded.

    Args:
      name: `idx:FOLDER`, `npz:FILE` or `folder:PATH`.
      kind: "file" or "folder", which it must be.
      hint: what to do where it is not.

    Raises:
      RunError: it is not there, is something else, or cannot be looked at.
    """
    text = name.partition(":")[2]
    if "://" in text:
        raise data_error(name, f"must be a {kind} on this machine; copy {text} here first")
    path = expand(text, name, "name")
    try:
        is_file, is_folder, exists = path.is_file(), path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise data_error(name, f"cannot read {path} ({reason}); {hint}") from error
    found = "a file" if is_file else "a folder" if is_folder else "no file" if exists else ""
    if found == f"a {kind}":
        return path
    raise data_error(name, f"{path} {f'is {found}' if found else 'does not exist'}; {hint}")


def expand(text: str, value: str, field: str) -> Path:
    """A path with `~` expanded.

    Raises:
      RunError: the home folder is not known; it names `config.data.<field>` and its `value`.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no HOME, and a user whom the system does not know
        problem = f"{text} is in a home folder that is not known; give the path in full"
        raise data_error(value, problem, field) from error
