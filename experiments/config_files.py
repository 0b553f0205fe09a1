"""Config files that --config names: found, loaded and checked, or refused in one line that says where."""

import importlib.machinery
import importlib.util
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from hvae_jax.errors import RunError

GROUPS = ("data", "model", "objective", "training", "evaluation")
_FOLDER = pathlib.Path(__file__).parent


def prepare_flags(check_devices: Callable[[], None]) -> None:
    """Has every config flag that is defined load its file with `Loader`; before the flags are parsed.

    Args:
      check_devices: called where a file fails, as it may because JAX finds no device; raises what to say.
    """
    for name in flags.FLAGS:
        if config_flags.config_flags.is_config_flag(flags.FLAGS[name]):
            places = [n for n, a in enumerate(sys.argv) if re.fullmatch(rf"--?{name}(=.*)?", a, re.DOTALL)]
            if len(places) > 1:
                raise RunError(
                    f"--{name} is given {len(places)} times; give one file, and --{name}.FIELD=VALUE"
                )
            flags.FLAGS[name].parser = Loader(name, check_devices)


def read() -> tuple[str, dict[str, Any]]:
    """The name of the file that --config names, without folder and suffix, and its content.

    Raises:
      RunError: a group that is missing.
    """
    given = config_flags.get_config_filename(flags.FLAGS["config"])
    config = flags.FLAGS.config.to_dict()
    for group in GROUPS:
        if group not in config:
            raise RunError(
                f"--config={given} has no group config.{group}; a config has {', '.join(GROUPS)}, as "
                "experiments/digits.py"
            )
    for group, fields in config.items():
        if not isinstance(fields, dict):
            raise RunError(
                f"--config={given}: config.{group}={fields!r} must be a group of fields, a ConfigDict"
            )
    return pathlib.Path(given.partition(":")[0]).stem, config


class Loader(flags.ArgumentParser):
    """FILE or FILE:ARGUMENT → the locked ConfigDict that the file's `get_config` returns."""

    def __init__(self, name: str, check_devices: Callable[[], None]) -> None:
        self._name, self._check_devices = name, check_devices

    def parse(self, argument: str) -> ConfigDict:
        """Runs the file.

        Raises:
          RunError: no such file, an error in it, or one that returns no ConfigDict of plain values.
        """
        path, _, rest = argument.partition(":")
        what = f"--{self._name}={argument}"
        file = find(what, path)
        try:
            config = _run(file, f"{self._name}_config", [rest] if ":" in argument else [])
        except RunError as error:
            raise RunError(f"{what} {error}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._check_devices()
            raise RunError(f"{what} cannot be loaded: {describe(error, file)}") from error
        if not isinstance(config, ConfigDict):
            raise RunError(
                f"{what}: its get_config() returned {'a ' if config is not None else ''}"
                f"{type(config).__name__}; it must return an ml_collections.ConfigDict"
            )
        if isinstance(config, FrozenConfigDict):
            config = cast(ConfigDict, config.as_configdict())
        _make_plain(config, what, "config")
        self._check_overrides(config)
        return config.lock()

    def flag_type(self) -> str:
        """What absl calls the flag's values."""
        return "config file"

    def _check_overrides(self, config: ConfigDict) -> None:
        tuples: set[str] = set()
        for argument in sys.argv:
            match = re.match(rf"--?(no)?{self._name}\.([^=]*)(=|$)", argument, re.DOTALL)
            if not match:
                continue
            group: Any = config
            place = self._name
            for field in match[2].split("."):
                if not isinstance(group, ConfigDict):
                    raise RunError(f"{argument}: {place} is a field, {group!r}; it has no {field!r} in it")
                if field not in group:
                    raise RunError(f"{argument}: {place}.{field} is not a field; {place} has {sorted(group)}")
                group, place = group[field], f"{place}.{field}"
            if isinstance(group, tuple) and place in tuples:  # ml_collections would join the two
                raise RunError(f"{argument}: --{place} is given more than once; give it one tuple")
            tuples.add(place)


def find(what: str, path: str) -> pathlib.Path:
    """The file of that path, or where there is none, the one of that name that came with this package.

    Args:
      what: flag and value, for errors.
      path: as experiments/digits.py; a ~ at its start is the home folder.

    Raises:
      RunError: neither is there, or it is no file.
    """
    if not path:
        raise RunError(f"{what} is empty; name a config file, as experiments/digits.py")
    try:
        file = pathlib.Path(path).expanduser()
        if not file.exists() and file.parts[:1] == (_FOLDER.name,):
            installed = _FOLDER.parent / file
            file = installed if installed.is_file() else file
        if file.is_dir():
            raise RunError(f"{what} is a folder; name a config file in it")
        if not file.exists():
            raise RunError(f"{what}: there is no such file")
    except (OSError, RuntimeError) as error:
        raise RunError(f"{what} cannot be read: {error}") from error
    return file


def describe(error: BaseException, file: pathlib.Path) -> str:
    """An error that a file raised as FILE:LINE: TYPE: TEXT, with the line in that file."""
    text = " ".join(str(error).split())
    place = ""
    if isinstance(error, SyntaxError):
        text, place = error.msg, f"{error.filename or file}:{error.lineno or 1}: "
    else:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        place = f"{file}:{lines[-1]}: " if lines else ""
    return f"{place}{type(error).__name__}" + (f": {text}" if text else "")


def _run(file: pathlib.Path, name: str, arguments: list[str]) -> Any:
    # A loader of its own, because a config file may have any suffix.
    loader = importlib.machinery.SourceFileLoader(name, str(file))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the file look for it there
    was_written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = was_written
    if not callable(getattr(module, "get_config", None)):
        raise RunError("has no function get_config(); define one that returns an ml_collections.ConfigDict")
    return module.get_config(*arguments)


def _make_plain(config: ConfigDict, what: str, place: str) -> None:
    """Replaces arrays by numbers and tuples: a config goes to a file."""
    with config.unlocked():
        try:
            fields = list(config)
        except TypeError as error:  # it sorts them
            raise RunError(f"{what}: {place} has fields whose names are not all strings") from error
        for field in fields:
            value = config[field]
            if isinstance(value, ConfigDict):
                _make_plain(value, what, f"{place}.{field}")
            elif (plain := _plain(value, what, f"{place}.{field}")) is not value:
                del config[field]
                config[field] = plain


def _plain(value: Any, what: str, place: str) -> Any:
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, tuple | list):
        entries = [_plain(entry, what, place) for entry in value]
        return value if all(a is b for a, b in zip(entries, value, strict=True)) else type(value)(entries)
    if hasattr(value, "__array__") and np.asarray(value).dtype.kind in "biufU":
        return _tuples(np.asarray(value).tolist())
    if isinstance(value, dict):  # not a group of fields: said when the groups are looked at
        return value
    raise RunError(f"{what}: {place} is {type(value).__name__} {value!r}; give numbers, strings and tuples")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
