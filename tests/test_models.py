"""The U-Net: its size, its start, its precision, and what its output depends on."""

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import UNet, layer_table
from ddpm_jax.models.unet import sinusoidal_embedding

SMALL = {
    "channels": 8,
    "multipliers": (1, 2),
    "num_blocks": 1,
    "attention_resolutions": (4,),
    "norm_groups": 4,
    "dropout": 0.5,
}
FAST = "rbg"  # the random generator that compiles in a third of the time
X, T = jax.random.normal(jax.random.key(7), (2, 8, 8, 3)), jnp.array([3, 900])


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def shapes(model, size):
    return jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)), jnp.zeros(1, jnp.int32)
    )["params"]


@pytest.fixture(scope="module")
def alive():
    """Parameters as training might leave them: none is zero."""
    rng = np.random.default_rng(0)
    return {
        "params": jax.tree.map_with_path(
            lambda path, leaf: jnp.asarray(
                (path[-1].key == "scale") + 0.1 * rng.normal(size=leaf.shape), jnp.float32
            ),
            shapes(UNet(**SMALL), 8),
        )
    }


@pytest.fixture(scope="module")
def apply():
    return jax.jit(UNet(**SMALL).apply)


def test_the_paper_s_network_has_the_paper_s_size():
    assert count(shapes(UNet(), 32)) == 35_746_307


def test_it_starts_at_zero():
    start = jax.jit(UNet(**(SMALL | {"multipliers": (1,)})).init_with_output)
    output, variables = start(jax.random.key(0, impl=FAST), X, T)
    np.testing.assert_array_equal(output, np.zeros_like(X))
    # It is the last layer that is silent, not all of them.
    assert jnp.abs(variables["params"]["input"]["kernel"]).max() > 0.1


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


def test_bfloat16_is_inside_only_and_close(apply, alive):
    model = UNet(**SMALL, dtype=jnp.bfloat16)
    born = jax.eval_shape(model.init, jax.random.key(0), X, T)
    assert {leaf.dtype for leaf in jax.tree.leaves(born)} == {jnp.dtype("float32")}
    exact, rounded = apply(alive, X, T), jax.jit(model.apply)(alive, X, T)
    assert rounded.dtype == jnp.float32
    # bfloat16 rounds by 2^-9; some 20 layers each add a part of that.
    error = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
    assert 0.0 < error < 20 * 2**-9


def test_dropout_is_for_training(apply, alive):
    train = jax.jit(lambda key: UNet(**SMALL).apply(alive, X, T, train=True, rngs={"dropout": key}))
    first, again, other = (train(jax.random.key(seed, impl=FAST)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - apply(alive, X, T)).max() > 1e-3
    with pytest.raises(flax.errors.InvalidRngError):
        UNet(**SMALL).apply(alive, X, T, train=True)


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


def test_the_embedding_of_time():
    t = np.array([0, 1, 10, 999])
    frequencies = 10_000.0 ** -(np.arange(4) / 3)
    angles = t[:, None] * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    # float32 knows an angle of 999 to 3e-5.
    np.testing.assert_allclose(sinusoidal_embedding(jnp.array(t), 8), expected, atol=1e-4)
