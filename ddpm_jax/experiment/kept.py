"""What was computed before is kept in files that are named by a hash of what it follows from.

Each holds a sha256 of what is in it and of what it follows from. So damage, an edit by hand, and a
file in the place of another are noticed; then it is computed again, and a line says so. Two
evaluations of one run may write the same file at the same time: each writes the whole of it.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.experiment.directory import write_json
from ddpm_jax.files import json_digest, read_json

__all__ = ["kept_json", "make_way", "params_hash", "quiet", "settings_hash"]


def quiet(line: str) -> None:
    """Tells nobody."""


def kept_json(
    folder: Path,
    name: str,
    follows_from: Any,
    compute: Callable[[], dict[str, Any]],
    tell: Callable[[str], None] = quiet,
) -> dict[str, Any]:
    """`compute()`, or what an earlier call that followed from the same has written.

    Args:
        folder: of such files.
        name: what the file's name begins with.
        follows_from: all that the result depends on, as JSON holds it.
        compute: gives plain values, none of the name "sha256".
        tell: gets a line if there is a file that is not as it was written.
    """
    path = folder / f"{name}_{settings_hash(follows_from)}.json"
    make_way(path, tell)
    if path.exists():
        try:
            values = read_json(path)
            stated = values.pop("sha256", None)
        except UserError as error:
            tell(f"{error}; computed again")
        else:
            if stated == _seal(name, follows_from, values):
                return values
            tell(f"{str(path)!r} is not as it was written, by its sha256; computed again")
    # As it comes back from the file: tuples are lists.
    values = json.loads(json.dumps(compute()))
    write_json(path, values | {"sha256": _seal(name, follows_from, values)})
    return values


def make_way(path: Path, tell: Callable[[str], None]) -> None:
    """Moves aside what is no file: a folder cannot be replaced, and a pipe be read for ever."""
    if path.exists() and not path.is_file():
        aside = path.with_name(f"{path.name}.aside-{time.time_ns()}")
        with contextlib.suppress(FileNotFoundError):  # another evaluation was quicker
            path.rename(aside)
            tell(f"{str(path)!r} is not a file; it is moved to {aside.name}, and computed again")


def params_hash(params: Any) -> str:
    """The sha256 of all parameters and their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def settings_hash(settings: Any) -> str:
    """16 digits for the name of a file or a folder."""
    return json_digest(settings)[:16]


def _seal(name: str, follows_from: Any, values: Any) -> str:
    return json_digest([name, follows_from, values])
