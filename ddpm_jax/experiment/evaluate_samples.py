"""The evaluation of any samples: metrics of a set of images against references, without a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_jax.evaluation import EvaluationError, FeatureNetwork, SampleSet
from ddpm_jax.experiment.references import OpenedReference, reference_of
from ddpm_jax.experiment.scoring import Compute, few_samples, make_space, score, summary
from ddpm_jax.files import write_json
from ddpm_jax.parallel import hosts

__all__ = ["evaluate_samples"]


def evaluate_samples(
    samples: SampleSet,
    networks: Sequence[FeatureNetwork],
    references: Mapping[str, OpenedReference],
    folder: Path,
    compute: Compute,
) -> dict[str, Any]:
    """All results as plain values; `results.json` goes to `folder`.

    Args:
        samples: the images.
        networks: whose features are compared.
        references: see `open_references`.
        folder: of this evaluation.
        compute: where and how.

    Raises:
        EvaluationError: a network has no reference, or the images have another shape than those of
            the reference.
    """
    if samples.num < 2:
        raise EvaluationError(f"{samples.name!r} has 1 image; metrics need at least 2")
    lines = [
        line
        for network in networks
        for line in _checked(samples, network, references.get(network.identity))
    ]
    for line in dict.fromkeys(lines):
        compute.report(line)
    spaces = []
    for network in networks:
        reference = reference_of(compute, network, references[network.identity])
        spaces.append(make_space(compute, network, reference))
    compute.report(f"features of {samples.num:,} samples in {samples.name}")
    results = {
        "samples": samples.name,
        "images": samples.num,
        "image_shape": list(samples.shape),
        "fingerprint": samples.fingerprint,
        "networks": [space.reference.provenance._asdict() for space in spaces],
        **summary([[score(compute, space, samples) for space in spaces]], seed=0),
    }
    with hosts.together():
        if hosts.is_first():
            write_json(folder / "results.json", results)
    return results


def _checked(
    samples: SampleSet, network: FeatureNetwork, reference: OpenedReference | None
) -> list[str]:
    """Lines about what the metrics of one network will mean.

    Raises:
        EvaluationError: there is no reference, or its images have another shape.
    """
    if reference is None:
        raise EvaluationError(
            f"--reference has no statistics of {network.name!r}; name a file of its statistics, or"
            " a folder of images, which serves every network"
        )
    statistics, images = reference
    lines = few_samples(network, samples.num)
    if statistics is not None:
        lines.append(
            f"the samples are {_size(samples)}; statistics do not say the size of their images, and"
            " networks resize all to one size"
        )
    elif images is not None and samples.shape != images.shape:
        raise EvaluationError(
            f"the samples are {_size(samples)} and the images in {images.name!r} are"
            f" {_size(images)}; both have to be the same: resize one of them, or name statistics"
        )
    elif images is not None and samples.fingerprint == images.fingerprint:
        lines.append(f"the samples are the images of the reference, {images.name}")
    return lines


def _size(images: SampleSet) -> str:
    return "x".join(map(str, images.shape))
