"""The sums that metrics need of a stream of images, in bounded memory, whatever their number.

`sums_of` computes the features of images by their numbers, and stores of them

- moments in 8 groups (`Moments`), for the Frechet distance and its extrapolation. The 8 images
  with numbers 8 j to 8 j + 7 go to different groups, in an order that is random for each j: the
  groups of a folder that is sorted by class are alike;
- moments of the spatial features, if the network has them;
- the features of a random choice of images, for the metrics that compare pairs;
- sums of class probabilities in 10 parts of consecutive images, for the Inception score.

All random choices follow from a hash of the image's number. Therefore the sums of parts of the
images, by any number of processes and in any order, merge to the same sums, up to rounding.
"""

import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from ddpm_jax.errors import first_line
from ddpm_jax.evaluation.choices import ChosenRows, chosen_rows, priorities
from ddpm_jax.evaluation.features import EvaluationError, FeatureNetwork, Features
from ddpm_jax.evaluation.inception_score import ScoreSums, merge_score_sums, score_sums_of
from ddpm_jax.evaluation.moments import Moments, merge, moments_of
from ddpm_jax.evaluation.sample_sets import SampleSet
from ddpm_jax.evaluation.streaming import features_of
from ddpm_jax.npz import load_npz, save_npz

__all__ = [
    "MOST_ROWS",
    "Sums",
    "load_sums",
    "merge_sums",
    "save_sums",
    "sums_of",
    "sums_of_features",
]

MOST_ROWS = 10_000
"""Number of images whose features are stored by default; metrics of pairs compare all pairs."""
GROUPS = 8
SPLITS = 10
_SEED = 1
"""Of the groups; the choice of rows has another one."""
_CHUNK = 8192
"""Images whose features are added at a time: 64 MB of 2048 features."""
_FORMAT = 1
_MOST_BYTES = 2**32
"""Largest size of all arrays of a file together; 2048 features need 0.1 of it."""
_GROUP, _SCORES = "group", "scores"


class Sums(NamedTuple):
    """Sums over the features of images, or of a part of them."""

    total: int
    """Number of images of the whole set."""
    keep: int
    """Number of images of the whole set whose features are stored, at most."""
    groups: tuple[Moments | None, ...]
    """Moments of 8 groups of images; None for a group without images."""
    spatial: Moments | None
    """Moments of the spatial features; None without images or spatial features."""
    chosen: ChosenRows
    """float32 features of a random choice of images, with their numbers."""
    scores: tuple[ScoreSums | None, ...]
    """Sums of class probabilities in 10 parts of consecutive images; None for a part without
    images, or without logits."""

    @property
    def num(self) -> int:
        """Number of images in the sums."""
        return sum(group.rows for group in self.groups if group is not None)

    @property
    def moments(self) -> Moments | None:
        """Moments of the features of all images; None without images."""
        return functools.reduce(_merged, self.groups, None)


def sums_of(
    network: FeatureNetwork,
    samples: SampleSet,
    mesh: Mesh,
    batch_size: int,
    *,
    blocks: Iterable[tuple[int, int]] | None = None,
    keep: int = MOST_ROWS,
) -> Sums:
    """The sums over the features of images, or of some blocks of them.

    Args:
        network: computes the features.
        samples: the images, with 256 levels.
        mesh: mesh over which the batches are split.
        batch_size: images in one call of the network, at least 1.
        blocks: pairs (number of the first image, images), such as `own_blocks`; by default all.
        keep: number of images of the whole set whose features are stored, at most.

    Returns:
        The sums; of no blocks, empty ones.

    Raises:
        EvaluationError: a feature is not finite, `samples` has fewer images than it states, or as
            in `features_of`.
    """
    blocks = [(0, samples.num)] if blocks is None else list(blocks)
    images = (
        batch
        for first, num in blocks
        for batch in _checked(samples.batches(first, first + num), first, num)
    )
    numbers = itertools.chain.from_iterable(range(first, first + num) for first, num in blocks)
    sums = _no_sums(network.dim, samples.num, keep)
    for features in _chunks(features_of(network.apply, images, mesh, batch_size)):
        some = np.fromiter(numbers, np.int64, len(features.pooled))
        sums = merge_sums(sums, sums_of_features(features, some, total=samples.num, keep=keep))
    return sums


def sums_of_features(
    features: Features, numbers: Int[np.ndarray, " n"], *, total: int, keep: int = MOST_ROWS
) -> Sums:
    """The sums over features that are in memory.

    Args:
        features: of the images, on the host.
        numbers: int64, the number of each image in the whole set, `[n]`.
        total: number of images of the whole set.
        keep: number of images of the whole set whose features are stored, at most.

    Returns:
        The sums.

    Raises:
        EvaluationError: a feature is not finite.
    """
    pooled, logits, spatial = (None if rows is None else np.asarray(rows) for rows in features)
    for kind, rows in (
        ("pooled features", pooled),
        ("logits", logits),
        ("spatial features", spatial),
    ):
        if rows is not None:
            _check_finite(kind, rows, numbers)
    pooled = np.asarray(pooled)
    group = _groups(numbers)
    bounds = [index * total // SPLITS for index in range(1, SPLITS)]
    part = np.searchsorted(bounds, numbers, side="right")
    return Sums(
        total,
        keep,
        tuple(_moments(pooled[group == index]) for index in range(GROUPS)),
        None if spatial is None else _moments(spatial),
        chosen_rows(ChosenRows(numbers, pooled.astype(np.float32)), most=keep),
        tuple(_scores(logits, part == index) for index in range(SPLITS)),
    )


def merge_sums(a: Sums, b: Sums) -> Sums:
    """The sums over the images of both, which are different images of one set.

    Args:
        a: of some images.
        b: of others.

    Returns:
        The sums of all.

    Raises:
        EvaluationError: they are of different sets, keep another number of rows, or have features
            of different dimensions.
    """
    for name in ("total", "keep"):
        if getattr(a, name) != getattr(b, name):
            raise EvaluationError(
                f"{name} is {getattr(a, name)} in one of the sums and {getattr(b, name)} in the"
                " other; both have to be of the same set of images"
            )
    return Sums(
        a.total,
        a.keep,
        tuple(map(_merged, a.groups, b.groups)),
        _merged(a.spatial, b.spatial),
        chosen_rows(a.chosen, b.chosen, most=a.keep),
        tuple(map(_merged_scores, a.scores, b.scores)),
    )


def save_sums(path: Path, sums: Sums, about: Any) -> None:
    """Writes sums to a file, either completely or not at all.

    Args:
        path: of the file; its name ends in .npz.
        sums: to be stored.
        about: what they follow from, as JSON holds it; `load_sums` compares it.

    Raises:
        OSError: the disk refuses; an existing file is unchanged.
    """
    arrays = {
        "about": np.array(_about(sums.total, sums.keep, about)),
        "numbers": sums.chosen.numbers,
        "rows": sums.chosen.rows,
    }
    for name, moments in [*_named(_GROUP, sums.groups), ("spatial", sums.spatial)]:
        if moments is not None:
            arrays |= {f"{name}_{part}": np.asarray(v) for part, v in moments._asdict().items()}
    for name, scores in _named(_SCORES, sums.scores):
        if scores is not None:
            arrays |= {f"{name}_{part}": np.asarray(v) for part, v in scores._asdict().items()}
    save_npz(path, arrays)


def load_sums(path: Path, about: Any, *, total: int, keep: int = MOST_ROWS) -> Sums:
    """Reads a file that `save_sums` wrote.

    Args:
        path: of the file.
        about: what the sums have to follow from.
        total: number of images of the whole set.
        keep: number of images of the whole set whose features are stored, at most.

    Returns:
        The sums.

    Raises:
        EvaluationError: the file is missing, damaged or altered, or of something else.
    """
    try:
        arrays, intact = load_npz(path, most_bytes=_MOST_BYTES)
        if not intact:
            raise ValueError("its SHA-256 differs")
        if arrays["about"].item() != _about(total, keep, about):
            raise ValueError("it is of other images, another network or another version")
        return Sums(
            total,
            keep,
            tuple(_read_moments(arrays, name) for name, _ in _named(_GROUP, range(GROUPS))),
            _read_moments(arrays, "spatial"),
            ChosenRows(arrays["numbers"], arrays["rows"]),
            tuple(_read_scores(arrays, name) for name, _ in _named(_SCORES, range(SPLITS))),
        )
    except Exception as error:  # damage shows as whatever zipfile or numpy raises
        raise EvaluationError(
            f"{str(path)!r} is not a file of these sums ({first_line(error)})"
        ) from error


def _about(total: int, keep: int, about: Any) -> str:
    return json.dumps([_FORMAT, total, keep, about], sort_keys=True)


def _named(kind: str, values: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{kind}{index}", value) for index, value in enumerate(values))


def _read_moments(arrays: Mapping[str, np.ndarray], name: str) -> Moments | None:
    if f"{name}_rows" not in arrays:
        return None
    rows, mean, scatter = (arrays[f"{name}_{part}"] for part in Moments._fields)
    return Moments(int(rows), mean, scatter)


def _read_scores(arrays: Mapping[str, np.ndarray], name: str) -> ScoreSums | None:
    if f"{name}_{ScoreSums._fields[0]}" not in arrays:
        return None
    rows, probabilities, negentropy = (arrays[f"{name}_{part}"] for part in ScoreSums._fields)
    return ScoreSums(int(rows), probabilities, float(negentropy))


def _no_sums(dim: int, total: int, keep: int) -> Sums:
    rows = ChosenRows(np.zeros(0, np.int64), np.zeros((0, dim), np.float32))
    return Sums(total, keep, (None,) * GROUPS, None, rows, (None,) * SPLITS)


def _checked(batches: Iterable[np.ndarray], first: int, num: int) -> Iterator[np.ndarray]:
    """The same batches, if they have `num` images together."""
    count = 0
    for batch in batches:
        count += len(batch)
        yield batch
    if count != num:
        raise EvaluationError(
            f"there are {count} images from number {first} on, where the samples state {num}; they"
            " have changed while they were read"
        )


def _chunks(features: Iterable[Features]) -> Iterator[Features]:
    """The same features, at least `_CHUNK` images at a time except for the last ones."""
    waiting: list[Features] = []
    for batch in features:
        waiting.append(batch)
        if sum(len(some.pooled) for some in waiting) >= _CHUNK:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(batches: Sequence[Features]) -> Features:
    joined: Any = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    return Features(*joined)


def _groups(numbers: np.ndarray) -> np.ndarray:
    """The group of each image: its rank by hash among the 8 images of its stretch."""
    first = numbers // GROUPS * GROUPS
    stretches, where = np.unique(first, return_inverse=True)
    members = stretches[:, None] + np.arange(GROUPS)
    hashes = priorities(members.ravel(), _SEED).reshape(members.shape)
    ranks = np.argsort(np.argsort(hashes, axis=1), axis=1)
    return ranks[where, numbers - first]


def _moments(rows: np.ndarray) -> Moments | None:
    return moments_of(rows) if len(rows) else None


def _merged(a: Moments | None, b: Moments | None) -> Moments | None:
    if a is None or b is None:
        return b if a is None else a
    return merge(a, b)


def _scores(logits: np.ndarray | None, chosen: np.ndarray) -> ScoreSums | None:
    return None if logits is None or not chosen.any() else score_sums_of(logits[chosen])


def _merged_scores(a: ScoreSums | None, b: ScoreSums | None) -> ScoreSums | None:
    if a is None or b is None:
        return b if a is None else a
    return merge_score_sums(a, b)


def _check_finite(kind: str, values: np.ndarray, numbers: np.ndarray) -> None:
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise EvaluationError(
            f"the {kind} of image {numbers[np.argmin(finite)]} are not finite; all have to be"
        )
