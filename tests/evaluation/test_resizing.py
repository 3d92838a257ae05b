"""Resizes, beside sums by hand and beside PIL; beside PyTorch's in `test_peer_resizing.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from inceptions import bilinear_by_hand

from ddpm_jax.evaluation.resizing import (
    pil_bicubic,
    resize,
    resize_bytes,
    tensorflow_bilinear,
    torch_bicubic,
    torch_bilinear,
)

RNG = np.random.default_rng(0)
ALL = [tensorflow_bilinear, torch_bilinear, torch_bicubic, pil_bicubic]


def by_pil(image, side):
    """Each channel in PIL's mode of floats."""
    channels = [
        PIL.Image.fromarray(np.ascontiguousarray(image[..., i], np.float32)).resize(
            (side, side), PIL.Image.Resampling.BICUBIC
        )
        for i in range(image.shape[-1])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("shape", "side"),
    [((1, 1), 5), ((2, 3), 7), ((8, 32), 299), ((64, 40), 299), ((37, 12), 11), ((600, 5), 299)],
)
def test_tensorflow(shape, side):
    image = RNG.integers(0, 256, (*shape, 2)).astype(np.float64)
    resized = jax.jit(resize, static_argnums=(1, 2))
    ours = resized(jnp.asarray(image[None], jnp.float32), side, tensorflow_bilinear)[0]
    # Positions are float32, so that a share is off by two roundings of numbers up to n.
    atol = 255 * (1e-6 + max(shape) * 2.0**-23)
    np.testing.assert_allclose(ours, bilinear_by_hand(image, side), rtol=0, atol=atol)


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("shape", "side"), [((1, 1), 5), ((8, 32), 299), ((37, 12), 11), ((600, 5), 299)]
)
def test_pil_in_floats(shape, side):
    image = RNG.integers(0, 256, (*shape, 2)).astype(np.float32)
    ours = jax.jit(resize, static_argnums=(1, 2))(jnp.asarray(image[None]), side, pil_bicubic)[0]
    np.testing.assert_allclose(ours, by_pil(image, side), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("shape", "side"), [((1, 1), 5), ((8, 32), 224), ((64, 64), 224), ((37, 12), 11), ((5, 600), 9)]
)
def test_pil_in_bytes_to_the_bit(shape, side):
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    pillow = PIL.Image.fromarray(image)
    for size in ((side, shape[0]), (side, side)):  # which goes first depends on Pillow's version
        pillow = pillow.resize(size, PIL.Image.Resampling.BICUBIC)
    ours = jax.jit(resize_bytes, static_argnums=1)(jnp.asarray(image[None]), side)[0]
    np.testing.assert_array_equal(ours, np.asarray(pillow, np.float32))


@pytest.mark.parametrize("weights", ALL)
def test_the_same_size_changes_nothing(weights):
    np.testing.assert_array_equal(weights(7, 7), np.eye(7))


@pytest.mark.parametrize("weights", ALL)
@pytest.mark.parametrize(("given", "wanted"), [(1, 4), (5, 3), (8, 224), (300, 7)])
def test_a_constant_image_stays_constant(weights, given, wanted):
    np.testing.assert_allclose(weights(given, wanted).sum(axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("weights", [torch_bilinear, torch_bicubic, pil_bicubic])
def test_half_pixel_centres_are_symmetric(weights):
    table = weights(8, 30)
    np.testing.assert_allclose(table, table[::-1, ::-1], atol=1e-6)


def test_the_cubic_of_pil_keeps_a_straight_line_away_from_the_border():
    # Keys' cubic does so with a = -1/2 alone.
    inside = slice(8, -8)
    positions = (np.arange(40) + 0.5) / 4 - 0.5
    for weights, atol in ((pil_bicubic, 1e-12), (torch_bicubic, 0.1)):
        line = weights(10, 40) @ np.arange(10.0)
        np.testing.assert_allclose(line[inside], positions[inside], rtol=0, atol=atol)


def test_a_scale_moves_the_positions():
    # With the exact scale nothing changes; that of DINOv2 is a tenth of a pixel larger.
    np.testing.assert_allclose(torch_bicubic(37, 16, 16 / 37), torch_bicubic(37, 16), atol=1e-12)
    assert np.abs(torch_bicubic(37, 16, 16.1 / 37) - torch_bicubic(37, 16)).max() > 0.1
