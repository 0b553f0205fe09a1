"""What --help says: the program's own words, and its flags."""

import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags

WIDTH = 110
_ASK = {"--help", "-help", "-h", "--helpshort", "-helpshort", "--helpfull", "-helpfull", "-?"}


def is_asked(arguments: list[str]) -> bool:
    """Whether help is all that is wanted."""
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return any(argument in _ASK for argument in before)


def text(main: Callable[..., Any], arguments: list[str]) -> str:
    """The docstring of the program's module and a line for each of its flags.

    Args:
      main: the program's.
      arguments: with --helpfull, the flags of the libraries that it uses follow.
    """
    module = main.__module__
    parts = [(sys.modules[module].__doc__ or "").strip()]
    by_module = flags.FLAGS.flags_by_module_dict()
    # absl calls the module that is started by the path of its file.
    own = sorted(by_module.get(module, by_module.get(sys.argv[0], [])), key=lambda flag: flag.name)
    if own:
        rows = [row for flag in own for row in _rows(flag)]
        width = min(36, max(len(name) for name, _ in rows))
        indent = " " * (width + 4)
        lines = [
            textwrap.fill(what, WIDTH, initial_indent=f"  {name:<{width}}  ", subsequent_indent=indent)
            for name, what in rows
        ]
        parts.append("Flags:\n" + "\n".join(lines))
    if any("helpfull" in argument for argument in arguments):
        parts.append("Flags of the libraries:\n" + flags.FLAGS.get_help())
    return "\n\n".join(parts)


def _rows(flag: Any) -> list[tuple[str, str]]:
    if flag.boolean:
        name = f"--[no]{flag.name}"
    elif isinstance(flag, flags.EnumFlag):
        name = f"--{flag.name}={'|'.join(flag.parser.enum_values)}"
    else:
        kind = {"string": "TEXT", "int": "INTEGER", "float": "NUMBER", "config object": "FILE"}
        value = kind.get(flag.flag_type(), "A,B,..." if "comma" in flag.flag_type() else "TEXT")
        name = f"--{flag.name}={value}"
    has_default = flag.default not in (None, [], False)
    default = f" Default: {str(flag.default_as_str).strip(chr(39))}." if has_default else ""
    is_needed = any("other than None" in validator.message for validator in flag.validators)
    needed = " Required." if is_needed else ""
    what = re.sub(r"^<.*?>: |;\s*repeat this option to specify a list of values$", "", flag.help.strip())
    often = " Can be repeated." if isinstance(flag, flags.MultiFlag) else ""
    rows = [(name, what + often + default + needed)]
    if config_flags.config_flags.is_config_flag(flag):
        rows.append((f"--{flag.name}.GROUP.FIELD=VALUE", "Another value for a field of that file; often."))
    return rows
