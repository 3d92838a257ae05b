"""Scores of samples: each metric by its own function, the floors beside it, and what is missing."""

import jax
import numpy as np
import pytest
from five_numbers import NETWORK, features_of

from ddpm_jax import parallel
from ddpm_jax.data import Arrays
from ddpm_jax.evaluation import (
    METRICS,
    Comparison,
    Estimate,
    EvaluationError,
    SourceSamples,
    cmmd,
    density_coverage,
    floors_of,
    frechet_distance,
    inception_score,
    kernel_distance,
    metrics,
    moments_of,
    precision_recall,
    reference_from_images,
    score_samples,
    scores_of,
    sums_of,
)

MESH = parallel.make_mesh()


def noise(n, seed, top=256):
    return np.random.default_rng(seed).integers(0, top, (n, 4, 4, 1), dtype=np.uint8)


def reference_of(images, network=NETWORK, **how):
    return reference_from_images(network, [images], MESH, 16, dataset="noise", **how)


@pytest.fixture(scope="module")
def reference():
    return reference_of(noise(90, 0))


def scores(samples, reference, network=NETWORK, **how):
    found = score_samples(samples, reference, network, mesh=MESH, batch_size=24, **how)
    return {score.name.split(",")[0]: score for score in found}


def features(images):
    return jax.tree.map(np.asarray, features_of(images))


def test_every_number_by_the_functions_that_it_is_named_after(reference):
    samples, train = features(noise(120, 2, top=200)), features(noise(90, 0))
    found = scores(noise(120, 2, top=200), reference)
    precision, recall = precision_recall(samples.pooled, train.pooled)
    density, coverage = density_coverage(samples.pooled, train.pooled)
    expected = {
        "Frechet distance": frechet_distance(moments_of(samples.pooled), moments_of(train.pooled)),
        "spatial Frechet distance": frechet_distance(
            moments_of(samples.spatial), moments_of(train.spatial)
        ),
        "kernel distance": kernel_distance(samples.pooled, train.pooled),
        "precision": precision.value,
        "recall": recall.value,
        "density": density.value,
        "coverage": coverage.value,
        "classifier score": inception_score(samples.logits).mean,
    }
    for name, value in expected.items():
        assert found.pop(name).estimate.value == pytest.approx(value, rel=1e-4), name
    assert list(found) == ["Frechet distance at infinity"]
    # The bias of the distance of 120 samples is positive: its limit is lower.
    assert found.popitem()[1].estimate.value < expected["Frechet distance"]


def test_each_number_has_an_interval_around_it_or_says_why_not(reference):
    for name, score in scores(noise(120, 2), reference).items():
        value, low, high, note = score.estimate
        assert note, name
        assert "no interval" in note if low is None else low <= value <= high, name


def test_cmmd_is_for_embeddings_of_clip_only(reference):
    clip = NETWORK._replace(name="CLIP of five numbers")
    found = scores(noise(30, 2), reference_of(noise(90, 0), clip), clip)["CMMD"]
    samples, train = (features(noise(n, seed)).pooled for n, seed in ((30, 2), (90, 0)))
    assert found.estimate.value == pytest.approx(cmmd(samples, train).value, rel=1e-4)
    assert "CMMD" not in scores(noise(30, 2), reference)


def test_held_out_images_as_samples_reach_what_is_said_of_them(reference):
    for name, score in scores(noise(40, 1), reference, held_out=noise(40, 1)).items():
        assert score.estimate.value == pytest.approx(score.held_out, rel=1e-5), name


def test_images_of_the_reference_as_samples_are_no_distance_away(reference):
    found = scores(noise(90, 0), reference)
    assert found["Frechet distance"].estimate.value == pytest.approx(0, abs=1e-9)
    assert found["precision"].estimate.value == 1.0
    assert found["coverage"].estimate.value == 1.0


def test_halves_are_every_other_image_against_the_others(reference):
    train = features(noise(90, 0)).pooled
    found = scores(noise(30, 2), reference)
    halves = [moments_of(train[start::2]) for start in (0, 1)]
    assert found["Frechet distance"].halves == pytest.approx(frechet_distance(*halves), rel=1e-5)
    expected = kernel_distance(train[0::2], train[1::2])
    assert found["kernel distance"].halves == pytest.approx(expected, rel=1e-4)
    assert found["classifier score"].halves is None


def test_statistics_alone_have_distances_and_reasons(reference):
    alone = reference._replace(features=None, halves=None, spatial=None)
    found = scores(noise(30, 2), alone)
    reasons = {name: score.reason for name, score in found.items() if score.estimate is None}
    assert reasons.pop("spatial Frechet distance") == (
        "the reference has no statistics of spatial features"
    )
    assert set(reasons) == {"kernel distance", "precision", "recall", "density", "coverage"}
    assert set(reasons.values()) == {"the reference has no features of single images"}
    whole = scores(noise(30, 2), reference)["Frechet distance"]
    assert found["Frechet distance"].estimate == whole.estimate


@pytest.mark.parametrize(
    ("num", "known"),
    [
        (2, {"Frechet distance", "spatial Frechet distance", "kernel distance"}),
        (4, {"precision", "recall"}),
        (10, {"density", "coverage", "classifier score"}),
        (16, {"Frechet distance at infinity"}),
    ],
)
def test_few_samples_have_the_metrics_that_few_can_have(reference, num, known):
    found = scores(noise(num, 2), reference)
    assert all(found[name].estimate is not None for name in known)
    missing = {name for name, score in found.items() if score.estimate is None}
    fewer = scores(noise(num - 1, 2), reference)
    assert {name for name, score in fewer.items() if score.estimate is None} >= missing | known - {
        "density",
        "coverage",
    }
    assert all("it needs at least" in fewer[name].reason for name in missing)


def test_names_say_how_many_rows_and_which_part_of_the_reference_are_compared(reference):
    part = reference_of(noise(90, 0), keep_features=50)
    names = [
        score.name
        for score in score_samples(noise(70, 2), part, NETWORK, mesh=MESH, batch_size=24, keep=60)
    ]
    assert names[0] == "Frechet distance, five numbers, 70 samples"
    assert names[3:5] == [
        "kernel distance, five numbers, 60 samples, part of the reference",
        "precision, five numbers, 60 samples, part of the reference",
    ]
    assert names[-1] == "classifier score, five numbers, 70 samples"


def test_a_reference_of_another_network_is_refused(reference):
    other = NETWORK._replace(name="six numbers")
    with pytest.raises(EvaluationError, match="'five numbers', and samples would be"):
        score_samples(noise(30, 2), reference, other, mesh=MESH)


def test_a_metric_is_one_entry(reference, monkeypatch):
    def largest(of: Comparison) -> list[Estimate]:
        return [Estimate(float(of.samples.chosen.rows.max()), note="no interval: an example")]

    own = metrics.Metric((metrics.Name("largest feature"),), largest, pairs=True)
    monkeypatch.setattr(metrics, "METRICS", (*METRICS, own))
    monkeypatch.setattr("ddpm_jax.evaluation.scores.METRICS", (*METRICS, own))
    found = scores(noise(30, 2), reference, held_out=noise(40, 1))["largest feature"]
    assert found.name == "largest feature, five numbers, 30 samples"
    assert found.estimate.value == features(noise(30, 2)).pooled.max()
    assert found.held_out is not None
    assert found.halves is not None


def test_a_source_of_few_levels_is_stretched(reference):
    source = Arrays(noise(30, 2, top=17), levels=17)
    samples = SourceSamples(source, 17, "digits", "none")
    stretched = np.round(source.images * (255 / 16)).astype(np.uint8)
    assert [len(batch) for batch in samples.batches(3, 9)] == [6]
    np.testing.assert_array_equal(next(samples.batches(3, 9)), stretched[3:9])
    sums = sums_of(NETWORK, samples, MESH, 24)
    (first, *_) = scores_of("five numbers", sums, reference, floors_of("a", reference, None))
    found = scores(stretched, reference)["Frechet distance"]
    assert first.estimate == found.estimate
