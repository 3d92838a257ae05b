"""Resizes beside the programs that define them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fid_peers import import_peer
from peers import torch

from ddpm_jax.evaluation.inception import PREPARATIONS
from ddpm_jax.evaluation.resizing import (
    pil_bicubic,
    resize,
    tensorflow_bilinear,
    torch_bicubic,
    torch_bilinear,
)

interpolate = functools.partial(torch.nn.functional.interpolate, align_corners=False)
SHAPES = [(8, 8), (32, 32), (64, 48), (299, 299), (400, 30)]


def by_torch_fidelity(images, side):
    module = import_peer("torch_fidelity.interpolate_compat_tensorflow")
    return module.interpolate_bilinear_2d_like_tensorflow1x(
        images, size=(side, side), align_corners=False
    )


def bilinear(images, side):
    return interpolate(images, (side, side), mode="bilinear")


def bicubic(images, side):
    return interpolate(images, (side, side), mode="bicubic")


def antialiased(images, side):
    return interpolate(images, (side, side), mode="bicubic", antialias=True)


def pictures(*shape):
    return np.random.default_rng(0).integers(0, 256, (2, *shape, 3)).astype(np.float32)


def as_torch(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("weights", "theirs"), [(tensorflow_bilinear, by_torch_fidelity), (torch_bilinear, bilinear)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_bilinear(weights, theirs, shape):
    images = pictures(*shape)
    ours = jax.jit(resize, static_argnums=(1, 2))(jnp.asarray(images), 299, weights)
    expected = theirs(as_torch(images), 299).permute(0, 2, 3, 1).numpy()
    difference = np.abs(ours - expected).max()
    print(f"{difference:.1e} of 255")
    assert difference < 1e-3  # a position near 64, rounded to float32, is off by 4e-6


@pytest.mark.parametrize(
    ("weights", "theirs"), [(torch_bicubic, bicubic), (pil_bicubic, antialiased)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_bicubic_in_float64(weights, theirs, shape):
    # In float32 PyTorch rounds positions, which moves noise of 400 pixels by 5e-3 of 255.
    images = pictures(*shape).astype(np.float64)
    rows, columns = (weights(n, 299) for n in shape)
    ours = np.einsum("yh,bhwc->bywc", rows, images)
    ours = np.einsum("xw,bywc->byxc", columns, ours)
    expected = theirs(as_torch(images), 299).permute(0, 2, 3, 1).numpy()
    difference = np.abs(ours - expected).max()
    print(f"{difference:.1e} of 255")
    assert difference < 1e-9


def test_the_scale_of_dinov2():
    # DINOv2's positions: 37 x 37 to 16 x 16 by a scale that is a little larger.
    table = np.random.default_rng(0).normal(size=(1, 37, 37, 4))
    theirs = torch.nn.functional.interpolate(
        as_torch(table), scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic"
    )
    weights = torch_bicubic(37, 16, 16.1 / 37)
    ours = np.einsum("yh,xw,bhwc->byxc", weights, weights, table)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(32, 32), (400, 30)])
def test_preparation_of_pytorch_fid(shape):
    images = pictures(*shape)
    ours = jax.jit(PREPARATIONS["pytorch-fid"].prepare)(jnp.asarray(images))
    expected = 2 * bilinear(as_torch(images) / 255, 299) - 1
    assert np.abs(ours - expected.permute(0, 2, 3, 1).numpy()).max() < 1e-5


@pytest.mark.parametrize("shape", [(32, 32), (400, 30)])
def test_preparation_of_clean_fid(shape):
    resizer = pytest.importorskip("cleanfid.resize").build_resizer("clean")
    images = pictures(*shape)
    ours = jax.jit(PREPARATIONS["clean-fid"].prepare)(jnp.asarray(images))
    expected = np.stack([(resizer(image) - 128) / 128 for image in images])
    assert np.abs(ours - expected).max() < 1e-5
