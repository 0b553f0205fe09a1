"""Sections of an evaluation as JSON and as rows of a table, and back: by the fields of their dataclasses.

A field is an entry of its name, in the order of the fields. One with a default may be absent, and is not
written where it is None. One that is `Annotated` with `Inline` has its own fields written beside its
neighbours, and is absent where none of them is there. An `Estimate` is two entries, NAME and
NAME_standard_error. In a table, names of nested fields are joined by dots and entries of tuples count from 1.
"""

import dataclasses
import functools
import types
from collections.abc import Iterator, Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from hvae_jax.errors import RunError

S = TypeVar("S")
_ERROR = "_standard_error"
_Known = Mapping[Any, Any]  # type variable of a generic section → what it stands for


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    standard_error: float


class Estimates(NamedTuple):
    """A number of every layer, and their standard errors."""

    value: tuple[float, ...]
    standard_error: tuple[float, ...]


class Inline(NamedTuple):
    """Fields of a section stand in the one that holds it.

    Attributes:
      prefix: of their names there.
    """

    prefix: str = ""


class _Field(NamedTuple):
    name: str
    hint: Any
    inline: Inline | None
    may_lack: bool


def to_plain(value: Any) -> Any:
    """Dataclasses to dicts and tuples to lists, all the way down: what JSON holds."""
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {name: to_plain(entry) for name, entry in value.items()}
    if not dataclasses.is_dataclass(value):
        return value
    plain: dict[str, Any] = {}
    for field in _fields(type(value)):
        found = getattr(value, field.name)
        if found is None and field.may_lack:
            continue
        entry = to_plain(found)
        if field.inline is not None:
            plain |= {field.inline.prefix + name: inner for name, inner in entry.items()}
        elif field.hint in (Estimate, Estimates):
            plain[field.name], plain[field.name + _ERROR] = entry
        else:
            plain[field.name] = entry
    return plain


def from_plain(cls: type[S], plain: Any, source: object) -> S:
    """The inverse of `to_plain`.

    Args:
      cls: the dataclass that it is to be.
      plain: content of a file.
      source: of it, for errors.

    Raises:
      RunError: a field that is absent, of another kind, or not known, as a newer version may write.
    """
    try:
        return _read(cls, plain, "", {})
    except _Unfit as error:
        raise RunError(f"{source} {error}") from error


def to_row(section: Any) -> dict[str, Any]:
    """A section as cells of a table: name → value."""
    return flatten(to_plain(section))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists to one level, names joined by dots; entries of lists count from 1."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree, start=1)
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in items:
        flat.update(flatten(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat


def nest(cells: Mapping[str, str]) -> dict[str, Any]:
    """Cells of a table as `from_plain` reads them: the inverse of `flatten`, without those that are empty."""
    tree: dict[str, Any] = {}
    for name, text in cells.items():
        if text:
            *way, last = name.split(".")
            functools.reduce(lambda place, part: place.setdefault(part, {}), way, tree)[last] = _value(text)
    return tree


class _Unfit(Exception):
    """What a file has that the sections do not, or the other way round."""


@functools.cache
def _fields(cls: Any) -> list[_Field]:
    hints, found = get_type_hints(cls, include_extras=True), []
    for field in dataclasses.fields(cls):
        hint, inline = hints[field.name], None
        if get_origin(hint) is Annotated:
            hint, inline = get_args(hint)
        has_default = field.default is None or field.default_factory is not dataclasses.MISSING
        found.append(_Field(field.name, hint, inline, has_default))
    return found


def _read(hint: Any, value: Any, place: str, known: _Known) -> Any:
    hint = known.get(hint, hint)
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or (origin is Literal and value in args):
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _read(_without_none(hint), value, place, known)
    if origin is tuple:
        if isinstance(value, dict) and list(value) == [str(number + 1) for number in range(len(value))]:
            value = list(value.values())
        _check(isinstance(value, list) and (args[-1] is ... or len(args) == len(value)), value, place)
        hints = [args[0]] * len(value) if args[-1] is ... else args
        return tuple(
            _read(inner, entry, f"{place}.{number}", known)
            for number, (inner, entry) in enumerate(zip(hints, value, strict=True), start=1)
        )
    if origin is dict:
        _check(isinstance(value, dict), value, place)
        return {name: _read(args[1], entry, f"{place}.{name}", known) for name, entry in value.items()}
    cls = origin or hint
    if dataclasses.is_dataclass(cls):
        _check(isinstance(value, dict), value, place)
        rest, start = dict(value), f"{place}." if place else ""
        section = _take(hint, rest, start, known)
        if rest:
            unknown = ", ".join(f"{start}{name}" for name in rest)
            raise _Unfit(
                f"has {unknown}, which this version of hvae_jax does not know: a newer one wrote it; use "
                "that one, or evaluate again"
            )
        return section
    kinds = (int, float) if hint is float else hint
    fits = origin is None and isinstance(value, kinds) and isinstance(value, bool) == (hint is bool)
    _check(fits, value, place)
    return value


def _take(hint: Any, rest: dict[str, Any], place: str, known: _Known, prefix: str = "") -> Any:
    """A section from its own entries, which leave `rest`."""
    cls, args = get_origin(hint) or hint, get_args(hint)
    known = dict(zip(cls.__parameters__, args, strict=True)) if args else known
    given = {}
    for field in _fields(cls):
        name = prefix + field.name
        if field.inline is not None:
            inner, start = _without_none(field.hint), prefix + field.inline.prefix
            if not field.may_lack or any(start + own in rest for own in _names(inner)):
                given[field.name] = _take(inner, rest, place, known, start)
            continue
        pair = field.hint if field.hint in (Estimate, Estimates) else None
        hint, found = pair.__annotations__["value"] if pair else field.hint, []
        for entry in (name, name + _ERROR) if pair else (name,):
            if entry in rest:
                found.append(_read(hint, rest.pop(entry), place + entry, known))
            elif not field.may_lack:
                raise _Unfit(f"has no {place}{entry}; it is damaged or of another kind")
        if found:
            given[field.name] = pair(*found) if pair else found[0]
    return cls(**given)


def _names(cls: Any) -> Iterator[str]:
    """Of the entries of a section, but for standard errors."""
    for field in _fields(cls):
        inner = _names(_without_none(field.hint)) if field.inline else [""]
        yield from ((field.inline.prefix if field.inline else field.name) + name for name in inner)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (arg for arg in get_args(hint) if arg is not types.NoneType)
    return hint


def _check(fits: bool, value: Any, place: str) -> None:
    if not fits:
        raise _Unfit(f"has {place or 'a content'} = {value!r:.60}, which is of another kind; it is damaged")


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
