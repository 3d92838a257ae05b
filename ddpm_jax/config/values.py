"""The check of values against the annotations of their fields.

It is the same for config files, the command line, stored configs and configs that a script builds.
An annotation is int, float, bool, str, a `Literal`, ``X | None``, a tuple of these, a member of a
family (`config.base`), or another dataclass. A `Bound` in it restricts the values.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import math
import os
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal, TypeVar, Union

from ddpm_jax.config.base import Affects, Bound, ConfigError, Member, article, default_of

__all__ = ["checked", "effects", "from_plain", "nearest", "shown"]

_Note = TypeVar("_Note", Affects, Bound)
_MOST_SHOWN = 80
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _MOST_SHOWN
_NOUNS = {int: "integer", float: "number", str: "text"}


def checked(value: Any, kind: Any, name: str = "") -> Any:
    """A dataclass with each value converted to the type of its field.

    In a float field an int becomes a float; a list becomes a tuple, a NumPy scalar a Python one. A
    dataclass of a subclass without fields of its own becomes one of `kind`.

    Args:
        value: a dataclass with any values.
        kind: the class that it has to be of.
        name: dotted name of its field; empty for the whole config.

    Returns:
        A dataclass of the class `kind`; of a member, of its own class.

    Raises:
        ConfigError: a value has the wrong type or is out of bounds. The sentence names the field,
            its value, the allowed values, and a similar value that would do.
    """
    if not isinstance(value, kind):
        if isinstance(value, type):
            what = f"the class {value.__name__}{' itself' if issubclass(value, kind) else ''}"
        else:
            what = "None" if value is None else article(type(value).__name__)
        raise ConfigError(
            f"{name or 'the config'} is {what}; it has to be {article(kind.__name__)}"
        )
    if issubclass(kind, Member):
        kind = type(value)
        _check_decorated(kind, name)
    fields, prefix = annotations(kind, name), f"{name}." if name else ""
    own = {field.name for field in dataclasses.fields(value)} | vars(value).keys()
    for extra in sorted(own - fields.keys()):
        raise ConfigError(
            f"{prefix}{extra} is not a field of {kind.__name__}{nearest(extra, fields)}"
        )
    return kind(
        **{
            field: checked(getattr(value, field), hint, prefix + field)
            if dataclasses.is_dataclass(hint)
            else _value(getattr(value, field), hint, prefix + field)
            for field, hint in fields.items()
        }
    )


def from_plain(
    values: Any,
    kind: Any,
    name: str = "",
    *,
    find_class: Callable[[str, type, str], type],
    absent: dict[str, str],
) -> Any:
    """A dataclass from the values of a JSON object.

    Args:
        values: by the names of fields; a member also has "class".
        kind: the class that it has to be of.
        name: as in `checked`.
        find_class: `(text, family, name) -> class` of a member.
        absent: filled with the name, and the default as text, of each field that `values` lacks.

    Returns:
        A dataclass of the class `kind`; of a member, of its own class.

    Raises:
        ConfigError: as in `checked`; or this version does not know a field; or a field is absent
            and has no default.
    """
    where, prefix = name or "the stored config", f"{name}." if name else ""
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is {shown(values)}; it has to be an object with fields")
    if issubclass(kind, Member):
        if not isinstance(values.get("class"), str):
            raise ConfigError(f"{where} has no class, which says what {article(kind.__name__)} is")
        kind = find_class(values["class"], kind, name)
        values = {field: value for field, value in values.items() if field != "class"}
    fields = annotations(kind, name)
    for field in sorted(values.keys() - fields.keys()):
        raise ConfigError(
            f"the stored config has an unknown field {prefix}{field}{nearest(field, fields)};"
            " another version wrote it"
        )
    given = {}
    for field in dataclasses.fields(kind):
        hint, place = fields[field.name], prefix + field.name
        if field.name in values:
            value = values[field.name]
            given[field.name] = (
                from_plain(value, hint, place, find_class=find_class, absent=absent)
                if dataclasses.is_dataclass(hint)
                else _value(value, hint, place)
            )
        elif (default := default_of(field)) is dataclasses.MISSING:
            raise ConfigError(f"the stored config has no {place}, and it has no default")
        else:
            what = type(default).__name__ if isinstance(default, Member) else shown(default)
            absent[place] = what
    return kind(**given)


def effects(value: Any, prefix: str = "", family: Affects | None = None) -> dict[str, Affects]:
    """What changes with each field of a config, by dotted name; of a member also with its class."""
    result: dict[str, Affects] = {}
    for name, hint in annotations(type(value)).items():
        inner = getattr(value, name)
        is_member = isinstance(inner, Member)
        own = inner.affects if is_member else next(_notes(hint, Affects), family)
        if own is not None:
            result[prefix + name] = own
        if dataclasses.is_dataclass(inner):
            result |= effects(inner, f"{prefix}{name}.", own)
    return result


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for a misspelt name.

    Args:
        name: as it was given.
        names: the right ones.

    Returns:
        " (did you mean X?)" with the most similar of `names`, or "" if none is similar.
    """
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def shown(value: Any) -> str:
    """The `repr` of any value in one line of at most 80 characters.

    Args:
        value: any value, also one whose `repr` raises.

    Returns:
        The text.
    """
    try:
        text = " ".join(_REPR.repr(value).split())
    except Exception:  # repr of a foreign class, or of an integer of 10,000 digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


class _MisfitError(Exception):
    """A value, or an item of it, does not fit its annotation."""

    def __init__(self, value: Any, hint: Any, place: str = "") -> None:
        super().__init__()
        self.value, self.hint, self.place = value, hint, place


def _value(value: Any, hint: Any, name: str) -> Any:
    try:
        converted = _converted(value, hint)
    except _MisfitError as misfit:
        raise ConfigError(
            f"{name}{misfit.place} is {shown(misfit.value)}; it has to be {_wanted(misfit)}"
        ) from None
    for bound in (*_notes(hint, Bound), _FINITE):
        if not bound.holds(converted):
            raise ConfigError(
                f"{name} is {str(converted) or repr(converted)}; it has to be {bound.wanted}"
            )
    return converted


def _wanted(misfit: _MisfitError) -> str:
    """The allowed values in words, and a similar value that would do."""
    wanted = _described(misfit.hint)
    if (kind := type(_plain(misfit.value))) in _arms(misfit.hint):
        wanted += _BOUNDS.get(kind, "")
    for candidate in _candidates(misfit.value, misfit.hint):
        with contextlib.suppress(_MisfitError):
            return f"{wanted}; did you mean {_converted(candidate, misfit.hint)!r}?"
    return wanted


def _converted(value: Any, hint: Any) -> Any:
    """`value` as a value of the type `hint`; raises _MisfitError if it does not fit."""
    if typing.get_origin(hint) is Annotated:
        return _converted(value, typing.get_args(hint)[0])
    if len(arms := _arms(hint)) > 1:
        for arm in arms:
            try:
                return _converted(value, arm)
            except _MisfitError as error:
                if error.place:  # an item does not fit, but the tuple itself does
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
    items = value.tolist() if hasattr(value, "tolist") else value  # an array of NumPy or JAX
    if not isinstance(items, list | tuple):
        raise _MisfitError(value, hint)
    hints = typing.get_args(hint)
    if hints[-1:] == (...,):
        hints = hints[:1] * len(items)
    if len(hints) != len(items):
        raise _MisfitError(value, hint)
    converted = []
    for index, item in enumerate(items):
        try:
            converted.append(_converted(item, hints[index]))
        except _MisfitError as error:
            raise _MisfitError(error.value, error.hint, f"[{index}]{error.place}") from None
    return tuple(converted)


def _plain(value: Any) -> Any:
    """A scalar of NumPy or JAX, a path, or an enum of str or int as the plain Python type."""
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
    """Whether a file can have this name; all text of a config has to be such a name."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


_FITS = {
    int: lambda value: -(2**63) <= value < 2**63,  # int64
    float: lambda value: not math.isnan(value),
    str: _is_file_name,
    bool: lambda value: True,
    type(None): lambda value: True,
}
"""The values that a field of each type takes."""
_BOUNDS = {int: " below 2^63", str: " that can be the name of a file"}


def _candidates(value: Any, hint: Any) -> Iterator[Any]:
    """Values that the user may have meant, the likeliest first."""
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


def _notes(hint: Any, kind: type[_Note]) -> Iterator[_Note]:
    return (note for note in getattr(hint, "__metadata__", ()) if isinstance(note, kind))


def _is_finite(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


_FINITE = Bound(_is_finite, "finite")


def annotations(kind: type, name: str = "") -> dict[str, Any]:
    """The annotation of each field of a dataclass.

    Raises:
        ConfigError: an annotation in a user's class is not supported.
    """
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except Exception as error:  # a user's annotation may raise anything
        raise ConfigError(
            f"{name or kind.__name__}: {kind.__name__} has an annotation that fails"
            f" with {type(error).__name__}: {error}"
        ) from error
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    for field, hint in fields.items():
        if not _is_supported(hint):
            raise ConfigError(
                f"{name}.{field} of {kind.__name__} is annotated {shown(hint)}; a field has to be"
                " int, float, bool, str, a Literal, X | None, a tuple of these, or a member"
            )
    return fields


def _is_supported(hint: Any, *, nested: bool = True) -> bool:
    if typing.get_origin(hint) is Annotated:
        return _is_supported(typing.get_args(hint)[0], nested=nested)
    if dataclasses.is_dataclass(hint):
        return nested
    if len(arms := _arms(hint)) > 1:
        return all(_is_supported(arm, nested=False) for arm in arms)
    if typing.get_origin(hint) is tuple:
        items = (item for item in typing.get_args(hint) if item is not ...)
        return all(_is_supported(item, nested=False) for item in items)
    return typing.get_origin(hint) is Literal or hint in _FITS


def _check_decorated(kind: type, name: str) -> None:
    """Raises ConfigError for a class with annotations that are not fields."""
    fields = {field.name for field in dataclasses.fields(kind)}
    for attribute, hint in inspect.get_annotations(kind).items():
        if attribute not in fields and "ClassVar" not in str(hint):
            raise ConfigError(
                f"{name} is {article(kind.__name__)}, whose {attribute} is not a field yet; put"
                " @dataclasses.dataclass(frozen=True) above the class"
            )


def _arms(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _described(hint: Any, *, plural: bool = False) -> str:
    """The allowed values in words."""
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
    return noun if hint is str else article(noun)
