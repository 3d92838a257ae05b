"""Reference statistics as one file: an .npz that holds a sha256 of all that is in it.

Nothing is pickled. Equal references make equal bytes. The sha256 is of names, dtypes, shapes and
values, and does not depend on how the file lays them out.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ddpm_jax.data.preparation import first_line
from ddpm_jax.evaluation.guards import EvaluationError
from ddpm_jax.evaluation.moments import Moments, merge
from ddpm_jax.evaluation.references import Provenance, Reference
from ddpm_jax.files import whole_file
from ddpm_jax.npz import open_npz

__all__ = ["content_sha256", "load_reference", "save_reference"]

_FORMAT = 1
_HALVES = ("even", "odd")
_NAMES = {
    *("format", "provenance", "sha256", "features"),
    *(f"{half}_{part}" for half in _HALVES for part in ("rows", "mean", "scatter")),
}
_MOST_BYTES = 2**30
"""Of all arrays together: 10,000 features of 2048 numbers and their two moments are 0.15 of it."""


def content_sha256(reference: Reference) -> str:
    """What identifies a reference, as its file holds it: of provenance, moments and features."""
    return _digest(_arrays(reference))


def save_reference(path: Path, reference: Reference) -> str:
    """Writes `reference` to `path`, all of it or nothing, and returns its `content_sha256`.

    Raises:
        EvaluationError: `path` does not end in .npz.
        OSError: the disk refuses; what was at `path` is still there.
    """
    if path.suffix != ".npz":
        raise EvaluationError(f"path is {path}; it has to end in .npz")
    arrays = _arrays(reference)
    digest = _digest(arrays)
    with whole_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays, sha256=np.array(digest))
    return digest


def load_reference(path: Path) -> Reference:
    """Reads what `save_reference` wrote.

    Raises:
        EvaluationError: it is missing, damaged or altered, or of another version.
    """
    try:
        with open_npz(path, most_bytes=_MOST_BYTES) as stored:
            version = stored.read("format") if "format" in stored.names else np.array("absent")
            if version.shape != () or version.item() != _FORMAT:
                raise EvaluationError(
                    f"{path} is of another version of ddpm_jax: its format is"
                    f" {str(version)[:80]}, and {_FORMAT} is read here"
                )
            if unknown := stored.names - _NAMES:
                raise ValueError(f"{min(unknown)[:80]!r} is none of its arrays")
            arrays = {name: stored.read(name) for name in sorted(stored.names)}
    except EvaluationError:
        raise
    except FileNotFoundError:
        raise EvaluationError(f"{path} is missing; it has to be a file of statistics") from None
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror or error})") from None
    except Exception as error:  # damage shows as whatever zipfile or numpy raises
        raise EvaluationError(
            f"{path} is damaged or no file of statistics ({first_line(error)}); make it anew"
        ) from error
    try:
        stated = str(arrays.pop("sha256", "absent"))
        if stated != _digest(arrays):
            raise EvaluationError(f"{path} has been altered: it does not have its own sha256")
        return _reference(arrays)
    except EvaluationError:
        raise
    except Exception as error:  # its own sha256 can be computed by anyone
        raise EvaluationError(
            f"{path} is no file of statistics ({first_line(error)}); make it anew"
        ) from error


def _reference(arrays: Mapping[str, np.ndarray]) -> Reference:
    """Of what a file holds; ValueError, KeyError or TypeError of what is none."""
    halves = []
    for half in _HALVES:
        rows, mean, scatter = (arrays[f"{half}_{part}"] for part in ("rows", "mean", "scatter"))
        dim = mean.size
        if (rows.shape, rows.dtype.kind, mean.shape, scatter.shape) != (
            (),
            "i",
            (dim,),
            (dim, dim),
        ):
            raise ValueError(f"the moments {half!r} have other shapes than moments have")
        if {mean.dtype, scatter.dtype} != {np.dtype(np.float64)}:
            raise ValueError(f"the moments {half!r} are not float64")
        halves.append(Moments(int(rows), mean, scatter))
    even, odd = halves
    features = arrays.get("features")
    if features is not None and (features.dtype.kind, features.shape[1:]) != ("f", even.mean.shape):
        raise ValueError(f"features have dtype {features.dtype} and shape {features.shape}")
    provenance = Provenance(**json.loads(str(arrays["provenance"])))
    for field, kind in Provenance.__annotations__.items():
        if type(getattr(provenance, field)) is not kind:
            raise ValueError(f"{field} of its provenance is no {kind.__name__}")
    return Reference(provenance, merge(even, odd), (even, odd), features)


def _arrays(reference: Reference) -> dict[str, np.ndarray]:
    """What the file holds, by name."""
    arrays = {
        "format": np.array(_FORMAT, np.int64),
        "provenance": np.array(json.dumps(reference.provenance._asdict())),
    }
    for half, moments in zip(_HALVES, reference.halves, strict=True):
        arrays |= {
            f"{half}_rows": np.array(moments.rows, np.int64),
            f"{half}_mean": moments.mean,
            f"{half}_scatter": moments.scatter,
        }
    if reference.features is not None:
        arrays["features"] = reference.features
    return {
        name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()
    }


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Of every array, told apart by name, dtype and shape."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode() + b"\n")
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
