"""Functions that scan, called outside of `jit`: compiled at the first call, then reused.

A scan is compiled for the function object that it is given, and `sample` and its like make a new
one at each call. Here the key of a program is what that function is made of: its code, the options
and functions that it closes over, theirs in turn, and what those read from the globals of a user's
own modules. Whatever of this has changed since makes another program, so the result is that of the
functions as they are now. Code of installed packages is taken for constant. What cannot be looked
into (a slot, a handle of another library) is compiled at each call.

Numbers and small arrays are compared by value. A large array, as a network's parameters are, is a
constant of the program, which therefore keeps it in memory: such a program lives as long as the
user's function or object that holds the array, and only the latest of each stays.
"""

import collections
import collections.abc
import contextlib
import enum
import functools
import hashlib
import pathlib
import sys
import sysconfig
import threading
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import jaxtyping
import numpy as np

from ddpm_jax.arrays import is_traced

__all__ = ["call_compiled"]

_SMALL = 2**16
"""Elements of an array that is compared by value."""

_MOST_PARTS = 20_000
_MOST_PROGRAMS = 64

_INSTALLED = (
    str(pathlib.Path(__file__).parent),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)

_JAXTYPING = str(pathlib.Path(jaxtyping.__file__).parent)
_Jitted = type(jax.jit(lambda: None))

_BY_VALUE = (
    *(type(None), bool, int, complex, str, bytes, range, type(...), np.generic, np.dtype),
    *(enum.Enum, types.ModuleType, types.CodeType, np.ufunc),
)


class _Program(NamedTuple):
    call: Callable[..., Any]
    arrays: list[jax.Array]
    """The large ones that are its constants."""
    owners: list[Any]
    """Weak references, each of which removes the program from the cache."""


_programs: collections.OrderedDict[Hashable, _Program] = collections.OrderedDict()
_running = threading.local()


def call_compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` of arrays, compiled, and not again for an equal function.

    Inside `jit` and other transformations it is a call like another.
    """
    if is_traced(arguments):
        return function(*arguments)
    try:
        key, parts = _describe(function)
    except _Unknown:
        return function(*arguments)
    program = _programs.get(key)
    if program is not None and _same(program.arrays, parts.arrays):
        with contextlib.suppress(KeyError):  # another thread may have removed it
            _programs.move_to_end(key)
        return _call(program.call, function, arguments)
    call = jax.jit(lambda *arguments: _running.function(*arguments))
    result = _call(call, function, arguments)
    try:  # again: to trace a function may change what it holds, such as a counter
        key, parts = _describe(function)
    except _Unknown:
        return result

    def forget(_: Any) -> None:
        _programs.pop(key, None)

    owners = [weakref.ref(owner, forget) for owner in parts.owners]
    _programs[key] = _Program(call, parts.arrays, owners)
    while len(_programs) > _MOST_PROGRAMS:
        _programs.popitem(last=False)
    return result


def _call(call: Callable[..., Any], function: Callable[..., Any], arguments: tuple) -> Any:
    """The program holds no function: the one at hand is traced where it has to be."""
    before = getattr(_running, "function", None)
    _running.function = function
    try:
        return call(*arguments)
    finally:
        _running.function = before


def _same(arrays: list[jax.Array], others: list[jax.Array]) -> bool:
    return len(arrays) == len(others) and all(map(lambda a, b: a is b, arrays, others))


class _Unknown(Exception):  # noqa: N818 - no error: it cannot be looked into
    pass


def _describe(function: Callable[..., Any]) -> tuple[Hashable, "_Parts"]:
    parts = _Parts()
    try:
        key = parts.describe(function)
        hash(key)
    except Exception:  # whatever a user's object raises where it is looked into
        raise _Unknown from None
    return key, parts


class _Parts:
    """What a function is made of, as a key that is equal for an equal one."""

    def __init__(self) -> None:
        self.arrays: list[jax.Array] = []
        self.owners: list[Any] = []
        self._count = 0
        self._open: list[int] = []
        self._classes: set[type] = set()

    def describe(self, value: Any) -> Hashable:
        self._count += 1
        if self._count > _MOST_PARTS or isinstance(value, jax.core.Tracer):
            raise _Unknown
        if isinstance(value, float):
            return type(value), value.hex()
        if isinstance(value, _BY_VALUE):
            return type(value), value
        if isinstance(value, jax.Array):
            return self._array(value)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return np.ndarray, value.shape, str(value.dtype), _digest(value)
        if id(value) in self._open:
            return "itself", self._open.index(id(value))
        self._open.append(id(value))
        try:
            return self._structure(value)
        finally:
            self._open.pop()

    def _array(self, array: jax.Array) -> Hashable:
        kind = jax.Array, array.shape, str(array.dtype), array.sharding, array.weak_type
        if array.is_deleted():
            raise _Unknown
        if array.size > _SMALL or not array.is_fully_addressable:
            self.arrays.append(array)
            return kind
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        return *kind, _digest(np.asarray(array))

    def _structure(self, value: Any) -> Hashable:
        wrapped = getattr(value, "__wrapped__", None)
        if isinstance(value, tuple | list):
            return type(value), *map(self.describe, value)
        if isinstance(value, collections.abc.Mapping):
            return type(value), *((self.describe(k), self.describe(v)) for k, v in value.items())
        if isinstance(value, set | frozenset):
            return type(value), frozenset(map(self.describe, value))
        if isinstance(value, types.MethodType):
            return types.MethodType, self.describe(value.__func__), self.describe(value.__self__)
        if isinstance(value, functools.partial):
            of = value.func, value.args, value.keywords
            return self._owned(value, type(value), lambda: map(self.describe, of))
        if isinstance(value, types.FunctionType):
            if _checks_annotations(value):
                return self.describe(wrapped)
            return self._owned(value, value.__code__, lambda: self._function(value))
        if type(value) is object:
            return object, value
        if isinstance(value, types.BuiltinFunctionType):
            return value.__name__, self.describe(value.__self__)
        if isinstance(value, type):
            return value, *self._class(value)
        if isinstance(value, _Jitted):
            return _Jitted, self.describe(wrapped)
        if not hasattr(value, "__dict__") or any(
            getattr(kind, "__slots__", None) for kind in type(value).__mro__
        ):
            raise _Unknown
        held = type(value), vars(value)
        return self._owned(value, type(value), lambda: map(self.describe, held))

    def _class(self, kind: type) -> Iterator[Hashable]:
        """What a user's own class has: methods read globals, and attributes change."""
        for base in kind.__mro__:
            if base in self._classes or _is_installed_module(base.__module__):
                continue
            self._classes.add(base)
            for name, member in sorted(vars(base).items()):
                if isinstance(member, staticmethod | classmethod):
                    yield name, self.describe(member.__func__)
                elif isinstance(member, property):
                    yield name, self.describe(member.fget)
                elif not (name.startswith("__") and not callable(member)) and name != "__weakref__":
                    yield name, self.describe(member)

    def _function(self, function: types.FunctionType) -> Iterator[Hashable]:
        yield self.describe(function.__defaults__)
        yield self.describe(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                yield self.describe(cell.cell_contents)
            except ValueError:  # empty as yet
                yield None
        if not _is_installed(function):
            for name in sorted(set(_names(function.__code__)) & function.__globals__.keys()):
                yield name, self.describe(function.__globals__[name])

    def _owned(self, value: Any, kind: Any, describe: Callable[[], Any]) -> Hashable:
        before = len(self.arrays)
        described = kind, *describe()
        passing = isinstance(value, types.FunctionType) and _is_installed(value)
        if len(self.arrays) == before or passing:
            return described
        self.owners.append(value)
        try:
            weakref.ref(value)
        except TypeError:
            raise _Unknown from None
        return id(value), *described


def _is_installed_module(name: str) -> bool:
    if name.partition(".")[0] in sys.stdlib_module_names - {"__main__"}:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is not None and file.startswith(_INSTALLED)


def _is_installed(function: types.FunctionType) -> bool:
    return function.__code__.co_filename.startswith(_INSTALLED)


def _checks_annotations(function: types.FunctionType) -> bool:
    """What jaxtyping and beartype put around a function, which changes nothing of it."""
    file = function.__code__.co_filename
    return file.startswith(("<@beartype", _JAXTYPING)) and hasattr(function, "__wrapped__")


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _digest(array: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).digest()
