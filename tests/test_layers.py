"""Layers of the networks against Flax's own, arithmetic in float64, and what a sum loses."""

import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.sharding import PartitionSpec

from ddpm_jax import parallel
from ddpm_jax.models import UNet, init_params
from ddpm_jax.models.layers import Conv, Dense, Dropout

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
    for dtype, gradients in itertools.product(("float32", "bfloat16"), ("float32", "compute")):
        dtype = jnp.dtype(dtype)
        output = jax.jit(ours(dtype=dtype, gradients=gradients).apply)(params, x)
        assert output.dtype == dtype
        np.testing.assert_array_equal(output, jax.jit(theirs(dtype=dtype).apply)(params, x))


@pytest.mark.parametrize("name", PAIRS)
def test_left_to_jax_gradients_are_those_of_flax(name):
    ours, theirs, shape = PAIRS[name]
    x, dtype = normal(0, *shape), jnp.bfloat16
    params = jax.jit(theirs().init)(KEY, x)

    def slopes(layer):
        return jax.jit(jax.grad(lambda *given: jnp.sum(layer.apply(*given) ** 2), (0, 1)))(
            params, x
        )

    jax.tree.map(
        np.testing.assert_array_equal,
        slopes(ours(dtype=dtype, gradients="compute")),
        slopes(theirs(dtype=dtype)),
    )


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


def test_slopes_of_a_dense_layer_are_sums_over_rows():
    x, kernel, weights = normal(0, 2, 3, 4), normal(1, 4, 5), normal(2, 2, 3, 5)
    start = {"kernel": kernel, "bias": np.zeros(5, np.float32)}
    params, slope = slopes_of(Dense(5), start, x, weights)
    rows, slopes = x.reshape(6, 4).astype(np.float64), weights.reshape(6, 5).astype(np.float64)
    np.testing.assert_allclose(params["kernel"], rows.T @ slopes, **NEAR)
    np.testing.assert_allclose(params["bias"], slopes.sum(0), **NEAR)
    np.testing.assert_allclose(slope, (slopes @ kernel.T).reshape(x.shape), **NEAR)


@pytest.mark.parametrize("name", ["dense", "conv"])
@pytest.mark.parametrize("form", ["jit", "shard_map"])
def test_slopes_are_summed_in_float32_over_examples_and_devices(name, form):
    # 8 x 257 ones: each device's sum and the whole have more digits than bfloat16 holds.
    devices, rows, mesh = 8, 257, parallel.make_mesh(8)
    layer = Dense(1) if name == "dense" else Conv(1, (1, 1))
    shape = (1,) if name == "dense" else (1, 1, 1)
    x = jnp.ones((devices * rows, *shape))
    ones = jax.tree.map(jnp.ones_like, meta.unbox(layer.init(KEY, x[:1])))
    slope = {}
    for gradients in ("float32", "compute"):
        clone = layer.clone(dtype=jnp.bfloat16, gradients=gradients)

        def summed(params, x, clone=clone):
            return jnp.sum(clone.apply(params, x).astype(jnp.float32))

        def mapped(params, x, summed=summed):
            varying = jax.lax.pcast(params, "data", to="varying")
            return jax.lax.psum(jax.grad(summed)(varying, x), "data")

        step, (whole, split) = jax.grad(summed), (PartitionSpec(), PartitionSpec("data"))
        if form == "shard_map":
            step = jax.shard_map(mapped, mesh=mesh, in_specs=(whole, split), out_specs=whole)
        placed = (parallel.replicated(mesh), parallel.split_by_batch(mesh))
        slope[gradients] = jax.jit(step, in_shardings=placed)(ones, x)["params"]
    assert slope["float32"]["kernel"].item() == devices * rows
    assert slope["float32"]["bias"].item() == devices * rows
    if form == "jit":  # a mapped sum is of float32 either way
        assert slope["compute"]["kernel"].item() != devices * rows


def made_by(jaxpr, variable):
    return next(eqn for eqn in jaxpr.eqns if variable in eqn.outvars)


@pytest.mark.parametrize("gradients", ["float32", "compute"])
def test_no_weight_gradient_of_a_bfloat16_network_was_ever_bfloat16(gradients):
    """What adds up devices comes after the last operation; if that is a cast, it adds bfloat16."""
    model = UNet(8, (1, 2), 1, (4,), 0.0, 4, jnp.bfloat16, gradients=gradients)
    params = meta.unbox(jax.eval_shape(lambda key: init_params(model, key, (8, 8, 3)), KEY))

    def loss(params):
        return jnp.sum(model.apply(params, jnp.ones((2, 8, 8, 3)), jnp.arange(2)))

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params).jaxpr
    cast = sum(
        made_by(jaxpr, variable).primitive.name == "convert_element_type"
        and made_by(jaxpr, variable).invars[0].aval.dtype == jnp.bfloat16
        for variable in jaxpr.outvars
    )
    norms = sum("norm" in str(path) for path, _ in jax.tree.leaves_with_path(params))
    assert cast == (0 if gradients == "float32" else len(jaxpr.outvars) - norms)


def test_forward_mode_is_there_if_gradients_are_left_to_jax():
    x, params = normal(0, 3, 4), meta.unbox(Dense(5).init(KEY, jnp.zeros((1, 4))))
    _, pushed = jax.jvp(lambda x: Dense(5, gradients="compute").apply(params, x), (x,), (x,))
    np.testing.assert_allclose(pushed, x @ params["params"]["kernel"], rtol=1e-5)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: Dense(5).apply(params, x), (x,), (x,))


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
    # Layers and examples draw apart: two masks agree in a share r^2 + (1 - r)^2 of places.
    agree = rate**2 + (1 - rate) ** 2
    for one, other in ((first, second), (first[1:], first[:-1])):
        error = math.sqrt(agree * (1 - agree) / one.size)
        assert abs(np.mean((one == 0.0) == (other == 0.0)) - agree) < 4 * error


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
