"""Floating-point operations of programs, beside XLA's count and counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax.plan import flops


def xla_flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("holes", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((3, 0), (1, 2))])
def test_flops_of_convolutions_are_xlas(stride, dilation, holes, padding):
    if holes == 2 and isinstance(padding, str):
        padding = ((1, 1), (1, 1))

    def conv(image, kernel):
        return jax.lax.conv_general_dilated(
            image,
            kernel,
            (stride, stride),
            padding,
            lhs_dilation=(holes, holes),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    arrays = (
        jax.ShapeDtypeStruct((2, 11, 9, 4), jnp.float32),
        jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.float32),
    )
    assert flops.count_flops(conv, *arrays) == xla_flops(conv, *arrays)


def test_flops_of_a_grouped_convolution_are_xlas():
    def conv(image, kernel):
        return jax.lax.conv_general_dilated(
            image,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    arrays = (
        jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32),
        jax.ShapeDtypeStruct((3, 3, 2, 6), jnp.float32),
    )
    assert flops.count_flops(conv, *arrays) == xla_flops(conv, *arrays)


def test_flops_of_loops_branches_and_what_is_done_again():
    w, x = jnp.ones((8, 8)), jnp.ones((4, 8))
    one = 2 * 4 * 8 * 8

    def scanned(w, x):
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, None, length=7)[0]

    assert flops.count_flops(scanned, w, x) == 7 * one
    assert flops.count_flops(jax.jit(scanned), w, x) == 7 * one
    loss = lambda w, x: jnp.sum(jnp.sin(jnp.sin(x @ w) @ w))  # noqa: E731
    # Two products forward; backward one for w and one for x each, but for the x that is given.
    assert flops.count_flops(jax.grad(loss), w, x) == 5 * one
    # The last product is not needed again, the first one is.
    again = flops.count_flops(jax.grad(jax.checkpoint(loss)), w, x)
    assert again in (6 * one, 7 * one)
    branches = lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)  # noqa: E731
    assert flops.count_flops(branches, w, x) == 2 * one


def test_flops_under_shard_map_are_those_of_all_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    whole = jax.sharding.PartitionSpec()
    mapped = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(spec, whole), out_specs=spec)
    arrays = (jax.ShapeDtypeStruct((16, 8), "float32"), jax.ShapeDtypeStruct((8, 8), "float32"))
    assert flops.count_flops(mapped, *arrays) == 2 * 16 * 8 * 8
