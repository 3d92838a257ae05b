"""Networks: their size, their start, their precision, and what their output depends on."""

import functools
import itertools
import math
import typing

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from marks import thorough_but

from ddpm_jax.models import DiT, Remat, TokenRemat, UNet, init_params, layer_table
from ddpm_jax.models.blocks import SelfAttention, sinusoidal_embedding

SMALL = {
    "channels": 8,
    "multipliers": (1, 2),
    "num_blocks": 1,
    "attention_resolutions": (4,),
    "norm_groups": 4,
    "dropout": 0.5,
}
NETWORKS = {
    "unet": functools.partial(UNet, **SMALL),
    "dit": functools.partial(DiT, width=8, depth=2, heads=2, dropout=0.5),
}
FAST = "rbg"  # the random generator that compiles in a third of the time
X, T = jax.random.normal(jax.random.key(7), (2, 8, 8, 3)), jnp.array([3, 900])


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def shapes(model, size):
    born = jax.eval_shape(lambda key: init_params(model, key, (size, size, 3)), jax.random.key(0))
    return meta.unbox(born)["params"]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """Makes a network with more options."""
    return NETWORKS[request.param]


@pytest.fixture(scope="module")
def alive(network):
    """Parameters as training might leave them: none is zero."""
    rng = np.random.default_rng(0)
    return {
        "params": jax.tree.map_with_path(
            lambda path, leaf: jnp.asarray(
                (path[-1].key == "scale") + 0.1 * rng.normal(size=leaf.shape), jnp.float32
            ),
            shapes(network(), 8),
        )
    }


@pytest.fixture(scope="module")
def apply(network):
    return jax.jit(network().apply)


def test_the_paper_s_network_has_the_paper_s_size():
    assert count(shapes(UNet(), 32)) == 35_746_307


@pytest.mark.parametrize("name", NETWORKS)
def test_it_starts_at_zero(name):
    less = {"unet": {"multipliers": (1,)}, "dit": {"depth": 1}}
    start = jax.jit(NETWORKS[name](**less[name]).init_with_output)
    output, variables = start(jax.random.key(0, impl=FAST), X, T)
    np.testing.assert_array_equal(output, np.zeros_like(X))
    # It is the last layer that is silent, not all of them.
    assert jnp.abs(meta.unbox(variables)["params"]["input"]["kernel"]).max() > 0.1


def test_a_learned_variance_is_a_second_image():
    model = UNet(**SMALL, learned_variance=True)
    prediction, interpolation = jax.eval_shape(model.apply, {"params": shapes(model, 8)}, X, T)
    assert prediction.shape == interpolation.shape == X.shape
    more = count(shapes(model, 8)) - count(shapes(UNet(**SMALL), 8))
    assert more == (9 * SMALL["channels"] + 1) * X.shape[-1]
    assert layer_table(model, X.shape[1:])[-1].output == X.shape[1:]


def test_t_matters(apply, alive):
    first, other = apply(alive, X, T), apply(alive, X, T + 1)
    assert (np.abs(first - other).max(axis=(1, 2, 3)) > 1e-4).all()


def test_an_output_depends_on_its_own_input_alone(apply, alive):
    whole = apply(alive, X, T)
    others_changed = apply(alive, X.at[1].set(100.0), T.at[1].set(0))
    np.testing.assert_allclose(whole[0], others_changed[0], atol=1e-5)
    assert np.abs(whole[1] - others_changed[1]).max() > 0.1
    swapped = apply(alive, X[::-1], T[::-1])
    np.testing.assert_allclose(swapped[::-1], whole, atol=1e-5)


def test_every_parameter_learns_and_every_pixel_matters(apply, alive):
    def far_corner(variables, x):
        return apply(variables, x, T)[0, -1, -1].sum()

    slopes, pixels = jax.grad(far_corner, argnums=(0, 1))(alive, X)
    assert (np.abs(pixels[0]) > 0.0).all()
    for path, slope in jax.tree.leaves_with_path(slopes):
        # A softmax does not see what shifts all its logits alike.
        if [part.key for part in path[-2:]] == ["key", "bias"]:
            continue
        assert np.abs(slope).max() > 1e-6, path


def test_bfloat16_is_inside_only_and_close(network, apply, alive):
    model = network(dtype=jnp.bfloat16)
    born = jax.eval_shape(model.init, jax.random.key(0), X, T)
    assert {leaf.dtype for leaf in jax.tree.leaves(born)} == {jnp.dtype("float32")}
    exact, rounded = apply(alive, X, T), jax.jit(model.apply)(alive, X, T)
    assert rounded.dtype == jnp.float32
    # bfloat16 rounds by 2^-9; some 20 layers each add a part of that.
    error = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
    assert 0.0 < error < 20 * 2**-9


def test_dropout_is_for_training(network, apply, alive):
    train = jax.jit(lambda key: network().apply(alive, X, T, train=True, rngs={"dropout": key}))
    first, again, other = (train(jax.random.key(seed, impl=FAST)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - apply(alive, X, T)).max() > 1e-3
    with pytest.raises(flax.errors.InvalidRngError):
        network().apply(alive, X, T, train=True)


def test_dropout_by_keys_is_each_example_s_own(network, apply, alive):
    @jax.jit
    def train(x, t, keys):
        return network().apply(alive, x, t, train=True, keys=keys)

    keys = jax.random.split(jax.random.key(0), 2)
    whole, swapped = train(X, T, keys), train(X[::-1], T[::-1], keys[::-1])
    np.testing.assert_allclose(swapped[::-1], whole, atol=1e-5)
    same = train(X, T, keys[jnp.array([0, 0])])
    np.testing.assert_allclose(same[0], whole[0], atol=1e-5)
    assert np.abs(same[1] - whole[1]).max() > 1e-3
    # Keys are for training; without it there is nothing to draw.
    quiet = jax.jit(network().apply)(alive, X, T, keys=keys)
    np.testing.assert_array_equal(quiet, apply(alive, X, T))


AXES = {
    4: ("kernel_height", "kernel_width", "in", "out"),
    2: ("in", "out"),
    1: ("out",),
}


def test_every_parameter_s_axes_have_names(network):
    model = network(num_classes=3)
    boxed = jax.eval_shape(lambda key: init_params(model, key, X.shape[1:]), jax.random.key(0))
    boxes = jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata))
    assert len(boxes) == len(jax.tree.leaves(shapes(model, 8)))
    for box in boxes:
        assert box.names == AXES[len(box.value.shape)]


@pytest.fixture(scope="module")
def learned():
    """Parameters, loss and gradient."""
    keys = jax.random.split(jax.random.key(0, impl=FAST), 2)

    @functools.cache
    def compiled(name, remat):
        less = {"unet": {"multipliers": (1,), "attention_resolutions": ()}, "dit": {"depth": 1}}
        model = NETWORKS[name](**less[name], remat=remat)

        def loss(params):
            return jnp.mean((model.apply(params, X, T, train=True, keys=keys) - X) ** 2)

        born = jax.jit(lambda key: meta.unbox(init_params(model, key, X.shape[1:])))
        params = born(jax.random.key(1, impl=FAST))
        moved = jax.tree.map(lambda leaf: leaf + 0.1, params)
        return params, jax.jit(jax.value_and_grad(loss))(moved)

    return compiled


REMATS = {"unet": typing.get_args(Remat), "dit": typing.get_args(TokenRemat)}


@pytest.mark.parametrize(
    ("name", "remat"),
    thorough_but(
        [("unet", "blocks"), ("dit", "blocks")],
        [(name, remat) for name, values in REMATS.items() for remat in values[1:]],
    ),
)
def test_what_is_computed_again_is_the_same(learned, name, remat):
    params, (loss, slopes) = learned(name, "none")
    again, (loss_again, slopes_again) = learned(name, remat)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    np.testing.assert_allclose(loss_again, loss, rtol=1e-6)
    largest = max(float(jnp.abs(slope).max()) for slope in jax.tree.leaves(slopes))
    # Other fusions round other sums: bits are not promised.
    near = {"rtol": 1e-4, "atol": 1e-6 * largest}
    jax.tree.map(functools.partial(np.testing.assert_allclose, **near), slopes_again, slopes)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_computed_again_is_not_kept(name):
    def kept(remat):
        """Bytes that the forward pass leaves to the backward pass, parameters too."""
        model, keys = NETWORKS[name](remat=remat), jax.random.split(jax.random.key(0), 2)

        def back(variables):
            return jax.vjp(lambda v: model.apply(v, X, T, train=True, keys=keys), variables)[1]

        left = jax.tree.leaves(jax.eval_shape(back, {"params": shapes(model, 8)}))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in left)

    # What XLA makes of it differs: on CPUs, some versions keep what JAX would compute again.
    every = [kept(remat) for remat in REMATS[name]]
    assert every == sorted(set(every), reverse=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_computes_again_is_shown_as_the_same_table(name):
    less = {"unet": {"multipliers": (1,)}, "dit": {"depth": 1}}
    plain, again = (
        layer_table(NETWORKS[name](**less[name], remat=remat), X.shape[1:])
        for remat in ("none", "blocks")
    )
    assert again == plain


@pytest.mark.usefixtures("without_annotation_checks")
def test_a_choice_that_is_none_is_refused():
    with pytest.raises(ValueError, match="remat is 'everything'"):
        shapes(UNet(**SMALL, remat="everything"), 8)


@pytest.mark.parametrize(
    ("resolutions", "blocks"),
    [
        ((), set()),
        ((4,), {"down_1_0", "up_1_0", "up_1_1"}),
        ((8,), {"down_0_0", "up_0_0", "up_0_1"}),
        ((4, 8), {"down_0_0", "up_0_0", "up_0_1", "down_1_0", "up_1_0", "up_1_1"}),
        ((16,), set()),
    ],
)
def test_attention_is_where_it_is_asked_for_and_in_the_middle(resolutions, blocks):
    params = shapes(UNet(**(SMALL | {"attention_resolutions": resolutions})), 8)
    found = {name for name in params if "attention" in name}
    assert found == {f"{name}_attention" for name in blocks | {"middle"}}


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_each_head_attends_by_its_own_channels(heads):
    block = SelfAttention(2, 1e-6, jnp.float32, heads, "xla")
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)
    params = meta.unbox(jax.eval_shape(block.init, jax.random.key(0), x))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)

    # In float64, one head and one example after the other.
    wide = jax.tree.map(np.float64, params)
    groups = x.astype(np.float64).reshape(2, 12, 2, 4)
    mean, variance = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    normed = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(2, 12, 8)
    h = normed * wide["norm"]["scale"] + wide["norm"]["bias"]
    query, key, value = (
        h @ wide[name]["kernel"] + wide[name]["bias"] for name in ("query", "key", "value")
    )
    width = 8 // heads
    for example, head in itertools.product(range(2), range(heads)):
        own = (example, slice(None), slice(head * width, (head + 1) * width))
        logits = query[own] @ key[own].T / math.sqrt(width)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        h[own] = weights / weights.sum(1, keepdims=True) @ value[own]
    expected = x + (h @ wide["output"]["kernel"] + wide["output"]["bias"]).reshape(x.shape)
    output = jax.jit(block.apply)({"params": params}, x)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def test_the_embedding_of_time():
    t = np.array([0, 1, 10, 999])
    frequencies = 10_000.0 ** -(np.arange(4) / 3)
    angles = t[:, None] * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    # float32 knows an angle of 999 to 3e-5.
    np.testing.assert_allclose(sinusoidal_embedding(jnp.array(t), 8), expected, atol=1e-4)
