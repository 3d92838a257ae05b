"""Networks under the transformations of JAX and on other meshes than the trainer's.

Whoever has a layer of Flax may differentiate it forward, map it, and put it on a mesh whose axes
are Explicit, as `jax.make_mesh` makes them. A derivative is compared with what it has to be by
another derivative, and a mesh with one device.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.sharding import NamedSharding, PartitionSpec
from marks import thorough_but

from ddpm_jax import flow_bits_per_dim, processes, samplers, schedules
from ddpm_jax.models import DiT, Preconditioned, UNet, init_params

SHAPE = (4, 4, 3)
BATCH = 8
X = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, *SHAPE)), jnp.float32)
T = jnp.arange(BATCH, dtype=jnp.int32)
LABELS = T % 4 - 1
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, BATCH)
CHAIN = schedules.linear_log_snr(BATCH)
NEAR = {jnp.float32: 1e-4, jnp.bfloat16: 0.1}  # relative to the largest of an array


DEEP, FLAT, PATCHES = (1, 2), (1,), ()
"""Multipliers of a U-Net with strides, whose derivatives are rules of our own in float32, and of
one without, which compiles in half the time; none are of a DiT with EDM's preconditioning."""


def network(dtype, multipliers):
    """A U-Net with attention in the middle alone, or the other."""
    if multipliers is PATCHES:
        how = {"dropout": 0.5, "dtype": dtype, "num_classes": 3, "remat": "attention"}
        return Preconditioned(DiT(width=8, depth=1, heads=2, **how), CHAIN)
    return UNet(
        channels=4,
        multipliers=multipliers,
        num_blocks=1,
        attention_resolutions=(),
        heads=2,
        dropout=0.5,
        norm_groups=2,
        dtype=dtype,
        num_classes=3,
        remat="convolutions",
    )


@functools.cache
def random_params(seed, multipliers=FLAT):
    model = network(jnp.float32, multipliers)
    born = jax.eval_shape(lambda key: init_params(model, key, SHAPE), KEY)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), meta.unbox(born)
    )


def loss_of(dtype, multipliers=FLAT):
    model = network(dtype, multipliers)

    def loss(params, x=X, t=T, labels=LABELS, keys=KEYS):
        return jnp.mean(model.apply(params, x, t, labels=labels, train=True, keys=keys) ** 2)

    return loss


@functools.cache
def slopes(dtype, multipliers=FLAT):
    return jax.jit(jax.grad(loss_of(dtype, multipliers)))(random_params(0, multipliers))


def dot(one, other):
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), one, other)))


def assert_near(found, expected, dtype):
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    near = functools.partial(np.testing.assert_allclose, atol=NEAR[dtype] * largest)
    jax.tree.map(near, found, expected)


networks = pytest.mark.parametrize(
    ("dtype", "multipliers"),
    thorough_but(
        [(jnp.float32, PATCHES)],
        [(jnp.float32, DEEP), (jnp.bfloat16, FLAT), *((d, PATCHES) for d in NEAR)],
    ),
)


@networks
def test_forward_and_reverse_mode_agree(dtype, multipliers):
    loss, direction = loss_of(dtype, multipliers), random_params(1, multipliers)

    @jax.jit
    def along(params, direction):
        pushed = jax.jvp(loss, (params,), (direction,))[1]
        return pushed, jax.linearize(loss, params)[1](direction)

    expected = dot(slopes(dtype, multipliers), direction)
    for found in along(random_params(0, multipliers), direction):
        np.testing.assert_allclose(found, expected, rtol=NEAR[dtype])


@pytest.mark.thorough
@networks
def test_the_hessian_is_symmetric(dtype, multipliers):
    params, one, other = (random_params(seed, multipliers) for seed in range(3))

    @jax.jit
    def second(direction):
        return jax.jvp(jax.grad(loss_of(dtype, multipliers)), (params,), (direction,))[1]

    forth, back = dot(second(one), other), dot(second(other), one)
    np.testing.assert_allclose(forth, back, rtol=NEAR[dtype])
    assert abs(forth) > 0.0


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.bfloat16])
def test_networks_are_mapped_over(dtype):
    several = jax.tree.map(lambda *leaves: jnp.stack(leaves), random_params(0), random_params(1))
    model = network(dtype, FLAT)
    mapped = jax.jit(jax.vmap(lambda params: model.apply(params, X, T)))(several)
    apply = jax.jit(model.apply)
    for seed in (0, 1):
        assert_near(mapped[seed], apply(random_params(seed), X, T), dtype)


@pytest.mark.thorough
def test_the_likelihood_of_the_flow_is_differentiated_through_the_default_network():
    process = processes.isotropic(schedules.linear_log_snr(4))

    times = samplers.time_grid(process, 4)

    @jax.jit
    def bits(x0):
        apply = functools.partial(network(jnp.float32, FLAT).apply, random_params(0))
        return flow_bits_per_dim(process, apply, KEY, x0, times, predicts="eps", levels=None)

    assert jax.tree.all(jax.tree.map(lambda leaf: np.isfinite(leaf).all(), bits(X[:2])))


@pytest.mark.thorough
@pytest.mark.parametrize(("dtype", "check_vma"), [(jnp.float32, True), (jnp.bfloat16, False)])
def test_the_gradient_through_shard_map_of_shared_parameters(dtype, check_vma):
    split, whole = PartitionSpec("data"), PartitionSpec()

    @functools.partial(
        jax.shard_map,
        mesh=jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(whole, split, split, split, split),
        out_specs=whole,
        check_vma=check_vma,
    )
    def of_all(params, *batch):
        return jax.lax.pmean(loss_of(dtype)(params, *batch), "data")

    found = jax.jit(jax.grad(of_all))(random_params(0), X, T, LABELS, KEYS)
    assert_near(found, slopes(dtype), dtype)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("dtype", "multipliers", "shape", "axes", "share", "split_params"),
    [
        (jnp.float32, FLAT, {"data": 4}, "data", "all", False),
        (jnp.bfloat16, FLAT, {"data": 4}, "data", "images", True),
        (jnp.float32, DEEP, {"data": 2, "fsdp": 2}, "data", "images", True),
        (jnp.float32, FLAT, {"data": 2, "fsdp": 2}, ("data", "fsdp"), "all", True),
        (jnp.float32, PATCHES, {"data": 2, "fsdp": 2}, "data", "images", True),
        (jnp.bfloat16, PATCHES, {"data": 4}, "data", "all", False),
    ],
)
def test_on_explicit_meshes_it_is_the_network_of_one_device(
    dtype, multipliers, shape, axes, share, split_params
):
    """Images, and all that goes with them, or the images alone are split; so are parameters."""
    names = tuple(shape)
    mesh = jax.make_mesh(tuple(shape.values()), names, devices=jax.devices()[:4])

    def sharding(leaf):
        divides = split_params and leaf.shape[-1] % mesh.shape[names[-1]] == 0
        spec = [*[None] * (leaf.ndim - 1), names[-1]] if divides else []
        return NamedSharding(mesh, PartitionSpec(*spec))

    params = random_params(0, multipliers)
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, sharding(leaf)), params)
    over = NamedSharding(mesh, PartitionSpec(axes))
    rest = over if share == "all" else NamedSharding(mesh, PartitionSpec())
    batch = [jax.device_put(X, over), *(jax.device_put(v, rest) for v in (T, LABELS, KEYS))]
    with jax.set_mesh(mesh):
        found = jax.jit(jax.grad(loss_of(dtype, multipliers)))(params, *batch)
    assert_near(jax.device_get(found), slopes(dtype, multipliers), dtype)
    for slope, param in zip(*map(jax.tree.leaves, (found, params)), strict=True):
        assert slope.sharding.is_equivalent_to(param.sharding, param.ndim)
