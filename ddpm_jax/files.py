"""Files that are written completely or not at all, and JSON files with errors in one sentence."""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import reprlib
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ddpm_jax.errors import UserError

__all__ = [
    "PARTIAL",
    "JsonFileError",
    "check_size",
    "file_sha256",
    "is_partial",
    "json_digest",
    "locked_folder",
    "parse_json",
    "read_json",
    "whole_file",
    "whole_files",
    "whole_folder",
    "write_json",
]

PARTIAL = ".partial"
"""The end of the names of files that are being written."""

_TOKEN = 16
"""Hexadecimal digits in such a name, drawn for each call."""
_LONGEST = 100
"""Bytes of the target's name in it. A name may have 255 bytes, on some disks 143."""
_ATTEMPTS = 100
"""Times that a partial file is made, where others remove its folder or the file itself."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` when the context ends without an error.

    A reader sees all of the old file or all of the new one, also if the process or the machine
    stops half way; of several writers at the same time the last one wins. When this returns, the
    new file is on the disk, name and contents.

    The folder is made if it is not there. What is there already keeps its permissions. A link stays
    a link: the file that it points to is replaced. A device or a pipe is written to as it is.

    Each call writes to a file of its own beside the target, and removes it if the context ends with
    an error. A process that is killed leaves that file behind, and the next call for the same
    target removes it.

    Raises:
        OSError: the disk refuses, or `path` is a folder; what was at `path` is still there.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            yield stream
        return
    target = Path(os.path.realpath(path))
    _remove_abandoned(target)
    # Where a link points to a folder that is not there, a disk may not be mounted.
    partial, file = _new_partial(target, make_folder=not path.is_symlink())
    try:
        with contextlib.suppress(FileNotFoundError):
            os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
        yield file
        file.flush()
        os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    finally:
        with contextlib.suppress(OSError):  # of what a full disk has refused once already
            file.close()
    _sync_folder(target.parent)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes `path` when the context ends without an error.

    Until then it stands beside `path`, and is removed if the context ends with an error. What a
    killed process left of it the next call for the same `path` removes. What is put into it belongs
    to the disk before the context ends, as `whole_file` sees to it.

    Raises:
        OSError: the disk refuses, or `path` is a file or a folder that holds something.
    """
    target = Path(os.path.realpath(path))
    with _partial_folder(target) as partial:
        yield partial
        partial.replace(target)
    _sync_folder(target.parent)


@contextlib.contextmanager
def whole_files(path: Path) -> Iterator[Path]:
    """A new folder for files, which move into the folder `path` when the context ends.

    Each file is whole as soon as it is there, and takes the place of one of the same name. That
    costs less than `whole_file` for each. If the context ends with an error, none of them moves.
    What a killed process left the next call for the same `path` removes.

    Raises:
        OSError: the disk refuses.
    """
    target = Path(os.path.realpath(path))
    with _partial_folder(target) as partial:
        yield partial
        names = sorted(os.listdir(partial))
        _sync_files(partial, names)
        target.mkdir(exist_ok=True)
        for name in names:
            (partial / name).replace(target / name)
        partial.rmdir()
    _sync_folder(target)
    _sync_folder(target.parent)


def _sync_files(folder: Path, names: list[str]) -> None:
    """Puts files on the disk: all that is to be written at once where the system can do that.

    For a thousand small files `fsync` takes seconds, and `syncfs` some hundredths of one.
    """
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is not None:
        with _opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            if syncfs(descriptor):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
        return
    for name in names:
        with _opened(folder / name, os.O_RDONLY) as descriptor:
            os.fsync(descriptor)


@contextlib.contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    """A new, locked folder beside `target`, which is removed if the context ends with an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    token = secrets.token_hex(_TOKEN // 2)
    partial = target.with_name(f"{_shortened(target.name)}.{token}{PARTIAL}")
    partial.mkdir()
    with _opened(partial, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        try:
            with contextlib.suppress(OSError):  # some disks have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextlib.contextmanager
def locked_folder(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """A context of one process at a time, on disks that have locks.

    The kernel releases the lock when the process ends, however it ends.

    Raises:
        BlockingIOError: another process is in it, and `wait` is False.
    """
    with _opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield


def is_partial(name: str, target: str) -> bool:
    """Whether something of this name is what a killed writer of `target` left behind."""
    pattern = f"{re.escape(_shortened(target))}[.][0-9a-f]{{{_TOKEN}}}{re.escape(PARTIAL)}"
    return re.fullmatch(pattern, name) is not None


def _shortened(name: str) -> str:
    """The name itself, or its beginning and a hash of it."""
    coded = os.fsencode(name)
    if len(coded) <= _LONGEST:
        return name
    digest = hashlib.sha256(coded).hexdigest()[:16]
    return coded[: _LONGEST - 17].decode(errors="ignore") + "-" + digest


def _new_partial(target: Path, *, make_folder: bool) -> tuple[Path, IO[bytes]]:
    """A new file beside `target`, locked, so that no other writer takes it for an abandoned one."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    for left in reversed(range(_ATTEMPTS)):
        token = secrets.token_hex(_TOKEN // 2)
        partial = target.with_name(f"{_shortened(target.name)}.{token}{PARTIAL}")
        try:
            if make_folder:
                target.parent.mkdir(parents=True, exist_ok=True)
            file = os.fdopen(os.open(partial, flags, 0o666), "wb")  # less the umask
        except (FileNotFoundError, FileExistsError):  # others make and remove folders, too
            if not left:
                raise
            continue
        with contextlib.suppress(OSError):  # some disks have no locks, and nothing is removed there
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return partial, file
        file.close()  # another writer removed it before it was locked
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))


def _remove_abandoned(target: Path) -> None:
    """Removes what killed writers of `target` left: what is partial and no process has locked."""
    with contextlib.suppress(OSError):
        for name in os.listdir(target.parent):
            if is_partial(name, target.name):
                abandoned = target.with_name(name)
                is_folder = abandoned.is_dir()
                flags = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR
                with contextlib.suppress(OSError), _opened(abandoned, flags) as descriptor:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(abandoned) if is_folder else abandoned.unlink()


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor that is closed at the end."""
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Puts the names in it on the disk, where the disk can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_size(path: Path, most_bytes: int) -> None:
    """Raises OSError or ValueError unless `path` is a file of at most so many bytes.

    A pipe or a device, which may have no end, is none.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > most_bytes:
        raise ValueError(f"it has {status.st_size:,} bytes, and at most {most_bytes:,} are read")


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


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a file, either completely or not at all, also if the process is killed."""
    with whole_file(path) as file:
        file.write((json.dumps(values, indent=2) + "\n").encode())


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


def file_sha256(path: Path) -> str:
    """The SHA-256 of what is in a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(values: Any) -> str:
    """The sha256 of plain values, whatever the order of their fields and the space between them."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


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
