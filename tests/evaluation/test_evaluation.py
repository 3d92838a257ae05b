"""Baselines by hand, and pictures by pixel."""

import math

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import in_batches, read_digits
from ddpm_jax.evaluation import (
    histogram_bits_per_dim,
    image_grid,
    save_png,
    strip_times,
    uniform_bits_per_dim,
)
from ddpm_jax.evaluation.pictures import Curve, plot_per_time, plot_training


def test_uniform_code():
    assert uniform_bits_per_dim(17) == pytest.approx(4.08746, abs=1e-5)


def test_histogram_code_by_hand():
    train = np.array([0, 0, 1], np.uint8).reshape(3, 1, 1, 1)
    held_out = np.array([0, 2], np.uint8).reshape(2, 1, 1, 1)
    # Counts 2, 1, 0 with one added to each of three levels: 3/6 and 1/6.
    expected = (1.0 + math.log2(6.0)) / 2
    assert histogram_bits_per_dim([train], [held_out], levels=3) == pytest.approx(expected)


def test_histogram_code_of_one_pixel_does_not_see_another():
    train = np.array([[0, 1], [0, 1]], np.uint8).reshape(2, 1, 2, 1)
    # Both pixels: 3 of 4 for the level that was seen.
    assert histogram_bits_per_dim([train], [train], levels=2) == pytest.approx(-math.log2(3 / 4))


def test_baselines_of_the_digits():
    digits = read_digits()
    train, held_out = (
        np.concatenate([batch.images for batch in in_batches(source, 100)])
        for source in (digits.train, digits.held_out)
    )
    # In batches of any size, the last one smaller.
    bits, again = (
        histogram_bits_per_dim(
            np.array_split(train, parts), np.array_split(held_out, parts), levels=digits.levels
        )
        for parts in (1, 7)
    )
    assert bits == again
    # The same by brute force, pixel by pixel.
    total = 0.0
    for row in range(8):
        for column in range(8):
            counts = np.bincount(train[:, row, column, 0], minlength=17) + 1
            total -= np.log2(counts / counts.sum())[held_out[:, row, column, 0]].sum()
    assert bits == pytest.approx(total / held_out.size)
    assert bits == pytest.approx(2.43, abs=0.005)


def test_grid_places_every_image_and_stretches_levels():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((5, 8, 8, 1), np.uint8)
    grid = image_grid(images, levels=5, columns=2)
    cell = 64 + 2
    assert grid.shape == (3 * cell + 2, 2 * cell + 2, 1)
    for index, expected in enumerate([0, 64, 128, 191, 255]):
        row, column = divmod(index, 2)
        inside = grid[row * cell + 2 : row * cell + 66, column * cell + 2 : column * cell + 66]
        assert (inside == expected).all()


def test_grid_keeps_large_colour_images_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (1, 70, 90, 3), dtype=np.uint8)
    np.testing.assert_array_equal(image_grid(images, levels=256)[2:-2, 2:-2], images[0])


@pytest.mark.parametrize("num_steps", [1, 2, 11, 12, 13, 250])
def test_strip_times_are_distinct_and_hold_both_ends(num_steps):
    times = strip_times(num_steps, 12)
    assert len(set(times)) == len(times) == min(num_steps, 12)
    assert times[-1] == num_steps - 1
    assert times[0] == 0 or num_steps == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_png_comes_back(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (6, 7, channels), dtype=np.uint8)
    save_png(tmp_path / "new" / "a.png", image)
    with Image.open(tmp_path / "new" / "a.png") as read:
        np.testing.assert_array_equal(np.asarray(read).reshape(image.shape), image)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_curves_without_error_bars_are_plotted(tmp_path):
    nan = np.full(4, np.nan)
    some = np.array([np.nan, 0.1, np.nan, 0.1])
    curves = {"none": Curve(np.arange(1.0, 5.0), nan), "some": Curve(np.arange(2.0, 6.0), some)}
    plot_per_time(tmp_path / "a.png", curves, title="one image")
    lines = [{"step": 1, "loss": "text"}, {"step": 2, "loss": True}, {"step": 3, "loss": 0.5}]
    plot_training(tmp_path / "b.png", [*lines, {"step": 4, "loss": math.inf}], title="odd lines")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png"}


def test_a_number_with_an_error_has_a_panel_of_its_own(tmp_path):
    losses = [{"step": step, "loss": 1.0 / step} for step in (1, 2, 3)]
    numbers = [
        {"step": 2, "held_out_bits_per_dim": 2.0, "held_out_bits_per_dim_error": 0.1},
        {"step": 3, "held_out_bits_per_dim": 1.9, "held_out_bits_per_dim_error": None},
    ]
    sizes = []
    for name, lines in (("one", losses), ("two", losses + numbers), ("no", losses + numbers[1:])):
        plot_training(tmp_path / name, lines, title="digits")
        with Image.open(tmp_path / name) as picture:
            sizes.append(picture.size[1])
    assert sizes[0] == sizes[2] < sizes[1]
