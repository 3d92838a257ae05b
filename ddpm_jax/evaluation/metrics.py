"""The metrics of samples, each declared once: its names, and how it is computed.

A metric compares the sums over the features of samples (`Sums`) with the statistics of a data set
(`Reference`). To add one, add an entry to `METRICS`: whoever computes, prints or stores metrics
goes over that tuple. A metric that cannot be computed says why, in a sentence.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.evaluation.confidence import Estimate
from ddpm_jax.evaluation.features import EvaluationError, check_at_least
from ddpm_jax.evaluation.frechet import frechet_distance_of_gaussians
from ddpm_jax.evaluation.frechet_intervals import frechet_at_infinity, frechet_interval
from ddpm_jax.evaluation.inception_score import inception_score_of_sums, merge_score_sums
from ddpm_jax.evaluation.kernels import cmmd, kernel_distance, kernel_distance_interval
from ddpm_jax.evaluation.manifolds import density_coverage, precision_recall
from ddpm_jax.evaluation.moments import Gaussian, gaussian_of
from ddpm_jax.evaluation.references import Reference
from ddpm_jax.evaluation.sums import GROUPS, SPLITS, Sums

__all__ = ["FULL", "INCEPTION", "METRICS", "Comparison", "Metric", "Name", "metric_name"]

INCEPTION = "Inception-v3"
"""Name of the network of FID, KID and IS."""
FULL = 50_000
"""Number of samples in papers; from this number on, the name of a metric leaves it out."""
_CLIP = "CLIP"
"""Start of the names of the networks of CMMD."""
_BALLS = 3
"""The neighbour to which the balls of precision and recall reach."""
_DENSE_BALLS = 5
"""The same of density and coverage."""


class Comparison(NamedTuple):
    """Samples and a reference, in the features of one network."""

    network: str
    """Name of the feature network."""
    samples: Sums
    """Sums over the features of the samples."""
    reference: Reference
    """Statistics of the data set."""
    intervals: bool = True
    """Whether intervals are wanted; without them, some metrics take less time."""


class Name(NamedTuple):
    """The names of one number."""

    name: str
    """For the features of Inception-v3, as papers print it."""
    general: str | None = None
    """For the features of any network; None if it is the same."""

    def label(self, of: Comparison, *, pairs: bool) -> str:
        """The name in results, which says how the number was computed; see `metric_name`.

        Args:
            of: the samples and the reference.
            pairs: whether it compares single features, of which both store a choice.

        Returns:
            The name.
        """
        stored, images = of.reference.features, of.reference.provenance.images
        part = pairs and stored is not None and images is not None and len(stored) < images
        num = len(of.samples.chosen.rows) if pairs else of.samples.num
        return metric_name(
            self.name, self.general, samples=num, network=of.network, full_reference=not part
        )


Computation = Callable[[Comparison], Sequence[Estimate | str]]
"""Returns for each name an estimate, or the reason why there is none; nothing at all if the network
has no such metric."""


class Metric(NamedTuple):
    """A metric of samples: one number, or several that are computed together."""

    names: tuple[Name, ...]
    """Names of the numbers."""
    compute: Computation
    """Computes them."""
    pairs: bool = False
    """Whether it compares single features, of which samples and reference store a choice."""


def metric_name(
    name: str,
    general: str | None = None,
    *,
    samples: int,
    network: str = INCEPTION,
    full_reference: bool = True,
) -> str:
    """The name of a metric in results, which says how it was computed.

    "FID" without more words stands for Inception-v3, at least 50,000 samples and the full
    reference; another resize of Inception's images is named. A metric without a name of its own for
    Inception, such as precision, always names the network.

    Args:
        name: the metric, for Inception's features.
        general: its name for the features of any network, if `name` is only for Inception's.
        samples: number of samples.
        network: name of the feature network.
        full_reference: whether the reference was all images of a data set's split.

    Returns:
        The name.

    Raises:
        EvaluationError: there are no samples, or the metric or the network has no name.

    Example:
        >>> from ddpm_jax.evaluation import metric_name
        >>> metric_name("FID", "Frechet distance", samples=50_000)
        'FID'
        >>> metric_name("FID", "Frechet distance", samples=10_000, network="digits classifier")
        'Frechet distance, digits classifier, 10k samples'
        >>> metric_name("FID", "Frechet distance", samples=10_000,
        ...             network="Inception-v3, clean-fid's resize")
        "FID-10k, clean-fid's resize"
    """
    check_at_least("samples", samples, 1)
    for argument, text in (("name", name), ("network", network)):
        if not text.strip():
            raise EvaluationError(f"{argument} is {text!r}; it has to say what was computed")
    few = samples < FULL
    number = f"{samples // 1000}k" if samples % 1000 == 0 else str(samples)
    inception, _, convention = network.partition(", ")
    published = inception == INCEPTION and not convention.startswith("weights")
    if published and general is not None:
        parts = [name + (f"-{number}" if few or not full_reference else "")]
        parts += [convention] if convention else []
    else:
        parts = [general or name, network]
        parts += [f"{number} sample{'s' if samples > 1 else ''}"] if few else []
    return ", ".join(parts if full_reference else [*parts, "part of the reference"])


def _frechet(of: Comparison) -> Sequence[Estimate | str]:
    """The distance of the samples, and that of infinitely many."""
    moments = of.samples.moments
    if moments is None or moments.rows < 2:
        return ["it needs at least 2 samples"] * 2
    samples, rows, reference = gaussian_of(moments), of.samples.chosen.rows, of.reference.pooled
    if of.intervals and len(rows) >= 2:
        distance = frechet_interval(rows, samples, reference, moments.rows)
    else:
        distance = _distance(samples, reference, "no interval: no features are stored")
    groups = [group for group in of.samples.groups if group is not None]
    if len(groups) < GROUPS or moments.rows < 2 * GROUPS:
        return [distance, f"it needs at least {2 * GROUPS} samples"]
    limit = frechet_at_infinity(groups, reference)
    bias = f"the distance of {moments.rows} samples is larger by {distance.value - limit.value:.3g}"
    return [distance, limit._replace(note=f"{limit.note}; {bias}")]


def _spatial_frechet(of: Comparison) -> Sequence[Estimate | str]:
    spatial = of.samples.spatial
    if spatial is None:
        return []
    if of.reference.spatial is None:
        return ["the reference has no statistics of spatial features"]
    if spatial.rows < 2:
        return ["it needs at least 2 samples"]
    note = "no interval: spatial features of single images are not stored"
    return [_distance(gaussian_of(spatial), of.reference.spatial, note)]


def _distance(samples: Gaussian, reference: Gaussian, note: str) -> Estimate:
    return Estimate(frechet_distance_of_gaussians(*samples, *reference), note=note)


def _inception_score(of: Comparison) -> Sequence[Estimate | str]:
    parts = [part for part in of.samples.scores if part is not None]
    if not parts:
        return []
    if of.samples.num < SPLITS:
        return [f"it needs at least {SPLITS} samples"]
    if of.samples.num < 2 * SPLITS:  # the score of a part of one sample is 1, whatever it is
        parts = [functools.reduce(merge_score_sums, parts)]
    return [inception_score_of_sums(parts)]


def _of_pairs(
    least: int, compute: Callable[[np.ndarray, np.ndarray], Sequence[Estimate]], numbers: int = 1
) -> Computation:
    """A metric of the features that samples and reference store, at least so many of each."""

    def computed(of: Comparison) -> Sequence[Estimate | str]:
        rows, reference = of.samples.chosen.rows, of.reference.features
        if reference is None:
            return ["the reference has no features of single images"] * numbers
        for name, some in (("samples", rows), ("images in the reference", reference)):
            if len(some) < least:
                return [f"it needs at least {least} {name}"] * numbers
        return compute(rows, reference)

    return computed


def _kernel(rows: np.ndarray, reference: np.ndarray) -> Sequence[Estimate]:
    if min(len(rows), len(reference)) > 2:
        return [kernel_distance_interval(rows, reference)]
    return [Estimate(kernel_distance(rows, reference), note="no interval: a set of two only")]


def _precision_recall(rows: np.ndarray, reference: np.ndarray) -> Sequence[Estimate]:
    return precision_recall(rows, reference, _BALLS)


def _density_coverage(rows: np.ndarray, reference: np.ndarray) -> Sequence[Estimate]:
    return density_coverage(rows, reference, _DENSE_BALLS)


def _cmmd(of: Comparison) -> Sequence[Estimate | str]:
    if not of.network.startswith(_CLIP):
        return []
    return _of_pairs(3, lambda rows, reference: [cmmd(rows, reference)])(of)


METRICS = (
    Metric(
        (Name("FID", "Frechet distance"), Name("FID-infinity", "Frechet distance at infinity")),
        _frechet,
    ),
    Metric((Name("sFID", "spatial Frechet distance"),), _spatial_frechet),
    Metric((Name("KID", "kernel distance"),), _of_pairs(2, _kernel), pairs=True),
    Metric((Name("CMMD"),), _cmmd, pairs=True),
    Metric(
        (Name("precision"), Name("recall")),
        _of_pairs(_BALLS + 1, _precision_recall, numbers=2),
        pairs=True,
    ),
    Metric(
        (Name("density"), Name("coverage")),
        _of_pairs(_DENSE_BALLS + 1, _density_coverage, numbers=2),
        pairs=True,
    ),
    Metric((Name("IS", "classifier score"),), _inception_score),
)
"""All metrics, in the order of tables."""
