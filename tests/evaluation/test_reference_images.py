"""Statistics of images: one pass, any batches, a random choice of the features."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import parallel
from ddpm_jax.evaluation import (
    ChosenRows,
    EvaluationError,
    FeatureNetwork,
    Features,
    Provenance,
    chosen_rows,
    make_reference,
    moments_of,
    priorities,
    reference_from_images,
)

IMAGES = np.random.default_rng(0).integers(0, 17, (41, 2, 3, 1), dtype=np.uint8)
FLAT = IMAGES.reshape(41, -1).astype(np.float32)
WORDS = {"dataset": "noise", "split": "train", "preprocessing": "none"}
WORDS |= {"network": "three pixels", "network_sha256": "cc"}


def three_pixels(images):
    flat = images.astype(jnp.float32).reshape(images.shape[0], -1)
    return Features(flat[:, :3] * 2.0, None, flat[:, 1:])


NETWORK = FeatureNetwork("three pixels", "cc", 3, 0, three_pixels, 5)


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh()


@pytest.mark.parametrize("parts", [[41], [5, 30, 6]])
def test_one_pass_over_the_images(parts, mesh):
    arriving = iter(np.split(IMAGES, np.cumsum(parts)[:-1]))  # only once
    made = make_reference(three_pixels, arriving, mesh, 16, keep_features=20, **WORDS)
    features = FLAT[:, :3] * 2
    np.testing.assert_allclose(made.pooled.mean, features.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(made.pooled.covariance, np.cov(features.T), rtol=1e-6)
    np.testing.assert_allclose(made.spatial.mean, FLAT[:, 1:].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(made.spatial.covariance, np.cov(FLAT[:, 1:].T), rtol=1e-6)
    for half, rows in zip(made.halves, (features[0::2], features[1::2]), strict=True):
        assert half.rows == len(rows)
        np.testing.assert_allclose(half.mean, moments_of(rows).mean, rtol=1e-15)
        np.testing.assert_allclose(half.scatter, moments_of(rows).scatter, rtol=1e-12)
    pixels = hashlib.sha256(b"uint8 [2, 3, 1]\n" + IMAGES.tobytes()).hexdigest()
    pixels = hashlib.sha256(pixels.encode()).hexdigest()
    assert made.provenance == Provenance(images=41, pixels_sha256=pixels, **WORDS)
    # 20 of the rows, in their order, and not the first ones
    numbers = np.sort(np.argsort(priorities(np.arange(41)))[:20])
    assert numbers[-1] > 20
    np.testing.assert_array_equal(made.features, features[numbers])


def test_few_images_and_no_features(mesh):
    def make(images, keep_features):
        return make_reference(three_pixels, [images], mesh, 8, keep_features=keep_features, **WORDS)

    assert make(IMAGES, 0).features is None
    np.testing.assert_array_equal(make(IMAGES, 99).features, FLAT[:, :3] * 2)
    with pytest.raises(EvaluationError, match="there are 1 images; statistics need at least two"):
        make(IMAGES[:1], 4)


def test_statistics_of_images_by_a_network_state_its_name_and_identity(mesh):
    made = reference_from_images(NETWORK, [IMAGES], mesh, 16, dataset="noise", keep_features=5)
    assert made.provenance[:3] == ("noise", "", 41)
    assert made.provenance[4:] == ("256 grey levels", "three pixels", "cc")
    assert made.features.shape == (5, 3)
    assert made.spatial.mean.shape == (5,)


# ---- The random choice


def rows_of(numbers):
    return ChosenRows(numbers, np.stack([numbers, -numbers], axis=1).astype(np.float32))


@pytest.mark.parametrize("most", [0, 1, 7, 100, 200])
def test_the_choice_is_the_same_from_parts_in_any_order(most):
    whole = chosen_rows(rows_of(np.arange(100)), most=most)
    assert len(whole.numbers) == min(most, 100)
    np.testing.assert_array_equal(whole.rows[:, 0], whole.numbers)
    mixed = np.random.default_rng(1).permutation(100)
    parts = [chosen_rows(rows_of(part), most=most) for part in np.split(mixed, [13, 14, 60])]
    merged = chosen_rows(chosen_rows(*parts[:2], most=most), *parts[2:], most=most)
    for ours, expected in zip(merged, whole, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_another_seed_makes_another_choice():
    ours, other = (chosen_rows(rows_of(np.arange(100)), most=10, seed=s).numbers for s in (0, 1))
    assert set(ours) != set(other)


def test_each_number_and_each_pair_is_chosen_as_often_as_by_chance():
    chosen = np.zeros((4000, 20), bool)
    for seed in range(len(chosen)):
        chosen[seed, np.argsort(priorities(np.arange(20), seed))[:5]] = True
    together = chosen.T.astype(float) @ chosen
    for count, probability in ((np.diagonal(together), 5 / 20), (together[0, 1:], 20 / 380)):
        error = np.sqrt(4000 * probability * (1 - probability))
        assert np.max(np.abs(count - 4000 * probability)) < 4.5 * error  # 20 numbers: p < 2e-4


def test_priorities_of_a_million_numbers_are_distinct_and_even():
    values = priorities(np.arange(1_000_000))
    assert len(np.unique(values)) == 1_000_000
    counts = np.histogram(values.astype(np.float64) / 2.0**64, 100, (0, 1))[0]
    statistic = np.sum((counts - 1e4) ** 2 / 1e4)
    assert 50 < statistic < 165  # chi squared of 99 degrees: beyond by chance once in 20,000


def test_what_is_no_choice():
    with pytest.raises(EvaluationError, match="most is -1; it has to be at least 0"):
        chosen_rows(rows_of(np.arange(3)), most=-1)
    with pytest.raises(EvaluationError, match="holds an image number twice"):
        chosen_rows(rows_of(np.arange(3)), rows_of(np.arange(2)), most=4)
