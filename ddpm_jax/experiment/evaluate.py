"""The evaluation of a run: likelihood, samples, pictures; of each of its parameters.

Results that take long are cached in the folder, by a hash of all that they depend on: samples,
likelihoods, statistics of the training images, the classifier. So an evaluation that was
interrupted resumes, and a repeated one, or one with more samples, computes only what is new. Each
cached file has a sha256 of its content; a file that does not match it is computed again.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.config import Evaluation, Sampler, plain
from ddpm_jax.data import ImageSet
from ddpm_jax.evaluation import (
    EvaluationError,
    FeatureNetwork,
    Reference,
    image_grid,
    near_fraction,
    save_png,
)
from ddpm_jax.evaluation import classifier as classifiers
from ddpm_jax.evaluation.pictures import Curve, plot_per_time
from ddpm_jax.experiment.cache import cached_json, move_aside_non_file, params_sha256
from ddpm_jax.experiment.experiment import Experiment
from ddpm_jax.experiment.held_out import (
    follows_from,
    images_identity,
    measure_held_out,
    per_image_name,
    save_per_image,
)
from ddpm_jax.experiment.near_training import COMPARED, near_training_images
from ddpm_jax.experiment.references import (
    OpenedReference,
    open_references,
    reference_by_all,
    reference_of,
)
from ddpm_jax.experiment.sample_files import sample_into_files
from ddpm_jax.experiment.scoring import (
    Compute,
    DrawnSamples,
    Space,
    few_samples,
    make_space,
    samples_of,
    score,
    summary,
)
from ddpm_jax.experiment.step import trained_model
from ddpm_jax.files import write_json
from ddpm_jax.parallel import hosts
from ddpm_jax.terminal import count_text

__all__ = ["EvaluationOptions", "evaluate"]

_GRID = 100
_SHOWN, _NEIGHBOURS = 10, 5
_FEWEST = 2
"""Training images of which there are statistics, one for each half."""


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """What is wanted of an evaluation."""

    num: int
    """Samples; 0 for none."""
    sampler: Sampler
    seed: int
    evaluation: Evaluation
    """What is measured of held-out images, and how many images at once."""
    classifier: Path | None = None
    """A classifier of another run on the same images, in place of one of its own."""
    networks: Callable[[], Sequence[FeatureNetwork]] = tuple
    """Makes the other feature networks that are wanted."""
    references: tuple[Path, ...] = ()
    """Statistics or images that samples are compared with in place of the training images, in the
    features of the networks that they fit."""
    reference_kind: str | None = None
    """Which program wrote them; None if they say so themselves."""
    seeds: int = 1
    """Number of seeds, from `seed` on, each of which draws `num` samples."""


def evaluate(
    experiment: Experiment,
    params: dict[str, Any],
    folder: Path,
    options: EvaluationOptions,
    report: Callable[[str], None],
    *,
    step: int,
) -> dict[str, Any]:
    """All results as plain values; pictures and `results.json` go to `folder`.

    Args:
        experiment: the run's.
        params: by the names under which they are reported, "ema" and "raw" as a rule.
        folder: of this evaluation.
        options: what to evaluate.
        report: gets a line for each part.
        step: of the parameters.
    """
    images, model = experiment.images, trained_model(experiment)
    results: dict[str, Any] = {
        "dataset": images.name,
        "preparation": images.preparation,
        "train_images": len(images.train),
        "held_out_images": len(images.held_out),
        "params": {name: {"sha256": params_sha256(values)} for name, values in params.items()},
    }
    cache = folder / "cache"
    compute = Compute(cache, experiment.mesh, options.evaluation.batch_size, report)
    # Before hours of work: these read files that may not be what they should be.
    networks = _networks(images, compute, options) if options.num else []
    with hosts.together():
        references = open_references(options.references, options.reference_kind, networks, report)
    results["baselines"] = cached_json(
        cache,
        "baselines",
        [*follows_from(options.evaluation), *images_identity(model.images)],
        lambda: hosts.by_first(lambda: options.evaluation.baselines(model.images)),
        report,
    )
    curves, number = {}, count_text(len(model.images.held_out), len(images.held_out))
    for name, values in params.items():
        report(f"evaluating {number} held-out images, {name}")
        digest = results["params"][name]["sha256"]
        evaluated = measure_held_out(cache, options.evaluation, model, values, digest, report)
        if evaluated.per_image is not None and hosts.is_first():
            about = {"step": step, "params_sha256": digest}
            save_per_image(folder / per_image_name(name), experiment, evaluated, about)
        results["params"][name] |= evaluated.plain
        if (per_time := evaluated.plain["per_time"]) is not None:
            curves[name] = Curve(
                np.array(per_time["mean"], np.float64),
                np.array(per_time["standard_error"], np.float64),
            )
    if curves and hosts.is_first():
        title = f"{images.name}: the ELBO, term by term"
        plot_per_time(folder / "elbo_per_t.png", curves, title=title)
    if reason := _no_metrics(images, options, networks):
        results["no_metrics"] = reason
    if options.num:
        results["sampling"] = {
            "images": options.num,
            "seed": options.seed,
            "seeds": options.seeds,
            **plain(options.sampler),
        }
        for line in (line for network in networks for line in few_samples(network, options.num)):
            report(line)
        spaces = [_space(compute, images, network, references) for network in networks]
        results["networks"] = [_describe(space, images, compute.batch_size) for space in spaces]
        for name, values in params.items():
            results["params"][name] |= _of_samples(
                experiment, values, name, folder, options, spaces, compute
            )
    with hosts.together():
        if hosts.is_first():
            write_json(folder / "results.json", results)
    return results


def _networks(
    images: ImageSet, compute: Compute, options: EvaluationOptions
) -> list[FeatureNetwork]:
    """The classifier of the data set, if it has labels, and those that are wanted."""
    if len(images.train) < _FEWEST:
        return []
    networks = []
    if images.classes is None:
        compute.report(f"{images.name} has no labels, so there is no classifier of it")
    elif options.classifier is None:
        networks.append(
            _cached_classifier(compute.cache / "classifier.npz", images, compute.report)
        )
    else:
        params = classifiers.load_classifier(options.classifier)
        networks.append(classifiers.classifier_network(images, params))
    with hosts.together():
        networks += options.networks()
    hosts.check_same("feature networks", [network.identity for network in networks])
    return networks


def _space(
    compute: Compute,
    images: ImageSet,
    network: FeatureNetwork,
    references: Mapping[str, OpenedReference],
) -> Space:
    """Compares with the reference that fits the network, by default with the training images."""
    other = references.get(network.identity)
    if other is None:
        reference = _of_training(compute, images, network)
    else:
        reference = reference_of(compute, network, other)
    held_out = samples_of(images, "held_out")
    return make_space(compute, network, reference, held_out, of_training=other is None)


def _of_training(compute: Compute, images: ImageSet, network: FeatureNetwork) -> Reference:
    """Statistics of the training images, from a file if they were computed before."""
    return reference_by_all(
        compute,
        network,
        samples_of(images, "train"),
        compute.cache / f"reference_{network.identity[:16]}.npz",
        dataset=images.name,
        split=images.splits[0],
        preprocessing=images.preparation,
    )


def _no_metrics(
    images: ImageSet, options: EvaluationOptions, networks: Sequence[FeatureNetwork]
) -> str | None:
    """Why there are no metrics of samples; None where there are."""
    if not options.num:
        return "no metrics of samples: none were to be drawn (--num 0)"
    if len(images.train) < _FEWEST:
        return f"no metrics of samples: {images.name} has {len(images.train)} training image"
    if not networks:
        return (
            f"no metrics of samples: {images.name} has no labels, so there is no classifier of it"
            " to compare with; --inception gives them in the features of Inception-v3"
        )
    return None


def _cached_classifier(
    path: Path, images: ImageSet, report: Callable[[str], None]
) -> FeatureNetwork:
    """The classifier of these images, trained if it is not there as it was written."""
    trained_on = json.dumps(images_identity(images))

    def is_stored() -> bool:
        move_aside_non_file(path, report)
        if not path.exists():
            return False
        try:
            classifiers.load_classifier(path, images=trained_on)
        except EvaluationError as error:
            report(f"{error}; trained again")
            return False
        return True

    if not hosts.by_first(is_stored):
        report(f"training a classifier of {images.name}")
        with hosts.together():
            if hosts.is_first():
                # One key for every run on these images, so that their numbers can be compared.
                key = jax.random.key(0, impl="threefry2x32")
                params = classifiers.train_classifier(images, key)
                classifiers.save_classifier(path, params, images=trained_on, dataset=images.name)
    with hosts.together():
        hosts.appears(path)
        # As the next evaluation will have it, and as one at the same time may have written it.
        return classifiers.classifier_network(images, classifiers.load_classifier(path))


def _describe(space: Space, images: ImageSet, batch_size: int) -> dict[str, Any]:
    description: dict[str, Any] = space.reference.provenance._asdict()
    if space.network.name.endswith("classifier"):
        description["held_out_accuracy"] = classifiers.accuracy(space.network, images, batch_size)
    return description


def _of_samples(
    experiment: Experiment,
    params: Any,
    name: str,
    folder: Path,
    options: EvaluationOptions,
    spaces: Sequence[Space],
    compute: Compute,
) -> dict[str, Any]:
    """Metrics of samples, and two pictures of the first ones."""
    draws = [
        _draw(experiment, params, name, seed, options, compute)
        for seed in range(options.seed, options.seed + options.seeds)
    ]
    near = hosts.by_first(lambda: _near(experiment.images, draws[0], name, folder))
    scores = [[score(compute, space, samples) for space in spaces] for samples in draws]
    by_features = summary(scores, seed=options.seed)
    return {
        **by_features,
        "memorization": [near["memorization"], *by_features["memorization"]],
        "nearest_training_image": near["nearest_training_image"],
    }


def _draw(
    experiment: Experiment,
    params: Any,
    name: str,
    seed: int,
    options: EvaluationOptions,
    compute: Compute,
) -> DrawnSamples:
    """The samples of one seed, of which those that are there already are not drawn."""
    compute.report(f"drawing {options.num} images, {name}, seed {seed}")
    files = sample_into_files(
        compute.cache / "samples",
        experiment,
        params,
        count=options.num,
        sampler=options.sampler,
        seed=seed,
        batch_size=compute.batch_size,
        report=compute.report,
    )
    return DrawnSamples(files, experiment.spec.levels)


def _near(images: ImageSet, samples: DrawnSamples, name: str, folder: Path) -> dict[str, Any]:
    """How near the first samples are to training images; two pictures of them are written."""
    drawn = samples.files.first(COMPARED)
    save_png(folder / f"samples_{name}.png", image_grid(drawn[:_GRID], levels=images.levels))
    near = near_training_images(images, drawn, shown=_SHOWN, neighbours=_NEIGHBOURS)
    rows = near.images.reshape(-1, *images.image_shape)
    picture = image_grid(rows, levels=images.levels, columns=near.images.shape[1])
    save_png(folder / f"neighbours_{name}.png", picture)
    return {
        "memorization": {
            "distance": "pixels",
            **near_fraction(near.samples, near.held_out)._asdict(),
        },
        "nearest_training_image": {
            "samples": float(np.median(near.samples)),
            "held_out": float(np.median(near.held_out)),
        },
    }
