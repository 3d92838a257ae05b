"""What a number may be called, told by what it was computed from."""

from typing import Literal, get_args

from ddpm_jax.evaluation.guards import EvaluationError, check_at_least

__all__ = ["FULL", "INCEPTION", "Metric", "metric_name"]

Metric = Literal["FID", "KID", "precision", "recall", "IS"]
INCEPTION = "Inception-v3"
"""The network whose features FID, KID and IS are of."""
FULL = 50_000
"""From so many samples on, a name does not say how many: it is what papers compare."""

_OF_INCEPTION = {"FID": "FID", "KID": "KID", "IS": "IS"}
_OF_OTHERS = {"FID": "Frechet distance", "KID": "kernel distance", "IS": "classifier score"}


def metric_name(
    metric: Metric, *, samples: int, network: str = INCEPTION, full_reference: bool = True
) -> str:
    """The name under which a result may be printed.

    "FID" alone is of Inception-v3, at least 50,000 samples and the full reference. Precision and
    recall name their network always: their paper took VGG-16, and others Inception.

    Args:
        metric: what it would be called at its best.
        samples: how many the result is of.
        network: whose features, in words.
        full_reference: whether it was compared with all images of a data set's split, not some.

    Raises:
        EvaluationError: another metric, no samples, or a network without a name.

    Example:
        >>> from ddpm_jax.evaluation import metric_name
        >>> metric_name("FID", samples=50_000), metric_name("FID", samples=10_000)
        ('FID', 'FID-10k')
        >>> metric_name("FID", samples=10_000, network="digits classifier")
        'Frechet distance, digits classifier, 10k samples'
    """
    if metric not in get_args(Metric):
        known = ", ".join(map(repr, get_args(Metric)))
        raise EvaluationError(f"metric is {metric!r}; it is one of {known}")
    check_at_least("samples", samples, 1)
    if not network.strip():
        raise EvaluationError(f"network is {network!r}; it has to name the feature network")
    few = samples < FULL
    number = f"{samples // 1000}k" if samples % 1000 == 0 else str(samples)
    if network == INCEPTION and metric in _OF_INCEPTION:
        parts = [_OF_INCEPTION[metric] + (f"-{number}" if few or not full_reference else "")]
    else:
        parts = [_OF_OTHERS.get(metric, metric), network]
        parts += [f"{number} sample{'s' if samples > 1 else ''}"] if few else []
    return ", ".join(parts if full_reference else [*parts, "part of the reference"])
