"""What was computed before is kept in files that are named by a hash of what it follows from."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.experiment.directory import write_json

__all__ = ["kept_json", "params_hash", "settings_hash"]


def kept_json(folder: Path, name: str, follows_from: Any, compute: Callable[[], Any]) -> Any:
    """`compute()`, or what an earlier call that followed from the same has written.

    Args:
        folder: of such files.
        name: what the file's name begins with.
        follows_from: all that the result depends on, as JSON holds it.
        compute: gives plain values.
    """
    path = folder / f"{name}_{settings_hash(follows_from)}.json"
    if not path.is_file():
        write_json(path, compute())
    return json.loads(path.read_text())


def params_hash(params: Any) -> str:
    """The sha256 of all parameters and their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


def settings_hash(settings: Any) -> str:
    """16 digits for the name of a file or a folder."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
