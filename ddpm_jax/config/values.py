"""Values against the annotations of their fields: one check of whatever brings a configuration.

Config files, the command line, stored configs and configs that a script builds all come by here.
What a field may hold is its annotation: int, float, bool, str, `Literal`, `X | None`, a tuple of
these, or another dataclass.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import math
import os
import reprlib
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NoReturn, Union

from ddpm_jax.config.fields import Affects, Config, ConfigError

__all__ = ["checked", "effects", "from_plain", "nearest", "shown"]

_MOST_SHOWN = 80
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _MOST_SHOWN
_NOUNS = {int: "integer", float: "number", str: "text"}


def checked(value: Any, kind: Any, name: str = "") -> Any:
    """A dataclass `kind` with the values of `value`, each as its field has it.

    An int of a float field becomes a float, a list a tuple, a scalar of NumPy one of Python; a
    dataclass of a subclass without fields of its own becomes one of `kind`.

    Args:
        value: a dataclass of any values.
        kind: what it has to be.
        name: of the field that it is, with dots; empty for the whole config.

    Raises:
        ConfigError: with the field, its value, what it has to be, and the nearest of that.
    """
    if not isinstance(value, kind):
        what = f"the class {value.__name__}" if isinstance(value, type) else _type_of(value)
        wanted = _article(kind.__name__)
        raise ConfigError(f"{name or 'the config'} is {what}; it has to be {wanted}")
    fields, prefix = _annotations(kind), f"{name}." if name else ""
    own = {field.name for field in dataclasses.fields(value)} | vars(value).keys()
    for extra in sorted(own - fields.keys()):
        raise ConfigError(f"{prefix}{extra} is no field of {kind.__name__}{nearest(extra, fields)}")
    return kind(
        **{
            field: checked(getattr(value, field), hint, prefix + field)
            if dataclasses.is_dataclass(hint)
            else _value(getattr(value, field), hint, prefix + field)
            for field, hint in fields.items()
        }
    )


def from_plain(values: Any, kind: Any, name: str = "") -> Any:
    """A dataclass `kind` with the values of a JSON object, which has exactly its fields.

    Raises:
        ConfigError: as `checked`; or a field that this version does not know, or one that it
            misses.
    """
    if not isinstance(values, dict):
        where = name or "the stored config"
        raise ConfigError(f"{where} is {shown(values)}; it has to be an object with fields")
    fields, prefix = _annotations(kind), f"{name}." if name else ""
    for field in sorted(fields.keys() ^ values.keys()):
        what = "misses" if field in fields else "has an unknown"
        near = "" if field in fields else nearest(field, fields)
        raise ConfigError(
            f"the stored config {what} field {prefix}{field}{near}; another version wrote it"
        )
    return kind(
        **{
            field: (from_plain if dataclasses.is_dataclass(hint) else _value)(
                values[field], hint, prefix + field
            )
            for field, hint in fields.items()
        }
    )


def effects() -> dict[str, Affects]:
    """What each field of a Config affects, by its name with dots."""
    return dict(_effects(Config, ""))


def nearest(name: str, names: Iterable[str]) -> str:
    """`(did you mean ...?)` with the one of `names` that is most like `name`, or nothing."""
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def shown(value: Any) -> str:
    """What `repr` says, in one short line, whatever `value` is."""
    try:
        text = " ".join(_REPR.repr(value).split())
    except Exception:  # of a class that is none of ours, or of an integer of 10,000 digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


class _MisfitError(Exception):
    """A value, or an item of it, is not what an annotation says."""

    def __init__(self, value: Any, hint: Any, place: str = "") -> None:
        super().__init__()
        self.value, self.hint, self.place = value, hint, place


def _value(value: Any, hint: Any, name: str) -> Any:
    try:
        return _converted(value, hint)
    except _MisfitError as error:
        misfit = error
    _refuse(misfit, name)


def _refuse(misfit: _MisfitError, name: str) -> NoReturn:
    near = ""
    for candidate in _candidates(misfit.value, misfit.hint):
        with contextlib.suppress(_MisfitError):
            near = f"; did you mean {_converted(candidate, misfit.hint)!r}?"
            break
    wanted = _described(misfit.hint)
    if (kind := type(_plain(misfit.value))) in _arms(misfit.hint):
        wanted += _BOUNDS.get(kind, "")
    raise ConfigError(f"{name}{misfit.place} is {shown(misfit.value)}; it has to be {wanted}{near}")


def _converted(value: Any, hint: Any) -> Any:
    """`value` as `hint` says.

    Raises:
        _MisfitError: it is nothing of the kind.
    """
    if typing.get_origin(hint) is Annotated:
        return _converted(value, typing.get_args(hint)[0])
    if len(arms := _arms(hint)) > 1:
        for arm in arms:
            try:
                return _converted(value, arm)
            except _MisfitError as error:
                if error.place:  # it is this arm that was meant
                    raise
        raise _MisfitError(value, hint)
    if typing.get_origin(hint) is tuple:
        return _as_tuple(value, hint)
    plain = _plain(value)
    if typing.get_origin(hint) is Literal:
        for choice in typing.get_args(hint):
            if type(plain) is type(choice) and plain == choice:
                return choice
        raise _MisfitError(value, hint)
    if hint is float and type(plain) is int:
        with contextlib.suppress(OverflowError):
            plain = float(plain)
    if type(plain) is not hint or not _FITS[hint](plain):
        raise _MisfitError(value, hint)
    return plain


def _as_tuple(value: Any, hint: Any) -> tuple[Any, ...]:
    items = value.tolist() if hasattr(value, "tolist") else value  # of NumPy or JAX
    if not isinstance(items, list | tuple):
        raise _MisfitError(value, hint)
    inner = typing.get_args(hint)
    if inner[-1:] == (...,):
        inner = inner[:1] * len(items)
    if len(inner) != len(items):
        raise _MisfitError(value, hint)
    converted = []
    for index, (item, item_hint) in enumerate(zip(items, inner, strict=True)):
        try:
            converted.append(_converted(item, item_hint))
        except _MisfitError as error:
            raise _MisfitError(error.value, error.hint, f"[{index}]{error.place}") from None
    return tuple(converted)


def _plain(value: Any) -> Any:
    """A scalar of NumPy or JAX, a path, or a member of an enum of str or int, as Python's own."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return str.__str__(value)
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return value


def _is_file_name(value: str) -> bool:
    """Whether a file can be called so: most texts are names of files, and others are no worse."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


_FITS = {
    int: lambda value: -(2**63) <= value < 2**63,  # what arrays hold
    float: lambda value: not math.isnan(value),
    str: _is_file_name,
    bool: lambda value: True,
    type(None): lambda value: True,
}
"""Which values of a type fields take."""
_BOUNDS = {int: " below 2^63", str: " that can be the name of a file"}


def _candidates(value: Any, hint: Any) -> Iterator[Any]:
    """What may have been meant, the likeliest first."""
    value = _plain(value)
    if isinstance(value, str) and len(value) <= _MOST_SHOWN:
        for arm in _arms(hint):
            if typing.get_origin(arm) is Literal:
                choices = [choice for choice in typing.get_args(arm) if isinstance(choice, str)]
                word = value.strip().lower().replace("-", "_").replace(" ", "_")
                yield from (choice for choice in choices if word and choice.startswith(word))
                yield from difflib.get_close_matches(word, choices, n=1)
        for text in (value, value.strip().title()):
            with contextlib.suppress(Exception):
                yield ast.literal_eval(text)
    elif isinstance(value, float | int) and value == value // 1:
        yield int(value)
        if value in (0, 1):
            yield bool(value)
    elif isinstance(value, set | frozenset | range):
        yield tuple(value)
    yield (value,)


def _effects(kind: type, prefix: str) -> Iterator[tuple[str, Affects]]:
    for name, hint in _annotations(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _effects(typing.cast("type", hint), f"{prefix}{name}.")
        else:
            notes = getattr(hint, "__metadata__", ())
            yield from ((prefix + name, note) for note in notes if isinstance(note, Affects))


@functools.cache
def _annotations(kind: type) -> dict[str, Any]:
    """Of each field of a dataclass."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _arms(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _described(hint: Any, *, plural: bool = False) -> str:
    """What a value has to be, in words."""
    if len(arms := _arms(hint)) > 1:
        return " or ".join(map(_described, arms))
    if hint is type(None):
        return "None"
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if typing.get_origin(hint) is tuple:
        if inner[-1:] == (...,):
            return f"a tuple of {_described(inner[0], plural=True)}"
        return f"a tuple of {len(inner)}: {', '.join(map(_described, inner))}"
    if hint is bool:
        return "True or False"
    noun = _NOUNS.get(hint, getattr(hint, "__name__", str(hint)))
    if plural:
        return f"{noun}s"
    return noun if hint is str else _article(noun)


def _type_of(value: Any) -> str:
    return "None" if value is None else _article(type(value).__name__)


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
