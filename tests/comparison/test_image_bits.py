"""Differences of bits per dimension image by image, and the files they are read from."""

import json

import numpy as np
import pytest

from ddpm_jax.comparison.image_bits import (
    BitsPerImage,
    pair,
    paired_difference,
    read_bits_per_image,
)
from ddpm_jax.errors import UserError
from ddpm_jax.npz import save_npz

ABOUT = {"dataset": "digits", "fingerprint": "ab", "preparation": "as it is", "held_out_images": 9}


def bits(values, numbers=None, **about):
    values = np.array(values, np.float64)
    numbers = np.arange(len(values)) if numbers is None else np.array(numbers)
    return BitsPerImage(values, numbers, {**ABOUT, **about})


def test_the_standard_error_of_a_difference_is_that_of_resampled_images():
    """Bootstrap of 4,000 draws at a fixed seed: its own standard error is 1.1 %."""
    random = np.random.default_rng(0)
    hard = random.normal(3.0, 0.25, 300)  # common to both runs
    first = hard + random.normal(0.02, 0.05, 300)
    second = hard + random.normal(0.0, 0.05, 300)
    paired = paired_difference(first, second)
    chosen = random.integers(300, size=(4000, 300))
    drawn = (first - second)[chosen].mean(axis=1)
    assert paired.standard_error == pytest.approx(drawn.std(), rel=0.05)
    assert paired.difference.low == pytest.approx(np.quantile(drawn, 0.025), abs=5e-4)
    assert paired.difference.high == pytest.approx(np.quantile(drawn, 0.975), abs=5e-4)
    apart = np.sqrt(first.var(ddof=1) / 300 + second.var(ddof=1) / 300)
    assert paired.standard_error < apart / 4


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    """Of 2,000 sets of 100 images 1,900 +- 10 should cover it; the bounds are 4 times that off."""
    random = np.random.default_rng(1)
    first, second = random.normal(size=(2, 2000, 100))
    covered = 0
    for a, b in zip(first + 0.3, second, strict=True):
        _, low, high, _ = paired_difference(a, b).difference
        covered += low <= 0.3 <= high
    assert 1860 <= covered <= 1940


def test_a_difference_counts_the_images_that_have_fewer_bits():
    paired = paired_difference(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 3.0, 4.0, 3.0]))
    assert paired.difference.value == -0.5
    assert (paired.better, paired.images) == (0.75, 4)


def test_one_image_has_no_interval():
    paired = paired_difference(np.array([1.0]), np.array([2.0]))
    assert paired.standard_error is paired.difference.low is None
    assert "one image" in paired.difference.note


def test_runs_are_paired_over_the_images_that_both_have_measured():
    paired = pair(bits([1, 2, 3], [0, 4, 8]), bits([7, 1, 2], [2, 4, 8]))
    assert (paired.difference.value, paired.images) == (1.0, 2)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (bits([1, 2], dataset="flowers"), "the data set is not the same ('digits', 'flowers')"),
        (bits([1, 2], fingerprint="cd"), "the content of the data set is not the same"),
        (bits([1, 2], held_out_images=8), "the number of held-out images is not the same (9, 8)"),
        (bits([1, 2], [5, 6]), "no image was measured by both"),
        (bits([1, np.nan]), "the bits/dim of some images are not finite"),
    ],
)
def test_other_images_are_not_paired(other, reason):
    assert pair(bits([3, 4]), other) == reason


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "bits.npz"
    values = {"bits_per_dim": np.array([1.0, 2.0]), "numbers": np.array([0, 5])}
    save_npz(path, values | {"about": np.array(json.dumps(ABOUT))})
    read = read_bits_per_image(path)
    assert read.about == ABOUT
    assert read.bits.tolist() == [1.0, 2.0]
    assert read.numbers.tolist() == [0, 5]


def test_damage_is_a_sentence(tmp_path):
    path = tmp_path / "bits.npz"
    values = {"bits_per_dim": np.array([1.0, 2.0]), "numbers": np.array([0, 5])}
    about = {"about": np.array(json.dumps(ABOUT))}
    np.savez(path, **values, **about)
    with pytest.raises(UserError, match=r"damaged: its SHA-256 differs; delete it, and"):
        read_bits_per_image(path)
    save_npz(path, values)
    with pytest.raises(UserError, match=r"cannot be read \(no 'about'\)"):
        read_bits_per_image(path)
    save_npz(path, values | about | {"numbers": np.array([5, 5])})
    with pytest.raises(UserError, match="is of another version"):
        read_bits_per_image(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        read_bits_per_image(path)
