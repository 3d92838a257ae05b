"""Sines and cosines of the input beside it, against NumPy in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from ddpm_jax import config, schedules
from ddpm_jax.models import DiT, Preconditioned, UNet, init_params
from ddpm_jax.models.blocks import fourier_features

UNET = UNet(
    channels=8,
    multipliers=(1,),
    num_blocks=1,
    attention_resolutions=(),
    middle_attention=False,
    norm_groups=4,
    dropout=0.0,
    fourier_features=(7, 8),
)
DIT = DiT(width=8, depth=1, heads=2, fourier_features=(7, 8))
X = np.random.default_rng(0).uniform(-1.0, 1.0, (2, 4, 4, 3)).astype(np.float32)


def by_numpy(x, exponents):
    angles = [2.0**n * np.pi * x.astype(np.float64) for n in exponents]
    return np.concatenate([x, *map(np.sin, angles), *map(np.cos, angles)], axis=-1)


@pytest.mark.parametrize("size", [1.0, 80.0])
def test_they_are_those_of_numpy_for_small_and_for_large_inputs(size):
    x = jnp.float32(size) * X
    expected = by_numpy(np.asarray(x), (0, 7, 8))
    np.testing.assert_allclose(fourier_features(x, (0, 7, 8)), expected, atol=1e-6)


def test_their_slopes_are_finite_and_those_of_sine_and_cosine():
    # The last are the places at which the number of whole turns that are taken off changes.
    x = np.append(X, np.arange(-8.5, 9.0) / 2.0**7).astype(np.float32).reshape(1, 1, 1, -1)
    angle, ones = 2.0**8 * np.pi * x.astype(np.float64), np.ones_like(x)
    _, (own, sine, cosine) = jax.jvp(
        lambda x: jnp.split(fourier_features(x, (8,)), 3, axis=-1), (x,), (ones,)
    )
    np.testing.assert_array_equal(own, ones)
    np.testing.assert_allclose(sine, 2.0**8 * np.pi * np.cos(angle), atol=1e-3)
    np.testing.assert_allclose(cosine, -(2.0**8) * np.pi * np.sin(angle), atol=1e-3)


def input_of_first_layer(model):
    """What the layer "input" gets of the images X; the compiler leaves all other layers out."""

    @jax.jit
    def features(x_t, t):
        seen = []

        def record(call, args, kwargs, context):
            if context.module.name == "input":
                seen.append(args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            model.init(jax.random.key(0), x_t, t)
        return seen[0]

    return features(jnp.asarray(X), jnp.zeros(2, jnp.int32))


def test_a_network_of_bfloat16_computes_them_in_float32():
    model = UNET.clone(dtype=jnp.bfloat16)
    features = input_of_first_layer(model)
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features, by_numpy(X, (7, 8)), atol=1e-6)


def test_in_an_edm_exponents_that_are_log2_of_sigma_data_higher_are_those_of_the_image():
    """Where there is next to no noise: the rule that `config.UNet` states."""
    schedule = schedules.linear_log_snr(4, 20.0, -8.0)
    inner = UNET.clone(fourier_features=(6,))
    model = Preconditioned(inner, schedule, sigma_data=0.5)
    features = input_of_first_layer(model)
    np.testing.assert_allclose(features[..., 3:], by_numpy(X, (7,))[..., 3:], atol=1e-3)


@pytest.mark.parametrize(("model", "weights"), [(UNET, 9 * 8), (DIT, 4 * 8)])
def test_each_exponent_adds_two_channels_to_the_input_of_the_first_layer(model, weights):
    with_features, without = (
        jax.eval_shape(
            lambda key, model=one: meta.unbox(init_params(model, key, X.shape[1:])),
            jax.random.key(0),
        )["params"]
        for one in (model, model.clone(fourier_features=()))
    )
    first, plain = (params.pop("input")["kernel"].size for params in (with_features, without))
    assert first == plain + 2 * 2 * X.shape[-1] * weights
    assert with_features == without


class TestConfig:
    def test_a_stored_config_without_them_has_none(self):
        wanted = config.Config(network=config.DiT())
        stored = config.to_json(wanted)
        del stored["network"]["fourier_features"]
        lines = []
        assert config.from_json(stored, report=lines.append) == wanted
        assert lines == [
            "the stored config lacks fields, which take their defaults:"
            " network.fourier_features = ()"
        ]

    @pytest.mark.parametrize("exponents", [(-1,), (17,), (7, 7)])
    def test_what_they_may_be_is_said(self, exponents):
        network = config.UNet(fourier_features=exponents)
        with pytest.raises(config.ConfigError, match="whole numbers from 0 to 16"):
            config.validate(config.Config(network=network))
