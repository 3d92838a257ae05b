"""Statistics files of other programs, each with its own feature network and resize.

| kind | file | network | holds |
| --- | --- | --- | --- |
| guided-diffusion | `.npz` with `mu_s` | Inception-v3 | FID, sFID; often images, too (`arr_0`) |
| edm | `.npz` with `mu`, `sigma` | Inception-v3 | FID; also files of TTUR and StyleGAN |
| edm2 | `.pkl` | Inception-v3; DINOv2 ViT-L/14, EDM2's resize | FID, FD, number of images |
| clean-fid | `NAME_MODE_SPLIT_SIZE.npz` | by MODE | FID |
| clean-fid | `NAME_MODE_SPLIT_SIZE_kid.npz` | by MODE | all features |
| torch-fidelity | `INPUT-NETWORK-stat-fid-LAYER.pt` | by NETWORK | FID |
| torch-fidelity | `INPUT-NETWORK-features-LAYER.pt` | by NETWORK | all features |
| pytorch-fid | `.npz` with `mu`, `sigma` | Inception-v3, pytorch-fid's resize | FID |

Resizes differ, and so do the numbers (Parmar et al. 2022, https://arxiv.org/abs/2104.11222): an FID
between features of two resizes is an error of some units. Therefore the resize is a part of the
network's name, and a file that does not tell it is refused until `kind` does.

Nothing in a file is executed. Numbers are checked before they are used.
"""

import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import first_line
from ddpm_jax.evaluation.choices import ChosenRows, chosen_rows
from ddpm_jax.evaluation.features import EvaluationError, FeatureNetwork
from ddpm_jax.evaluation.gaussian_checks import checked_gaussian
from ddpm_jax.evaluation.moments import Gaussian, Moments, gaussian_of, merge, moments_of
from ddpm_jax.evaluation.references import (
    Provenance,
    Reference,
    check_network,
    load_reference,
    option_of,
)
from ddpm_jax.npz import NpzReader, open_npz
from ddpm_jax.weights.pickles import read_pickle
from ddpm_jax.weights.torch_files import open_object
from ddpm_jax.weights.weights import LazyArray, WeightsError

__all__ = [
    "REFERENCE_KINDS",
    "ReferenceContents",
    "read_foreign_reference",
    "read_reference",
    "reference_contents",
]

_MOST_BYTES = 2**32
"""Largest size of the arrays that are read of an `.npz`: 500,000 features of 2048 numbers."""
_MOST_PICKLED = 2**28
"""Largest pickle: two covariances of edm2 have 42 MB."""

_INCEPTION, _SPATIAL = "Inception-v3", "the spatial layer of Inception-v3"
_PYTORCH_FID = "Inception-v3, pytorch-fid's resize"
_CLEAN_FID = "Inception-v3, clean-fid's resize"
_DINOV2 = "DINOv2 ViT-L/14, EDM2's resize"
_DIMS = {
    **dict.fromkeys((_INCEPTION, _PYTORCH_FID, _CLEAN_FID), 2048),
    _DINOV2: 1024,
    _SPATIAL: 7 * 17 * 17,  # 7 channels of 17 x 17 pixels
}
"""The number of features of a network."""

_CLEAN_FID_NAME = re.compile(
    r".+_(?P<mode>clean|legacy_pytorch|legacy_tensorflow)(?P<model>_clip_vit_b_32)?"
    r"_[^_]+_(\d+|na)(_kid)?\.npz",
    re.IGNORECASE,
)
_CLEAN_FID_MODES = {
    "clean": _CLEAN_FID,
    "legacy_pytorch": _PYTORCH_FID,
    "legacy_tensorflow": _INCEPTION,
}
_TORCH_FIDELITY_NAME = re.compile(
    r".+-(?P<network>inception-v3-compat|vgg16|(clip|dinov2)-[a-z0-9-]+?)"
    r"-(stat-fid|features)-(?P<layer>.+)\.pt"
)


class ReferenceContents(NamedTuple):
    """What a path holds that samples can be compared with."""

    statistics: bool
    """Statistics, of this library or of another program."""
    images: bool
    """Images: a folder, or an array `arr_0` or `images`."""


class _File(NamedTuple):
    """A file, and the names of its arrays if it is an `.npz`."""

    path: Path
    names: frozenset[str]


class _Statistics(NamedTuple):
    """Statistics in a file, by one network."""

    network: str
    pooled: Gaussian
    spatial: Gaussian | None = None
    features: np.ndarray | None = None
    halves: tuple[Moments, Moments] | None = None
    images: int | None = None


class _Kind(NamedTuple):
    """A program that writes statistics files."""

    name: str
    """Name of the program."""
    resize: str
    """Its resize of images for Inception-v3, in words."""
    fits: Callable[[_File], bool]
    """Whether a file can be of this kind, by its contents."""
    recognizes: Callable[[_File], bool]
    """Whether a file that fits is of this kind and of no other."""
    read: Callable[[_File, int], Sequence[_Statistics]]
    """Reads the statistics by each of the file's networks, and a number of rows of features."""


def read_foreign_reference(
    path: Path, kind: str | None = None, *, network: str | None = None, keep_features: int = 10_000
) -> Reference:
    """Reads statistics that another program wrote; see the table in the module.

    Args:
        path: of the file.
        kind: name of the program, one of `REFERENCE_KINDS`; None if the file tells it.
        network: name of the network, where the file has statistics by several; None otherwise.
        keep_features: number of rows of features that are taken, by a random choice, where the file
            holds features.

    Returns:
        The statistics. Their provenance names the file, the network and the preprocessing.

    Raises:
        EvaluationError: the file is missing, damaged or of no known kind; `kind` is needed or does
            not fit; `network` is needed or is not in the file; the numbers are no mean and
            covariance of features of that network; a pickle names a function that arrays do not
            need.
    """
    path = Path(path)
    file = _open(path)
    chosen = _kind(file, kind)
    try:
        statistics = chosen.read(file, keep_features)
    except EvaluationError:
        raise
    except WeightsError as error:
        raise EvaluationError(str(error)) from error
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # damage shows as whatever zipfile or numpy raises
        raise EvaluationError(
            f"{path} is damaged or not a statistics file of {chosen.name} ({first_line(error)})"
        ) from error
    one = _of_network(path, statistics, network)
    about = f"that of {chosen.name}"
    provenance = Provenance(path.name, "", one.images, "", about, one.network, "")
    return Reference(provenance, one.pooled, one.spatial, one.features, one.halves)


def read_reference(path: Path, network: FeatureNetwork, kind: str | None = None) -> Reference:
    """Reads the statistics by a network from a file, of this library or of another program.

    Args:
        path: of the file.
        network: the network that is to compute the features of samples.
        kind: name of the program that wrote it; None if the file tells it.

    Returns:
        The statistics.

    Raises:
        EvaluationError: as in `load_reference` and `read_foreign_reference`; or the statistics are
            of another network, see `check_network`.
    """
    path = Path(path)
    file = _open(path)
    if _is_own(file):
        if kind is not None:
            raise EvaluationError(
                f"kind is {kind!r}, and {path} was written by ddpm_jax; leave kind out"
            )
        reference = load_reference(path)
    else:
        reference = read_foreign_reference(path, kind, network=network.name)
    check_network(reference, network)
    return reference


def reference_contents(path: Path) -> ReferenceContents:
    """Tells whether a path holds statistics, images, or both; arrays are not read.

    Args:
        path: of a file or a folder.

    Returns:
        What it holds. Both are False for a file that holds neither.

    Raises:
        EvaluationError: `path` is missing, or is an `.npz` that cannot be opened.
    """
    path = Path(path)
    if path.is_dir():
        return ReferenceContents(statistics=False, images=True)
    if path.suffix == ".npy":
        return ReferenceContents(statistics=False, images=path.exists())
    file = _open(path)
    statistics = _is_own(file) or any(kind.fits(file) for kind in _KINDS)
    return ReferenceContents(statistics, bool(file.names & {"arr_0", "images"}))


def _open(path: Path) -> _File:
    if path.is_dir():
        raise EvaluationError(f"{path} is a folder; statistics are one file, an .npz, .pkl or .pt")
    if not path.exists():
        raise EvaluationError(f"{path} is missing; it has to be a statistics file")
    if path.suffix != ".npz":
        return _File(path, frozenset())
    try:
        with open_npz(path, most_bytes=0) as archive:
            return _File(path, archive.names)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{path} is damaged or no .npz ({first_line(error)})") from error


def _is_own(file: _File) -> bool:
    return {"format", "provenance"} <= file.names


def _kind(file: _File, name: str | None) -> _Kind:
    """The kind of a file; `name` decides where several fit."""
    fitting = [kind for kind in _KINDS if kind.fits(file)]
    if name is not None:
        if name not in REFERENCE_KINDS:
            raise EvaluationError(f"kind is {name!r}; it has to be one of {_listed(_KINDS)}")
        for kind in fitting:
            if kind.name == name:
                return kind
    if not fitting:
        arrays = f"arrays {', '.join(sorted(file.names)[:8])[:200]}" if file.names else "no arrays"
        images = "; it holds images, and is read as samples are" if "arr_0" in file.names else ""
        raise EvaluationError(
            f"{file.path} is not a statistics file of {_listed(_KINDS)}: it has the ending"
            f" {file.path.suffix!r} and {arrays}{images}"
        )
    if name is not None:
        raise EvaluationError(
            f"kind is {name!r}, and {file.path} has the contents of a file of {_listed(fitting)}"
        )
    recognized = [kind for kind in fitting if kind.recognizes(file)]
    if not recognized:
        choices = "; ".join(f"{kind.name!r} ({kind.resize})" for kind in fitting)
        raise EvaluationError(
            f"{file.path} does not tell which program wrote it, and they resize images in"
            f" different ways; kind (--reference-kind) has to be one of {choices}"
        )
    return recognized[0]


def _of_network(path: Path, statistics: Sequence[_Statistics], network: str | None) -> _Statistics:
    by_name = {one.network: one for one in statistics}
    if network in by_name:
        return by_name[network]
    if len(statistics) == 1:
        return statistics[0]  # `check_network` says what computes the features that fit
    names = " and ".join(map(repr, by_name))
    if network is None:
        raise EvaluationError(
            f"{path} has statistics by the networks {names}; network has to name one of them"
        )
    raise EvaluationError(
        f"{path} has statistics by the networks {names}, and samples would be compared by"
        f" {network!r}; {' or '.join(map(option_of, by_name))} computes the features that fit"
    )


def _listed(kinds: Sequence[_Kind]) -> str:
    *first, last = (kind.name for kind in kinds)
    return f"{', '.join(first)} or {last}" if first else last


# ---- Readers


def _has(*names: str) -> Callable[[_File], bool]:
    return lambda file: set(names) <= file.names


def _ends_in(suffix: str) -> Callable[[_File], bool]:
    return lambda file: file.path.suffix == suffix


def _read_guided_diffusion(file: _File, _: int) -> list[_Statistics]:
    with open_npz(file.path, most_bytes=_MOST_BYTES) as archive:
        pooled = _gaussian_in(file, archive, "mu", "sigma", _INCEPTION)
        spatial = _gaussian_in(file, archive, "mu_s", "sigma_s", _SPATIAL)
    return [_Statistics(_INCEPTION, pooled, spatial)]


def _mean_reader(network: str) -> Callable[[_File, int], list[_Statistics]]:
    """The reader of an `.npz` with `mu` and `sigma`."""

    def read(file: _File, _: int) -> list[_Statistics]:
        with open_npz(file.path, most_bytes=_MOST_BYTES) as archive:
            return [_Statistics(network, _gaussian_in(file, archive, "mu", "sigma", network))]

    return read


def _read_clean_fid(file: _File, keep_features: int) -> list[_Statistics]:
    matched = _CLEAN_FID_NAME.fullmatch(file.path.name)
    network = _CLEAN_FID_MODES[matched["mode"].lower()] if matched else _CLEAN_FID
    if matched and matched["model"]:
        network = "CLIP ViT-B/32, clean-fid's resize"
    if "feats" not in file.names:
        return _mean_reader(network)(file, keep_features)
    with open_npz(file.path, most_bytes=_MOST_BYTES) as archive:
        return [_of_rows(file, archive.read("feats"), network, keep_features)]


def _read_edm2(file: _File, _: int) -> list[_Statistics]:
    content = read_pickle(file.path, most_bytes=_MOST_PICKLED)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} in place of a dict")
    images = content.get("num_images")
    images = images if type(images) is int else None
    statistics = []
    for metric, network in (("fid", _INCEPTION), ("fd_dinov2", _DINOV2)):
        if isinstance(of_metric := content.get(metric), dict):
            pooled = checked_gaussian(
                f"{metric!r} in {file.path}",
                of_metric["mu"],
                of_metric["sigma"],
                network,
                _DIMS[network],
            )
            statistics.append(_Statistics(network, pooled, images=images))
    if not statistics:
        raise ValueError("it has neither 'fid' nor 'fd_dinov2'")
    return statistics


def _read_torch_fidelity(file: _File, keep_features: int) -> list[_Statistics]:
    matched = _TORCH_FIDELITY_NAME.fullmatch(file.path.name)
    if matched is None:
        raise EvaluationError(
            f"{file.path} does not tell the network by its name; torch-fidelity calls its files"
            " INPUT-inception-v3-compat-stat-fid-2048.pt, or -features-2048.pt: give it such a name"
        )
    content = open_object(file.path)
    if matched["network"] == "inception-v3-compat" and matched["layer"] == "2048":
        network = _INCEPTION
    else:
        network = f"{matched['network']} of torch-fidelity, layer {matched['layer']}"
    if isinstance(content, LazyArray):
        return [_of_rows(file, content.read(), network, keep_features)]
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} in place of statistics")
    where, dim = str(file.path), _DIMS.get(network)
    pooled = checked_gaussian(where, content["mu"], content["sigma"], network, dim)
    return [_Statistics(network, pooled)]


def _gaussian_in(
    file: _File, archive: NpzReader, mean: str, covariance: str, network: str
) -> Gaussian:
    return checked_gaussian(
        str(file.path),
        archive.read(mean),
        archive.read(covariance),
        network,
        _DIMS.get(network),
        names=(mean, covariance),
    )


def _of_rows(file: _File, rows: Any, network: str, keep_features: int) -> _Statistics:
    """Statistics of features."""
    dim = _DIMS.get(network)
    if rows.ndim != 2 or len(rows) < 4 or rows.dtype not in (np.float32, np.float64):
        raise EvaluationError(
            f"the features in {file.path} have shape {rows.shape} and dtype {rows.dtype}; they have"
            " to be float32 or float64 [n, dim] with n at least 4"
        )
    if dim not in (None, rows.shape[1]):
        raise EvaluationError(
            f"the features in {file.path} have {rows.shape[1]} dimensions, and those of {network}"
            f" have {dim}"
        )
    if not np.isfinite(rows).all():
        raise EvaluationError(f"the features in {file.path} have values that are not finite")
    halves = moments_of(rows[0::2]), moments_of(rows[1::2])
    part = ChosenRows(np.arange(len(rows)), rows)
    features = chosen_rows(part, most=keep_features).rows.astype(np.float32)
    pooled = gaussian_of(merge(*halves))
    return _Statistics(network, pooled, None, features, halves, len(rows))


def _certainly(_: _File) -> bool:
    return True


def _never(_: _File) -> bool:
    return False


def _has_means_only(file: _File) -> bool:
    return {"mu", "sigma"} <= file.names and "mu_s" not in file.names


_KINDS = (
    _Kind(
        "guided-diffusion",
        "TensorFlow's bilinear resize",
        _has("mu", "sigma", "mu_s", "sigma_s"),
        _certainly,
        _read_guided_diffusion,
    ),
    _Kind(
        "edm",
        "TensorFlow's bilinear resize, also of TTUR and StyleGAN",
        _has_means_only,
        _never,
        _mean_reader(_INCEPTION),
    ),
    _Kind(
        "edm2",
        "TensorFlow's bilinear resize",
        _ends_in(".pkl"),
        _certainly,
        _read_edm2,
    ),
    _Kind(
        "clean-fid",
        "PIL's bicubic resize with antialiasing",
        lambda file: _has_means_only(file) or "feats" in file.names,
        lambda file: "feats" in file.names or bool(_CLEAN_FID_NAME.fullmatch(file.path.name)),
        _read_clean_fid,
    ),
    _Kind(
        "torch-fidelity",
        "TensorFlow's bilinear resize",
        _ends_in(".pt"),
        _certainly,
        _read_torch_fidelity,
    ),
    _Kind(
        "pytorch-fid",
        "torch's bilinear resize",
        _has_means_only,
        _never,
        _mean_reader(_PYTORCH_FID),
    ),
)
REFERENCE_KINDS = tuple(kind.name for kind in _KINDS)
"""Names of the programs whose statistics files can be read."""
