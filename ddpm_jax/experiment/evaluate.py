"""The evaluation of a run: likelihood, samples, pictures; of each of its parameters.

Results that take long are cached in the folder, by a hash of all that they depend on: samples,
likelihoods, statistics of the training images, the classifier. So an evaluation that was
interrupted resumes, and a repeated one, or one with more samples, computes only what is new. Each
cached file has a sha256 of its content; a file that does not match it is computed again.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.config import Evaluation, Sampler, measure, plain
from ddpm_jax.data import ImageSet
from ddpm_jax.evaluation import (
    EvaluationError,
    FeatureNetwork,
    Reference,
    check_same,
    image_grid,
    likelihood,
    load_reference,
    save_png,
    save_reference,
)
from ddpm_jax.evaluation import classifier as classifiers
from ddpm_jax.evaluation.likelihood import TrainedModel
from ddpm_jax.evaluation.pictures import Curve, plot_per_time
from ddpm_jax.experiment.cache import cached_json, move_aside_non_file, params_sha256
from ddpm_jax.experiment.experiment import Experiment
from ddpm_jax.experiment.metrics import (
    COMPARED,
    Space,
    make_space,
    near_training_images,
    scores,
)
from ddpm_jax.experiment.run_directory import write_json
from ddpm_jax.experiment.sample_files import sample_into_files
from ddpm_jax.experiment.step import trained_model

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
    inception: Callable[[], FeatureNetwork] | None = None
    """Makes Inception, if its metrics are wanted."""


def evaluate(
    experiment: Experiment,
    params: dict[str, Any],
    folder: Path,
    options: EvaluationOptions,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """All results as plain values; pictures and `results.json` go to `folder`.

    Args:
        experiment: the run's.
        params: by the names under which they are reported, "ema" and "raw" as a rule.
        folder: of this evaluation.
        options: what to evaluate.
        report: gets a line for each part.
    """
    images = experiment.images
    results: dict[str, Any] = {
        "dataset": images.name,
        "preparation": images.preparation,
        "train_images": len(images.train),
        "held_out_images": len(images.held_out),
        "params": {name: {"sha256": params_sha256(values)} for name, values in params.items()},
    }
    cache = folder / "cache"
    results["baselines"] = cached_json(
        cache,
        "baselines",
        [*_follows_from(options.evaluation), *_identity(images)],
        lambda: options.evaluation.baselines(images),
        report,
    )
    curves, model = {}, trained_model(experiment)
    for name, values in params.items():
        report(f"evaluating {len(images.held_out)} held-out images, {name}")
        digest = results["params"][name]["sha256"]
        evaluated = _evaluated(cache, model, values, digest, options.evaluation, report)
        results["params"][name] |= evaluated
        if (per_time := evaluated["per_time"]) is not None:
            curves[name] = Curve(
                np.array(per_time["mean"], np.float64),
                np.array(per_time["standard_error"], np.float64),
            )
    if curves:
        title = f"{images.name}: the ELBO, term by term"
        plot_per_time(folder / "elbo_per_t.png", curves, title=title)
    if reason := _no_metrics(images, options):
        results["no_metrics"] = reason
    if options.num:
        results["sampling"] = {
            "images": options.num,
            "seed": options.seed,
            **plain(options.sampler),
        }
        spaces = _spaces(experiment, cache, options, report)
        results["networks"] = [
            _describe(space, experiment, options.evaluation.batch_size) for space in spaces
        ]
        for name, values in params.items():
            report(f"drawing {options.num} images, {name}")
            results["params"][name] |= _of_samples(
                experiment, values, name, folder, options, spaces, report
            )
    write_json(folder / "results.json", results)
    return results


def _evaluated(
    cache: Path,
    model: TrainedModel,
    params: Any,
    digest: str,
    evaluation: Evaluation,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """From a file if it was measured before."""

    def measured() -> dict[str, Any]:
        results, per_time = measure(evaluation, model, params)
        return {"results": results, "per_time": None if per_time is None else _plain(per_time)}

    follows_from = [digest, *_follows_from(evaluation), model.seed]
    follows_from += _identity(model.images)
    stored: dict[str, Any] = cached_json(cache, "evaluation", follows_from, measured, report)
    return stored


def _follows_from(evaluation: Evaluation) -> list[Any]:
    """The fields of a member that its results depend on: not how many images at once."""
    common = {field.name for field in dataclasses.fields(Evaluation)}
    return sorted((name, value) for name, value in plain(evaluation).items() if name not in common)


def _identity(images: ImageSet) -> list[str | int]:
    """What tells the images of one evaluation from others, wherever they are."""
    return [images.preparation, len(images.train), len(images.held_out), images.fingerprint]


def _plain(per_time: likelihood.PerTime) -> dict[str, list[float | None]]:
    """NaN, of a t without images, is None."""
    return {
        name: [None if value != value else value for value in values.tolist()]
        for name, values in per_time._asdict().items()
    }


def _spaces(
    experiment: Experiment, cache: Path, options: EvaluationOptions, report: Callable[[str], None]
) -> list[Space]:
    images, networks = experiment.images, []
    if len(images.train) < _FEWEST:
        return []
    if images.classes is None:
        report(f"{images.name} has no labels, so there is no classifier of it to compare with")
    elif options.classifier is None:
        networks.append(_cached_classifier(cache / "classifier.npz", images, report))
    else:
        params = classifiers.load_classifier(options.classifier)
        networks.append(classifiers.classifier_network(images, params))
    if options.inception is not None:
        networks.append(options.inception())
    spaces = []
    for network in networks:
        report(f"the data set in the space of {network.name}")
        path = cache / f"reference_{network.identity[:16]}.npz"
        train = _cached_reference(path, experiment, network, report)
        space = make_space(images, network, experiment.mesh, options.evaluation.batch_size, train)
        if train is None:
            save_reference(path, space.train)
        spaces.append(space)
    return spaces


def _no_metrics(images: ImageSet, options: EvaluationOptions) -> str | None:
    """Why there are no metrics of samples; None where there are."""
    if not options.num:
        return "no metrics of samples: none were to be drawn (--num 0)"
    if len(images.train) < _FEWEST:
        return f"no metrics of samples: {images.name} has {len(images.train)} training image"
    if images.classes is None and options.inception is None:
        return (
            f"no metrics of samples: {images.name} has no labels, so there is no classifier of it"
            " to compare with; --inception gives them in the space of Inception-v3"
        )
    return None


def _cached_classifier(
    path: Path, images: ImageSet, report: Callable[[str], None]
) -> FeatureNetwork:
    """The classifier of these images, trained if it is not there as it was written."""
    trained_on = json.dumps(_identity(images))
    move_aside_non_file(path, report)
    if path.exists():
        try:
            params = classifiers.load_classifier(path, images=trained_on)
            return classifiers.classifier_network(images, params)
        except EvaluationError as error:
            report(f"{error}; trained again")
    report(f"training a classifier of {images.name}")
    # One key for every run on these images, so that their numbers can be compared.
    params = classifiers.train_classifier(images, jax.random.key(0, impl="threefry2x32"))
    classifiers.save_classifier(path, params, images=trained_on)
    # As the next evaluation will have it, and as one at the same time may have written it.
    return classifiers.classifier_network(images, classifiers.load_classifier(path))


def _cached_reference(
    path: Path, experiment: Experiment, network: FeatureNetwork, report: Callable[[str], None]
) -> Reference | None:
    """Statistics of the training images, if they are there and of these images and this network."""
    move_aside_non_file(path, report)
    if not path.exists():
        return None
    images = experiment.images
    try:
        stored = load_reference(path)
    except EvaluationError as error:
        report(f"{error}; computed again")
        return None
    here = stored.provenance._replace(
        dataset=images.name,
        split=images.splits[0],
        images=len(images.train),
        preprocessing=images.preparation,
        network=network.name,
        network_sha256=network.identity,
    )
    try:
        check_same(stored.provenance, here)
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}; delete it, and it is made again") from None
    return stored


def _describe(space: Space, experiment: Experiment, batch_size: int) -> dict[str, Any]:
    description: dict[str, Any] = space.train.provenance._asdict()
    if space.network.name.endswith("classifier"):
        description["held_out_accuracy"] = classifiers.accuracy(
            space.network, experiment.images, batch_size
        )
    return description


def _of_samples(
    experiment: Experiment,
    params: Any,
    name: str,
    folder: Path,
    options: EvaluationOptions,
    spaces: list[Space],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Metrics of samples, and two pictures."""
    images = experiment.images
    samples = sample_into_files(
        folder / "cache" / "samples",
        experiment,
        params,
        count=options.num,
        sampler=options.sampler,
        seed=options.seed,
        batch_size=options.evaluation.batch_size,
        report=report,
    )
    grid = image_grid(samples.first(_GRID), levels=images.levels)
    save_png(folder / f"samples_{name}.png", grid)
    near = near_training_images(
        images, samples.first(COMPARED), shown=_SHOWN, neighbours=_NEIGHBOURS
    )
    rows = near.images.reshape(-1, *images.image_shape)
    picture = image_grid(rows, levels=images.levels, columns=near.images.shape[1])
    save_png(folder / f"neighbours_{name}.png", picture)
    return {
        "metrics": [
            score._asdict()
            for space in spaces
            for score in scores(
                space, images, samples.batches(), experiment.mesh, options.evaluation.batch_size
            )
        ],
        "nearest_training_image": {"samples": near.samples, "held_out": near.held_out},
    }
