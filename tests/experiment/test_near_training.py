"""The training images nearest to samples, pixel by pixel."""

import dataclasses

import numpy as np
import pytest

from ddpm_jax.data import Arrays, ImageSet
from ddpm_jax.experiment import near_training


def noise(n, seed, top=17):
    return np.random.default_rng(seed).integers(0, top, (n, 4, 4, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def images():
    return ImageSet("noise", Arrays(noise(90, 0), levels=17), Arrays(noise(40, 1), levels=17), 17)


def test_nearest_training_images_by_brute_force(images, monkeypatch):
    monkeypatch.setattr(near_training, "_READ", 7)  # in batches that cut the set anywhere
    samples = noise(12, 3)
    found = near_training.near_training_images(images, samples, shown=4, neighbours=3)
    train = images.train.images
    difference = samples[:, None].astype(float) - train[None]
    squares = np.square(difference).mean(axis=(2, 3, 4))
    order = np.argsort(squares, axis=1, kind="stable")[:, :3]
    np.testing.assert_allclose(found.samples, np.sqrt(squares.min(axis=1)), rtol=1e-12)
    np.testing.assert_array_equal(found.images[:, 0], samples[:4])
    np.testing.assert_array_equal(found.images[:, 1:], train[order[:4]])


def test_there_are_no_more_neighbours_than_training_images(images):
    few = dataclasses.replace(images, train=Arrays(noise(2, 0), levels=17))
    found = near_training.near_training_images(few, noise(3, 3), shown=3, neighbours=5)
    assert found.images.shape == (3, 1 + 2, 4, 4, 1)


def test_memorization_shows(images):
    samples = images.train.images[5:30]
    known = near_training.near_training_images(images, samples, shown=2, neighbours=1)
    assert not known.samples.any()
    assert known.held_out.min() > 1.0
    np.testing.assert_array_equal(known.images[:, 0], known.images[:, 1])


def test_held_out_images_are_spread_over_a_sorted_set(images, monkeypatch):
    monkeypatch.setattr(near_training, "COMPARED", 3)
    train = images.train.images
    sorted_set = dataclasses.replace(
        images, held_out=Arrays(np.concatenate([train[:9], noise(9, 5)]), levels=17)
    )
    found = near_training.near_training_images(sorted_set, noise(2, 3), shown=1, neighbours=1)
    assert len(found.held_out) == 3
    assert found.held_out[0] == 0.0 < found.held_out[-1]
