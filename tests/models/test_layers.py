"""Layers of the networks against Flax's own, and arithmetic in float64."""

import functools
import itertools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from ddpm_jax import parallel
from ddpm_jax.models import layers
from ddpm_jax.models.layers import Conv, Dense, Dropout, GroupNorm

KEY = jax.random.key(3)
NEAR = {"rtol": 1e-5, "atol": 1e-5}  # of float32 sums of up to 84 terms


def normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


PAIRS = {
    "dense": (functools.partial(Dense, 5), functools.partial(nn.Dense, 5), (2, 3, 4)),
    "conv": (functools.partial(Conv, 5), functools.partial(nn.Conv, 5, (3, 3)), (2, 6, 4, 3)),
    "half": (
        functools.partial(Conv, 5, stride=2),
        functools.partial(nn.Conv, 5, (3, 3), strides=(2, 2)),
        (2, 6, 4, 3),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_parameters_and_outputs_are_those_of_flax(name):
    ours, theirs, shape = PAIRS[name]
    x = normal(0, *shape)
    params = jax.jit(theirs().init)(KEY, x)
    born = meta.unbox(jax.jit(ours().init)(KEY, x))
    jax.tree.map(np.testing.assert_array_equal, born, params)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    for dtype in (jnp.float32, jnp.bfloat16):
        output = jax.jit(ours(dtype=dtype).apply)(params, x)
        assert output.dtype == dtype
        np.testing.assert_array_equal(output, jax.jit(theirs(dtype=dtype).apply)(params, x))


@pytest.mark.parametrize("layer", [Dense(5), Conv(5), Conv(5, doubled=True), GroupNorm(3)])
def test_parameters_may_be_arrays_of_numpy(layer):
    x = jnp.asarray(normal(0, 2, 6, 4, 3))
    params = meta.unbox(layer.init(KEY, x))
    output = layer.apply(jax.tree.map(np.asarray, params), x)
    np.testing.assert_array_equal(output, layer.apply(params, x))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", PAIRS)
def test_gradients_are_those_of_flax_but_for_the_sum_of_a_bias(name, dtype):
    ours, theirs, shape = PAIRS[name]
    x = normal(0, *shape)
    params = jax.jit(theirs().init)(KEY, x)

    def slopes(layer):
        return jax.jit(jax.grad(lambda *given: jnp.sum(layer.apply(*given) ** 2), (0, 1)))(
            params, x
        )

    (own, to_x), (flax, flax_to_x) = slopes(ours(dtype=dtype)), slopes(theirs(dtype=dtype))
    np.testing.assert_array_equal(to_x, flax_to_x)
    np.testing.assert_array_equal(own["params"]["kernel"], flax["params"]["kernel"])
    if dtype == jnp.float32:
        np.testing.assert_array_equal(own["params"]["bias"], flax["params"]["bias"])


@pytest.mark.parametrize("name", PAIRS)
def test_the_gradient_of_a_bias_is_summed_in_float32(name):
    # Flax's sum of so many ones in bfloat16 ends at 2048, on a CPU.
    layer, shape = PAIRS[name][0](dtype=jnp.bfloat16), PAIRS[name][2]
    x = jnp.zeros((2057, *shape[1:]))
    params = meta.unbox(layer.init(KEY, x[:1]))
    terms = jax.eval_shape(layer.apply, params, x).size // 5
    slope = jax.jit(jax.grad(lambda p: jnp.sum(layer.apply(p, x).astype(jnp.float32))))(params)
    np.testing.assert_array_equal(slope["params"]["bias"], terms)


def slopes_of(layer, params, x, weights):
    """Gradients of a weighted sum of outputs, with respect to parameters and input."""

    def weighted(params, x):
        return jnp.sum(layer.apply({"params": params}, x).astype(jnp.float32) * weights)

    return jax.jit(jax.grad(weighted, (0, 1)))(params, x)


def same_padding(size, kernel, stride):
    """Output size and zeros in front: the output covers the input, the odd zero is at the end."""
    outputs = math.ceil(size / stride)
    return outputs, max((outputs - 1) * stride + kernel - size, 0) // 2


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 1), (2, 5)])
@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
def test_slopes_of_a_convolution_are_sums_over_positions(size, kernel_size, stride):
    x, kernel = normal(0, 2, *size, 3), normal(1, *kernel_size, 3, 4)
    (height, top), (width, left) = map(same_padding, size, kernel_size, (stride, stride))
    weights = normal(2, 2, height, width, 4)
    to_kernel, to_x = np.zeros(kernel.shape), np.zeros(x.shape)
    offsets = itertools.product(range(kernel_size[0]), range(kernel_size[1]))
    for (i, j), row, column in itertools.product(offsets, range(height), range(width)):
        y_, x_ = row * stride + i - top, column * stride + j - left
        if 0 <= y_ < size[0] and 0 <= x_ < size[1]:
            at = weights[:, row, column].astype(np.float64)
            to_kernel[i, j] += x[:, y_, x_].astype(np.float64).T @ at
            to_x[:, y_, x_] += at @ kernel[i, j].astype(np.float64).T
    start = {"kernel": kernel, "bias": np.zeros(4, np.float32)}
    params, slope = slopes_of(Conv(4, kernel_size, stride), start, x, weights)
    np.testing.assert_allclose(params["kernel"], to_kernel, **NEAR)
    np.testing.assert_allclose(params["bias"], weights.sum((0, 1, 2), np.float64), **NEAR)
    np.testing.assert_allclose(slope, to_x, **NEAR)


@pytest.mark.parametrize("size", [(1, 1), (4, 3)])
def test_a_convolution_of_doubled_pixels_is_that_of_the_larger_image(size):
    x, kernel = normal(0, 2, *size, 3), normal(1, 3, 3, 3, 4)
    weights = normal(2, 2, 2 * size[0], 2 * size[1], 4)
    start = {"kernel": kernel, "bias": normal(3, 4)}

    def derivatives(layer, image_of):
        def output(params, x):
            return layer.apply({"params": params}, image_of(x))

        y, to_weights = jax.vjp(output, start, x)
        return y, to_weights(weights), jax.jvp(output, (start, x), (start, x))[1]

    def larger(x):
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)

    ours, flax = Conv(4, doubled=True), nn.Conv(4, (3, 3))
    both = jax.jit(lambda: (derivatives(ours, jnp.asarray), derivatives(flax, larger)))
    doubled, plain = both()
    jax.tree.map(functools.partial(np.testing.assert_allclose, **NEAR), doubled, plain)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_large_batch_is_taken_in_parts_on_a_cpu_alone(stride, monkeypatch):
    x, layer = jnp.asarray(normal(0, 5, 6, 4, 3)), Conv(4, stride=stride)
    params = meta.unbox(layer.init(KEY, x))["params"]
    weights = normal(1, *jax.eval_shape(layer.apply, {"params": params}, x).shape)
    whole = slopes_of(layer, params, x, weights)
    of_one_image = 4 * weights[0].size
    monkeypatch.setattr(layers, "_CACHE", 2 * of_one_image)
    in_parts = slopes_of(layer, params, x, weights)
    jax.tree.map(functools.partial(np.testing.assert_allclose, **NEAR), in_parts, whole)

    def output(kernel):
        return layer.apply({"params": params | {"kernel": kernel}}, x)

    def slope(weights):
        return jax.vjp(output, params["kernel"])[1](weights)

    traced = jax.jit(slope).trace(jnp.asarray(weights))
    for platform, convolutions in (("cpu", 3), ("cuda", 1), ("tpu", 1)):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert program.count("stablehlo.convolution") == convolutions


def test_in_a_loop_a_cpu_has_the_convolution_that_it_has_outside():
    """XLA orders the axes of a convolution for its CPU kernels, but not within loops."""
    x, layer = jnp.asarray(normal(0, 2, 4, 6, 4, 3)), Conv(5)
    params = meta.unbox(layer.init(KEY, x[0]))

    def slope(x):
        return jax.grad(lambda params: jnp.sum(layer.apply(params, x) ** 2))(params)

    program = jax.jit(lambda x: jax.lax.map(slope, x)).lower(x).compile().as_text()
    axes = re.findall(r" convolution\(.*dim_labels=(\w+)", program)
    assert set(axes) == {"b01f_01io"}


def test_slopes_of_a_dense_layer_are_sums_over_rows():
    x, kernel, weights = normal(0, 2, 3, 4), normal(1, 4, 5), normal(2, 2, 3, 5)
    start = {"kernel": kernel, "bias": np.zeros(5, np.float32)}
    params, slope = slopes_of(Dense(5), start, x, weights)
    rows, slopes = x.reshape(6, 4).astype(np.float64), weights.reshape(6, 5).astype(np.float64)
    np.testing.assert_allclose(params["kernel"], rows.T @ slopes, **NEAR)
    np.testing.assert_allclose(params["bias"], slopes.sum(0), **NEAR)
    np.testing.assert_allclose(slope, (slopes @ kernel.T).reshape(x.shape), **NEAR)


@pytest.mark.parametrize("shape", [(2, 4, 6, 12), (3, 5, 8)])
def test_a_group_norm_is_that_of_flax_with_its_derivatives(shape):
    x, pushed = jnp.asarray(normal(0, *shape) + 2.0), jnp.asarray(normal(1, *shape))
    ours, flax = GroupNorm(4), nn.GroupNorm(4)
    params = meta.unbox(ours.init(KEY, x))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, flax.init(KEY, x))
    params = jax.tree.map(lambda leaf: leaf + normal(2, *leaf.shape), params)

    def along(layer):
        def loss(params, x):
            return jnp.sum(layer.apply(params, x) ** 3)

        output = layer.apply(params, x)
        slopes = jax.grad(loss, (0, 1))
        return output, *jax.jvp(slopes, (params, x), (params, pushed))

    for own, theirs in zip(*jax.jit(lambda: (along(ours), along(flax)))(), strict=True):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-3), own, theirs
        )


def test_a_group_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(normal(0, 2, 4, 4, 8), jnp.bfloat16)
    layer = GroupNorm(2)
    params = meta.unbox(layer.init(KEY, x))
    output = layer.apply(params, x)
    assert output.dtype == jnp.bfloat16
    expected = layer.apply(params, x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(output, expected)


class TwoDropouts(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x, keys):
        first = Dropout(self.rate, name="first")(x, keys)
        return first, Dropout(self.rate, name="second")(x, keys)


def drop(x, keys, rate=0.25):
    return jax.jit(TwoDropouts(rate).apply)({}, x, keys)


def test_dropout_keeps_its_share_and_the_mean():
    rate, places = 0.25, 2 * 16 * 4096
    first, second = drop(jnp.full((16, 4096), 3.0), jax.random.split(KEY, 16))
    assert set(np.unique(first)) == {0.0, 4.0}
    kept = np.mean([first != 0.0, second != 0.0])
    # One in 15,000 such draws is further off than four standard errors.
    assert abs(kept - (1 - rate)) < 4 * math.sqrt(rate * (1 - rate) / places)
    # Layers, examples and places draw apart: two masks agree in a share r^2 + (1 - r)^2 of places.
    agree = rate**2 + (1 - rate) ** 2
    halves = (first[:, :2048], first[:, 2048:])  # of the same random words
    for one, other in ((first, second), (first[1:], first[:-1]), halves):
        error = math.sqrt(agree * (1 - agree) / one.size)
        assert abs(np.mean((one == 0.0) == (other == 0.0)) - agree) < 4 * error


def test_a_mask_is_the_same_on_every_platform(monkeypatch):
    x, keys = jnp.ones((2, 5, 3)), jax.random.split(KEY, 2)
    on_cpu = drop(x, keys)

    def of_chips(*args, default, **_):
        return default(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", of_chips)
    jax.tree.map(np.testing.assert_array_equal, drop(x, keys), on_cpu)


def test_dropout_scales_by_the_rate_that_16_bits_give():
    first, _ = drop(jnp.ones((1, 64)), jax.random.split(KEY, 1), rate=0.1)
    dropped = round(0.1 * 2**16)
    np.testing.assert_allclose(first[first != 0.0], 2**16 / (2**16 - dropped), rtol=1e-6)


def test_a_mask_belongs_to_its_key_and_not_to_the_batch():
    x, keys = normal(0, 8, 3, 5), jax.random.split(KEY, 8)
    whole = drop(x, keys)
    for part in (slice(0, 1), slice(2, 5), slice(None, None, -1)):
        for mask, expected in zip(drop(x[part], keys[part]), whole, strict=True):
            np.testing.assert_array_equal(mask, expected[part])
    mesh = parallel.make_mesh(8)
    placed = parallel.split_by_batch(mesh)
    program = jax.jit(TwoDropouts(0.25).apply, in_shardings=(None, placed, placed))
    jax.tree.map(np.testing.assert_array_equal, program({}, x, keys), whole)
    compiled = program.lower({}, x, keys).compile().as_text()
    assert not any(name in compiled for name in ("all-gather", "all-reduce", "all-to-all"))


def test_without_keys_or_rate_dropout_does_nothing():
    x = normal(0, 2, 3)
    for output in (*drop(x, None), *drop(x, jax.random.split(KEY), rate=0.0)):
        np.testing.assert_array_equal(output, x)
