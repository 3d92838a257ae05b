"""Grey levels as numbers a network sees, and back; what images and labels are refused."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from imagery import one_sentence

from ddpm_jax.data import (
    Arrays,
    DataError,
    ImageSet,
    check_images,
    check_labels,
    to_levels,
    to_model_range,
)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_scaling_is_the_formula_and_its_inverse_is_exact(levels):
    grid = np.arange(levels, dtype=np.uint8)
    scaled = jax.jit(lambda u: to_model_range(u, levels))(jnp.asarray(grid))
    exact = np.array([float(2 * Fraction(u, levels - 1) - 1) for u in range(levels)])
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(np.float64(scaled), exact, rtol=2.0**-23, atol=0)
    np.testing.assert_array_equal(to_model_range(grid, levels), scaled)  # the same without jit
    assert (float(scaled[0]), float(scaled[-1])) == (-1.0, 1.0)
    np.testing.assert_array_equal(jax.jit(lambda x: to_levels(x, levels))(scaled), grid)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_to_levels_is_the_nearest_level_clipped(levels):
    x = np.random.default_rng(1).uniform(-1.3, 1.3, 5000)
    grid = 2.0 * np.arange(levels) / (levels - 1) - 1.0
    distance = np.abs(x[:, None] - grid)
    clear = np.diff(np.sort(distance, axis=1)[:, :2], axis=1)[:, 0] > 1e-6  # no ties in float32
    found = to_levels(jnp.asarray(x, jnp.float32), levels)
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(np.asarray(found)[clear], distance.argmin(axis=1)[clear])


@pytest.mark.usefixtures("without_annotation_checks")
def test_scaling_refuses_what_is_not_grey_levels():
    with pytest.raises(DataError) as caught:
        to_model_range(jnp.zeros((2, 2)), 256)
    one_sentence(caught, "images has dtype float32", "uint8", "0 to 255")
    with pytest.raises(DataError) as caught:
        to_model_range([1, 2], 256)
    one_sentence(caught, "images is a list", "array")
    for levels in (1, 257):
        with pytest.raises(DataError) as caught:
            to_model_range(np.zeros(2, np.uint8), levels)
        one_sentence(caught, f"levels is {levels}", "2 to 256")
    with pytest.raises(TypeError) as caught:
        to_levels(jnp.zeros(2, jnp.int32), 256)
    one_sentence(caught, "x has dtype int32", "floating point")


GOOD = np.zeros((3, 4, 5, 1), np.uint8)
ONE_TOO_BRIGHT = GOOD.copy()
ONE_TOO_BRIGHT[1, 2, 3, 0] = 17
LABELS = np.array([0, 1, 2])


@pytest.mark.usefixtures("without_annotation_checks")
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"train": GOOD.astype(np.float32)}, ["train has dtype float32", "uint8", "0 to 16"]),
        ({"train": GOOD.tolist()}, ["train is a list", "array"]),
        ({"held_out": GOOD[..., 0]}, ["held_out has shape (3, 4, 5)", "with 1 channel"]),
        ({"train": GOOD[:0]}, ["train has shape (0, 4, 5, 1)", "at least one"]),
        ({"train": np.repeat(GOOD, 4, axis=3)}, ["train has 4 channels", "1 (grey) or 3 (RGB)"]),
        ({"train": ONE_TOO_BRIGHT}, ["train[1, 2, 3, 0] is 17", "levels = 17", "0 to 16"]),
        ({"levels": 300}, ["levels is 300", "2 to 256"]),
        ({"held_out": GOOD[:, :3]}, ["held_out", "(3, 5, 1)", "(4, 5, 1)", "the same"]),
        ({"train_labels": LABELS * 1.0}, ["train's labels has dtype float64", "integers"]),
        ({"train_labels": LABELS[:2]}, ["train's labels has shape (2,)", "(3,)"]),
        ({"held_out_labels": 1 - LABELS}, ["held_out's labels[2] is -1", "0 or more"]),
        ({"train_labels": LABELS, "classes": ("a", "b")}, ["train has the label 2", "0 to 1"]),
        ({"crop": 5}, ["preparation.crop is 5", "4x5", "1 to 4"]),
        ({"crop": 0}, ["preparation.crop is 0", "1 to 4"]),
    ],
)
def test_an_image_set_is_checked_when_it_is_made(change, parts):
    with pytest.raises(DataError) as caught:
        made(**({"train": GOOD, "held_out": GOOD} | change))
    one_sentence(caught, *parts)


def made(train, held_out, train_labels=None, held_out_labels=None, levels=17, **others):
    return ImageSet(
        "grey",
        train=Arrays(train, train_labels, levels, "train"),
        held_out=Arrays(held_out, held_out_labels, levels, "held_out"),
        levels=levels,
        **others,
    )


def test_an_image_set_knows_its_shape_and_classes():
    grey = Arrays(GOOD, LABELS, 17)
    black = ImageSet("grey", train=grey, held_out=grey, levels=17, classes=("a", "b", "c"))
    assert (black.image_shape, black.num_classes) == ((4, 5, 1), 3)
    assert ImageSet("grey", train=grey, held_out=grey, levels=17).num_classes == 0


@pytest.mark.usefixtures("without_annotation_checks")
def test_lone_arrays_are_checked_by_name():
    for check, arguments, part in (
        (check_images, ("pictures", GOOD * 1.0), "pictures has dtype float64"),
        (check_labels, ("digits", LABELS[:, None], 3), "digits has shape (3, 1)"),
        (check_labels, ("digits", [0, 1, 2], 3), "digits is a list"),
    ):
        with pytest.raises(DataError) as caught:
            check(*arguments)
        one_sentence(caught, part)
