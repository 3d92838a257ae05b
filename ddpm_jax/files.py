"""Files that are written whole or not at all, and JSON files, whose damage is one sentence."""

import contextlib
import json
import os
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ddpm_jax.errors import UserError

__all__ = ["PARTIAL", "JsonFileError", "parse_json", "read_json", "whole_file"]

PARTIAL = ".partial"
"""The end of the names of files that are being written."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` when the context ends well.

    Its folder is made if it is not there. Whoever reads `path` sees all of the old file or all of
    the new one, also if the process or the machine dies half way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class JsonFileError(UserError):
    """A file that cannot be read, is not JSON, or holds something else than an object."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in the JSON file at `path`. Its values are of any type: the caller checks them.

    Every file of JSON that an earlier process may have written is read here, so that whatever
    happened to it is one sentence that begins with its path.

    Raises:
        JsonFileError: the file is missing, is not a regular file, cannot be read, does not fit into
            memory, or is not what `parse_json` takes; or it holds no object.
    """
    name = repr(str(path))
    try:
        if not path.is_file():  # to read a pipe would wait for ever
            what = "is a folder, not a file" if path.is_dir() else "is not a regular file"
            raise JsonFileError(f"{name} {what if path.exists() else 'does not exist'}")
        text = path.read_bytes()
    except OSError as error:
        raise JsonFileError(f"{name} cannot be read ({error.strerror})") from None
    except MemoryError:
        raise JsonFileError(f"{name} does not fit into memory") from None
    values = parse_json(text, name)
    if not isinstance(values, dict):
        raise JsonFileError(f"{name} holds a {type(values).__name__}, not an object")
    return values


def parse_json(text: bytes, name: str) -> Any:
    """The value of a JSON text in UTF-8; `NaN`, `Infinity` and `-Infinity` are numbers in it.

    Args:
        text: what a file or one line of it holds.
        name: what error sentences begin with.

    Raises:
        JsonFileError: the text is empty, not UTF-8, not JSON, nested too deeply, has a number of
            more digits than Python reads, or the same field twice.
    """
    if not text.strip():
        raise JsonFileError(f"{name} is empty")
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise JsonFileError(
            f"{name} is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x})"
        ) from None
    except RecursionError:
        raise JsonFileError(f"{name} is nested too deeply") from None
    except MemoryError:
        raise JsonFileError(f"{name} does not fit into memory") from None
    except _RepeatedFieldError as error:
        raise JsonFileError(f"{name} has the field {error} twice in one object") from None
    except json.JSONDecodeError as error:
        raise JsonFileError(f"{name} is not JSON ({error})") from None
    except ValueError:  # of Python's limit on the digits of an integer
        raise JsonFileError(f"{name} holds an integer of thousands of digits") from None


class _RepeatedFieldError(Exception):
    """JSON takes the last of two values in silence."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedFieldError(
            reprlib.repr(next(name for name in names if names.count(name) > 1))
        )
    return values
