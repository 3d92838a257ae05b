"""Cached results, in files that are named by a hash of all that they depend on.

Each holds a sha256 of what is in it and of what it follows from. So damage, an edit by hand, and a
file in the place of another are noticed; then it is computed again, and a line says so. Two
evaluations of one run may write the same file at the same time: each writes the whole of it.
"""

import contextlib
import functools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.files import json_digest, read_json, write_json
from ddpm_jax.npz import arrays_digest, load_npz, save_npz
from ddpm_jax.parallel import hosts

__all__ = [
    "ArrayStore",
    "cached_json",
    "move_aside_non_file",
    "params_sha256",
    "quiet",
    "settings_digest",
]


def quiet(line: str) -> None:
    """Reports nothing."""


def cached_json(
    folder: Path,
    name: str,
    follows_from: Any,
    compute: Callable[[], dict[str, Any]],
    report: Callable[[str], None] = quiet,
) -> dict[str, Any]:
    """`compute()`, or what an earlier call that followed from the same has written.

    All processes call it. The first one reads and writes; all of them compute.

    Args:
        folder: of such files.
        name: what the file's name begins with.
        follows_from: all that the result depends on, as JSON holds it.
        compute: gives plain values, none of the name "sha256".
        report: gets a line if there is a file that is not as it was written.
    """
    path = folder / f"{name}_{settings_digest(follows_from)}.json"
    seal = functools.partial(_seal, name, follows_from)
    stored: dict[str, Any] | None = hosts.by_first(lambda: _read_sealed(path, seal, report))
    if stored is not None:
        return stored
    # As it comes back from the file: tuples are lists.
    values: dict[str, Any] = json.loads(json.dumps(compute()))
    with hosts.together():
        if hosts.is_first():
            write_json(path, values | {"sha256": seal(values)})
    return values


def _read_sealed(
    path: Path, seal: Callable[[Any], str], report: Callable[[str], None]
) -> dict[str, Any] | None:
    """What is in a file, without its seal; None if it is not there or not as it was written."""
    move_aside_non_file(path, report)
    if not path.exists():
        return None
    try:
        values = read_json(path)
        stated = values.pop("sha256", None)
    except UserError as error:
        report(f"{error}; computed again")
        return None
    if stated == seal(values):
        return values
    report(f"{str(path)!r} has been altered: its SHA-256 differs; computed again")
    return None


class ArrayStore:
    """A `Memo` in a folder: one file for each name, written whole; a damaged one is as no file.

    Args:
        folder: of the files; what they follow from is in its name.
        report: gets a line for each file that is damaged.
    """

    def __init__(self, folder: Path, report: Callable[[str], None] = quiet) -> None:
        self._folder, self._report = folder, report

    def __call__(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The stored array of this name, else `compute()`, which is stored."""
        path = self._folder / f"{name}.npz"
        move_aside_non_file(path, self._report)
        if path.exists():
            with contextlib.suppress(Exception):  # of NumPy and zipfile, there are many
                arrays, sound = load_npz(path, most_bytes=path.stat().st_size)
                if sound:
                    return arrays["values"]
            self._report(f"{str(path)!r} is damaged; computed again")
        values = compute()
        save_npz(path, {"values": values})
        return values

    def remove(self) -> None:
        """Removes all files, when what was made of them is stored elsewhere."""
        shutil.rmtree(self._folder, ignore_errors=True)


def move_aside_non_file(path: Path, report: Callable[[str], None]) -> None:
    """Renames what is not a file: a folder cannot be replaced, and reading a pipe never ends."""
    if path.exists() and not path.is_file():
        aside = path.with_name(f"{path.name}.aside-{time.time_ns()}")
        with contextlib.suppress(FileNotFoundError):  # another evaluation was quicker
            path.rename(aside)
            report(f"{str(path)!r} is not a file; it is moved to {aside.name}, and computed again")


def params_sha256(params: Any) -> str:
    """The sha256 of all parameters and their names."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return arrays_digest({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


def settings_digest(settings: Any) -> str:
    """16 digits for the name of a file or a folder."""
    return json_digest(settings)[:16]


def _seal(name: str, follows_from: Any, values: Any) -> str:
    return json_digest([name, follows_from, values])
