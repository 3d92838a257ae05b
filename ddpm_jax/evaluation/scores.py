"""Scores of samples: every metric in the features of one network, and what it compares with.

A number means little alone. Beside each metric stand two numbers that need no model: the same
metric of held-out images in place of the samples, and of one half of the reference's images against
the other half. The samples of a perfect model are as far from the reference as the held-out images
are, not at zero.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from ddpm_jax.data import Arrays, Source, to_bytes
from ddpm_jax.evaluation.choices import ChosenRows
from ddpm_jax.evaluation.confidence import Estimate
from ddpm_jax.evaluation.features import FeatureNetwork
from ddpm_jax.evaluation.metrics import METRICS, Comparison, Metric, Name
from ddpm_jax.evaluation.moments import gaussian_of
from ddpm_jax.evaluation.references import Reference, check_network
from ddpm_jax.evaluation.sample_sets import SampleSet
from ddpm_jax.evaluation.sums import GROUPS, MOST_ROWS, SPLITS, Sums, sums_of
from ddpm_jax.parallel import make_mesh

__all__ = ["Floors", "Score", "SourceSamples", "floors_of", "score_samples", "scores_of"]

_AT_ONCE = 500
"""Images that are read from a source at a time."""


class Score(NamedTuple):
    """One metric of samples."""

    name: str
    """Name of the metric, with the network and the number of samples."""
    estimate: Estimate | None
    """The value with its interval; None if it cannot be computed."""
    held_out: float | None = None
    """The same metric of held-out images; None where there is none."""
    halves: float | None = None
    """The same metric of one half of the reference's images against the other half."""
    reason: str = ""
    """Why there is no estimate."""


class Floors(NamedTuple):
    """Values that no model is expected to improve on, by the names of the metrics."""

    held_out: dict[str, float]
    """Of held-out images in place of samples."""
    halves: dict[str, float]
    """Of one half of the reference's images in place of samples, against the other half."""


@dataclasses.dataclass(frozen=True)
class SourceSamples:
    """The images of a source as a set of samples, with 256 levels."""

    source: Source
    """The source."""
    levels: int
    """Its number of grey levels."""
    name: str
    """Name of the images."""
    fingerprint: str
    """A hash that other images do not have."""

    @property
    def num(self) -> int:
        """Number of images."""
        return len(self.source)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channel) of each image."""
        return self.source.image_shape

    def batches(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """The images `first` to `last` - 1, in batches of any length.

        Args:
            first: number of the first image.
            last: number after that of the last image; by default that of all images.

        Returns:
            An iterator over uint8 `[n, height, width, channel]`.
        """
        last = self.num if last is None else last
        for start in range(first, last, _AT_ONCE):
            indices = np.arange(start, min(start + _AT_ONCE, last))
            yield to_bytes(self.source[indices].images, self.levels)


def score_samples(
    samples: SampleSet | np.ndarray,
    reference: Reference,
    network: FeatureNetwork,
    *,
    held_out: SampleSet | np.ndarray | None = None,
    mesh: Mesh | None = None,
    batch_size: int = 128,
    keep: int = MOST_ROWS,
) -> list[Score]:
    """Every metric of samples against a reference, in the features of a network.

    Memory does not grow with the number of samples.

    Args:
        samples: a set of images, such as `open_samples` returns, or an array uint8
            `[n, height, width, channel]` with 256 levels.
        reference: statistics of the data set in the features of the same network.
        network: the feature network.
        held_out: images of the data set that are not in the reference, to compare with.
        mesh: over which batches are split; by default all devices.
        batch_size: images in one call of the network.
        keep: number of samples whose features are kept, for metrics of pairs.

    Returns:
        A score for each metric that the network has.

    Raises:
        EvaluationError: the reference is of another network, or the images are no images.

    Example:
        >>> from ddpm_jax.evaluation import inception_network, open_samples, score_samples
        >>> network = inception_network("inception.npz")  # doctest: +SKIP
        >>> reference = read_foreign_reference("cifar10-32x32.npz", "edm")  # doctest: +SKIP
        >>> score_samples(open_samples("samples/"), reference, network)  # doctest: +SKIP
    """
    check_network(reference, network)
    mesh = make_mesh() if mesh is None else mesh

    def sums(images: SampleSet | np.ndarray) -> Sums:
        if isinstance(images, np.ndarray):
            images = SourceSamples(Arrays(images), 256, "images", "")
        return sums_of(network, images, mesh, batch_size, keep=keep)

    of_samples = sums(samples)
    floors = floors_of(network.name, reference, None if held_out is None else sums(held_out))
    return scores_of(network.name, of_samples, reference, floors)


def scores_of(network: str, samples: Sums, reference: Reference, floors: Floors) -> list[Score]:
    """Every metric of the sums of samples.

    Args:
        network: name of the feature network.
        samples: sums over the features of the samples.
        reference: statistics of the data set.
        floors: what the metrics compare with.

    Returns:
        A score for each metric that the network has.
    """
    comparison = Comparison(network, samples, reference)
    scores = []
    for metric in METRICS:
        for name, estimate in _named(metric, comparison):
            label = name.label(comparison, pairs=metric.pairs)
            if isinstance(estimate, str):
                scores.append(Score(label, None, reason=estimate))
            else:
                held_out, halves = (some.get(name.name) for some in floors)
                scores.append(Score(label, estimate, held_out, halves))
    return scores


def floors_of(network: str, reference: Reference, held_out: Sums | None) -> Floors:
    """The values with which the metrics of samples compare.

    Args:
        network: name of the feature network.
        reference: statistics of the data set.
        held_out: sums over the features of held-out images; None without any.

    Returns:
        The values of those metrics that can be computed.
    """
    halves = _halves(network, reference)
    beside = None if held_out is None else Comparison(network, held_out, reference, intervals=False)
    return Floors(*({} if of is None else _values(of) for of in (beside, halves)))


def _values(of: Comparison) -> dict[str, float]:
    estimates = (named for metric in METRICS for named in _named(metric, of))
    return {name.name: e.value for name, e in estimates if isinstance(e, Estimate)}


def _named(metric: Metric, of: Comparison) -> Iterable[tuple[Name, Estimate | str]]:
    estimates = metric.compute(of)
    return zip(metric.names, estimates, strict=True) if estimates else ()


def _halves(network: str, reference: Reference) -> Comparison | None:
    """One half of the reference's images as samples, the other half as the reference."""
    if reference.halves is None or min(half.rows for half in reference.halves) < 2:
        return None
    one, other = reference.halves
    rows = reference.features
    rows = np.zeros((0, len(one.mean)), np.float32) if rows is None else rows
    total = one.rows + other.rows
    samples = Sums(
        total,
        len(rows),
        (one, *(None,) * (GROUPS - 1)),
        None,
        ChosenRows(np.arange(len(rows))[0::2], rows[0::2]),
        (None,) * SPLITS,
    )
    against = reference._replace(
        pooled=gaussian_of(other), spatial=None, features=rows[1::2], halves=None
    )
    return Comparison(network, samples, against, intervals=False)
