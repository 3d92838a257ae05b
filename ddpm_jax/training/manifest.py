"""Manifests, which list the contents of a saved folder and detect damage before it is read.

Orbax silently returns flipped bits, and its commit mark does not cover the contents of the files. A
manifest is one JSON file in the folder that it describes: size and SHA-256 of each other file, the
step, names, shapes and dtypes of the arrays, the run's config, and versions. It is written last and
atomically, so that a folder without one is incomplete. It contains its own SHA-256, which detects
damage to the manifest.
"""

import errno
import hashlib
import json
import os
import platform
import reprlib
import stat
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ddpm_jax import __version__
from ddpm_jax.errors import UserError
from ddpm_jax.files import JsonFileError, json_digest, parse_json

__all__ = [
    "NAME",
    "CheckpointError",
    "DamageError",
    "Manifest",
    "UnfinishedError",
    "check_like",
    "describe",
    "read",
    "step_folders",
    "verify",
    "versions",
    "write",
]

NAME = "manifest.json"
_PARTIAL = NAME + ".partial"
_FORMAT = 1
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
_NAMED = 3
"""Number of bad files that a sentence names."""
_LARGEST = 2**26
"""Largest size of a manifest in bytes; 100,000 arrays need a quarter of it."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or of another network."""


class DamageError(CheckpointError):
    """The content of a folder differs from its manifest."""


class UnfinishedError(DamageError):
    """The save of a folder was interrupted, or is in progress in another process."""


class FileRecord(NamedTuple):
    """One file as it was written."""

    size: int
    """Number of bytes."""
    sha256: str
    """SHA-256 of the content, in hex."""


class Manifest(NamedTuple):
    """The content of a folder, in plain values."""

    step: int
    """Number of steps done."""
    arrays: dict[str, str]
    """Dtype and shape of each array by its name, as in `params/w -> float32[3, 5]`."""
    notes: dict[str, Any]
    """Other values of the writer, such as the held-out loss of a checkpoint."""
    config: dict[str, Any]
    """Config of the run."""
    versions: dict[str, str]
    """Versions of packages and Python."""
    files: dict[str, FileRecord]
    """Files by their path inside the folder, with "/" as the separator."""


def describe(tree: Any) -> dict[str, str]:
    """`params/w -> float32[3, 5]` for each array of a tree, or of its shapes."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def check_like(folder: Path, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raises CheckpointError with the first array that differs, if one does."""
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise CheckpointError(
                f"the checkpoint {folder} is of another network or optimizer: {name} is"
                f" {stored.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
            )


def versions() -> dict[str, str]:
    """Versions of this package, of packages that affect its numbers and files, and of Python."""

    def installed(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:  # built from source, under another name
            return "unknown"

    return {
        "ddpm_jax": __version__,
        **{package: installed(package) for package in _PACKAGES},
        "python": platform.python_version(),
    }


def write(
    folder: Path,
    *,
    step: int,
    arrays: Mapping[str, str],
    notes: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Manifest:
    """Hashes the files in `folder` and writes its manifest, either completely or not at all.

    All files are flushed to the disk before the manifest is written: if there is a manifest, older
    folders may be deleted.

    Raises:
        OSError: the disk refuses; then the folder has no manifest.
    """
    names = _files(folder)
    records = _in_threads(_flushed_record, [folder / name for name in names])
    for path in (folder, *sorted(path for path in folder.rglob("*") if path.is_dir())):
        _flush_folder(path)
    _flush_folder(folder.parent)  # where Orbax has renamed it
    manifest = Manifest(
        step=step,
        arrays=dict(arrays),
        notes=dict(notes or {}),
        config=dict(config or {}),
        versions=versions(),
        files=dict(zip(names, records, strict=True)),
    )
    files = {name: record._asdict() for name, record in manifest.files.items()}
    body = json.loads(json.dumps({"format": _FORMAT, **manifest._asdict(), "files": files}))
    partial = folder / _PARTIAL
    with partial.open("w") as file:
        json.dump({**body, "sha256": json_digest(body)}, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / NAME)
    _flush_folder(folder)
    return manifest


def read(folder: Path, step: int) -> Manifest:
    """The manifest of `folder`, which has to be of `step`; other files are not read.

    Raises:
        UnfinishedError: there is no manifest.
        DamageError: the manifest is damaged, or of another step.
    """
    path = folder / NAME
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait forever
            raise DamageError(f"{folder}: {NAME} is not a file")
        if (size := path.stat().st_size) > _LARGEST:
            raise DamageError(
                f"{folder}: {NAME} has {size} bytes; a manifest has at most {_LARGEST}"
            )
        text = path.read_bytes()
    except FileNotFoundError:
        if path.is_symlink():
            raise DamageError(f"{folder}: {NAME} is a broken link") from None
        raise _absent(folder) from None
    except OSError as error:
        raise DamageError(f"{folder}: {NAME} cannot be read ({error.strerror})") from None
    try:
        body = parse_json(text, NAME)
    except JsonFileError:
        raise DamageError(f"{folder}: {NAME} is not JSON") from None
    try:
        stated = body.pop("sha256", None) if isinstance(body, dict) else None
        damaged = stated is None or stated != json_digest(body)
    except RecursionError:  # Python reads deeper nesting than it writes
        damaged = True
    if damaged:
        raise DamageError(f"{folder}: {NAME} is damaged: its SHA-256 differs")
    if type(number := body.get("format")) is not int or number != _FORMAT:
        raise DamageError(f"{folder}: {NAME} is of another version of ddpm_jax")
    manifest = _checked(folder, body)
    if manifest.step != step:
        raise DamageError(f"{folder}: {NAME} is of step {manifest.step}")
    return manifest


def _checked(folder: Path, body: Mapping[str, Any]) -> Manifest:
    """The fields of a manifest that this version reads; other fields are ignored."""

    def require(holds: bool, field: str, value: Any, wanted: str) -> None:
        if not holds:
            raise DamageError(
                f"{folder}: {NAME}: {field} is {reprlib.repr(value)}; it has to be {wanted}"
            )

    def is_count(value: Any) -> bool:
        return type(value) is int and value >= 0

    fields: dict[str, Any] = {name: body.get(name) for name in Manifest._fields}
    require(is_count(fields["step"]), "step", fields["step"], "an integer, 0 or more")
    for field in ("arrays", "notes", "config", "versions", "files"):
        require(isinstance(fields[field], dict), field, fields[field], "an object")
    for field in ("arrays", "versions"):
        for name, text in fields[field].items():
            require(isinstance(text, str), f"{field}[{name!a}]", text, "a string")
    files = {}
    for name, record in fields["files"].items():
        require(_is_inside(name), "a name in files", name, "a path inside the folder")
        where = f"files[{name!a}]"
        require(isinstance(record, dict), where, record, "an object")
        size, digest = record.get("size"), record.get("sha256")
        require(is_count(size), f"{where}.size", size, "an integer, 0 or more")
        require(isinstance(digest, str), f"{where}.sha256", digest, "a string")
        files[name] = FileRecord(size, digest)
    return Manifest(**{**fields, "files": files})


def _is_inside(name: str) -> bool:
    """Whether `write` could have written this path in a manifest."""
    parts = name.split("/")
    return not ({"", ".", ".."} & {*parts}) and name.isprintable()


def verify(folder: Path, step: int, *, contents: bool = True) -> Manifest:
    """The manifest of `folder`, after each file was compared with it.

    It compares sizes first, which costs nothing, then checksums, on all cores of the machine. Files
    that are not in the manifest are ignored.

    Args:
        folder: of one checkpoint.
        step: its step.
        contents: whether to compare checksums.

    Raises:
        UnfinishedError: it has no manifest.
        DamageError: the manifest is damaged, or files are missing, truncated or altered; the
            sentence names them.
    """
    manifest = read(folder, step)
    compare = [_compare_size, *([_compare_contents] if contents else [])]
    for look in compare:
        problems = _in_threads(
            look, [folder / name for name in manifest.files], manifest.files.values()
        )
        bad = [
            f"{name} {what}" for name, what in zip(manifest.files, problems, strict=True) if what
        ]
        if bad:
            more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
            raise DamageError(f"{folder}: {', '.join(bad[:_NAMED])}{more}")
    return manifest


def step_folders(directory: Path) -> dict[int, Path]:
    """The folders in `directory` that are named like a step; none if it is missing.

    Raises:
        CheckpointError: the directory cannot be read.
    """
    try:
        named = {
            path.name: path
            for path in directory.iterdir()
            if path.name.isdecimal() and path.is_dir()
        }
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read ({error.strerror})") from None
    return {int(name): path for name, path in named.items() if name == str(int(name))}


def _absent(folder: Path) -> CheckpointError:
    """The error of a folder without a manifest."""
    if not any(folder.glob("*")):
        return UnfinishedError(f"{folder}: it is empty")
    return UnfinishedError(
        f"{folder}: it has no {NAME}: its save was interrupted, or is in progress"
    )


def _compare_size(path: Path, record: FileRecord) -> str:
    try:
        status = path.stat()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        return "is missing" if missing else f"cannot be read ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return "is not a file"
    if status.st_size != record.size:
        return f"has {status.st_size} bytes in place of {record.size}"
    return ""


def _compare_contents(path: Path, record: FileRecord) -> str:
    try:
        now = _record(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if now == record else "has been altered"


def _record(path: Path) -> FileRecord:
    with path.open("rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileRecord(file.tell(), digest.hexdigest())


def _flushed_record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _record(path)


def _files(folder: Path) -> list[str]:
    """All files below `folder`, the largest first, because those decide how long threads take."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    paths.sort(key=lambda path: (-path.stat().st_size, path))
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [name for name in names if name not in (NAME, _PARTIAL)]


def _in_threads(function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
    """`map` on as many threads as there are cores: hashing and reading release Python's lock."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        return list(threads.map(function, *items))


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot do this, and protect names in other ways.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
