"""The options with which the U-Net is the networks of other people, one by one."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from ddpm_jax import config
from ddpm_jax.data import ImageSpec
from ddpm_jax.models import UNet, init_params, layer_table
from ddpm_jax.models.blocks import ResidualBlock, sinusoidal_embedding
from ddpm_jax.models.layers import Conv, doubled, halved

SMALL = UNet(
    channels=8,
    multipliers=(1, 1.5),
    num_blocks=1,
    attention_resolutions=(),
    middle_attention=False,
    norm_groups=4,
    dropout=0.0,
)
X, T = jax.random.normal(jax.random.key(7), (2, 8, 8, 3)), jnp.array([3, 900])


@functools.cache
def shapes(model):
    key = jax.random.key(0)
    born = jax.eval_shape(lambda key: init_params(model, key, X.shape[1:]), key)
    return meta.unbox(born)["params"]


def names(model):
    return set(shapes(model))


def random_params(tree, seed=0):
    rng = np.random.default_rng(seed)
    make = functools.partial(rng.normal, 0.0, 0.3)
    return jax.tree.map(lambda leaf: make(size=leaf.shape).astype(np.float32), tree)


def apply(model, **kwargs):
    params = {"params": random_params(shapes(model))}
    return jax.jit(functools.partial(model.apply, **kwargs))(params, X, T)


class TestAttention:
    def test_is_on_the_levels_named(self):
        blocks = names(SMALL.clone(attention_levels=(1,))) - names(SMALL)
        assert blocks == {f"{place}_attention" for place in ("down_1_0", "up_1_0", "up_1_1")}

    @pytest.mark.thorough
    def test_has_another_norm_in_the_middle_or_none(self):
        model = SMALL.clone(middle_attention=True, attention_levels=(1,))
        without = names(model.clone(middle_norm_groups=0))
        assert "norm" not in shapes(model.clone(middle_norm_groups=0))["middle_attention"]
        assert without == names(model)
        same, two = (apply(model.clone(middle_norm_groups=groups)) for groups in (4, 2))
        np.testing.assert_array_equal(same, apply(model))
        assert np.abs(two - same).max() > 1e-3

    def test_is_on_other_levels_on_the_way_up(self):
        model = SMALL.clone(attention_levels=(1,), up_attention_levels=(0,))
        assert names(model) - names(SMALL) == {
            f"{place}_attention" for place in ("down_1_0", "up_0_0", "up_0_1")
        }

    def test_with_heads_of_a_width_is_that_with_their_number(self):
        model = SMALL.clone(attention_levels=(0,))
        by_width = apply(model.clone(head_channels=2))
        np.testing.assert_array_equal(by_width, apply(model.clone(heads=4)))
        assert np.abs(by_width - apply(model)).max() > 1e-3

    @pytest.mark.thorough
    def test_has_other_heads_on_the_way_up(self):
        model = SMALL.clone(attention_levels=(0,), heads=2)
        other = apply(model.clone(up_heads=4))
        assert np.abs(other - apply(model)).max() > 1e-4
        assert np.abs(other - apply(model.clone(heads=4))).max() > 1e-4


class TestResampling:
    def test_is_a_residual_block_on_the_levels_that_have_it(self):
        model = SMALL.clone(resampling=("residual", "convolution"))
        tree = shapes(model)
        assert set(tree["down_0_half"]) == {"norm_0", "conv_0", "time", "norm_1", "conv_1"}
        assert set(tree["up_1_double"]) == {"kernel", "bias"}

    def test_is_something_else_on_the_way_up(self):
        tree = shapes(SMALL.clone(resampling="residual", up_resampling="convolution"))
        assert "conv_0" in tree["down_0_half"]
        assert set(tree["up_1_double"]) == {"kernel", "bias"}

    def test_that_is_plain_has_no_parameters(self):
        assert not {
            name for name in names(SMALL.clone(resampling="plain")) if name.endswith(("half", "le"))
        }
        assert apply(SMALL.clone(resampling="plain")).shape == X.shape

    def test_takes_the_mean_of_four_pixels_and_repeats_one(self):
        expected = np.asarray(X).reshape(2, 4, 2, 4, 2, 3).mean((2, 4))
        np.testing.assert_allclose(halved(X), expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(doubled(X), np.repeat(np.repeat(X, 2, 1), 2, 2))

    @pytest.mark.parametrize("resample", ["halve", "double"])
    def test_in_a_residual_block_stands_before_the_first_convolution(self, resample):
        block = ResidualBlock(3, 0.0, 3, 1e-6, False, resample, jnp.float32)
        time = jnp.ones((2, 4))
        tree = meta.unbox(jax.eval_shape(block.init, jax.random.key(0), X, time, None))["params"]
        params = random_params(tree)
        silent = jax.tree.map(np.zeros_like, params["conv_1"])
        output = block.apply({"params": {**params, "conv_1": silent}}, X, time, None)
        # Without the branch only the shortcut is left.
        np.testing.assert_allclose(output, halved(X) if resample == "halve" else doubled(X))


def test_symmetric_padding_has_zeros_on_all_sides():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 2)).astype(np.float32)
    padded = np.pad(X, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = [
        np.einsum("bhwi,hwio->bo", padded[:, 2 * row : 2 * row + 3, :3], kernel) for row in range(4)
    ]
    conv = Conv(2, stride=2, padding=((1, 1), (1, 1)))
    output = conv.apply({"params": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}, X)
    np.testing.assert_allclose(output[:, :, 0], np.stack(expected, 1), rtol=1e-4, atol=1e-5)
    assert np.abs(apply(SMALL.clone(symmetric_padding=True)) - apply(SMALL)).max() > 1e-3


def test_the_time_scales_and_shifts_the_second_norm():
    block = ResidualBlock(3, 0.0, 3, 1e-6, True, "no", jnp.float32)
    time = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4)), jnp.float32)
    tree = meta.unbox(jax.eval_shape(block.init, jax.random.key(0), X, time, None))["params"]
    params = random_params(tree)
    # The norm's own scale 0 and bias 1 leave 1 + scale + shift of the time.
    params["norm_1"] = {"scale": np.zeros(3, np.float32), "bias": np.ones(3, np.float32)}
    params["conv_1"] = {
        "kernel": np.where((np.arange(9) == 4).reshape(3, 3, 1, 1), np.eye(3, dtype="f4"), 0.0),
        "bias": np.zeros(3, np.float32),
    }
    vector = np.asarray(time) @ params["time"]["kernel"] + params["time"]["bias"]
    h = 1.0 + vector[:, :3] + vector[:, 3:]
    swish = h / (1.0 + np.exp(-h))
    output = block.apply({"params": params}, X, time, None)
    branch = np.broadcast_to(swish[:, None, None], X.shape)
    np.testing.assert_allclose(output - X, branch, atol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("cosine_first", [False, True])
def test_sinusoids_have_the_frequencies_and_the_order_named(shift, cosine_first):
    t = np.array([0.0, 0.25, 7.0])
    frequency = [100.0 ** (-k / (3 - shift)) for k in range(3)]
    rows = []
    for time in t:
        waves = [[f(time * w) for w in frequency] for f in (math.sin, math.cos)]
        rows.append(np.concatenate(waves[::-1] if cosine_first else waves))
    waves = sinusoidal_embedding(
        jnp.asarray(t), 6, cosine_first=cosine_first, frequency_shift=shift, max_period=100.0
    )
    np.testing.assert_allclose(waves, rows, atol=1e-6)


def test_the_time_is_scaled_before_its_sinusoids():
    params = {"params": random_params(shapes(SMALL))}
    scaled = jax.jit(SMALL.clone(time_scale=0.25).apply)(params, X, T)
    np.testing.assert_array_equal(
        scaled, jax.jit(SMALL.apply)(params, X, 0.25 * T.astype(jnp.float32))
    )


class TestWithoutANullClass:
    model = SMALL.clone(num_classes=3, null_class=False)

    def test_the_table_has_a_row_for_each_class(self):
        assert shapes(self.model)["classes"].shape == (3, 32)

    def test_labels_are_required(self):
        with pytest.raises(ValueError, match="labels are missing; the network has 3 classes"):
            apply(self.model)

    def test_an_example_without_a_class_is_nan(self):
        output = apply(self.model, labels=jnp.array([-1, 1]))
        np.testing.assert_array_equal(np.isnan(output).all((1, 2, 3)), [True, False])

    def test_the_table_of_layers_is_that_of_a_labelled_image(self):
        rows = layer_table(self.model, X.shape[1:], labelled=True)
        assert rows[-1].parameters == sum(
            math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(self.model))
        )

    @pytest.mark.parametrize(
        ("train", "sampler", "field"),
        [
            (config.Train(), config.DDIM(), "train.label_dropout is 0.1"),
            (config.Train(label_dropout=0.0), config.DDIM(guidance=2.0), "sampler.guidance is 2.0"),
        ],
    )
    def test_a_config_hides_no_labels_and_guides_nothing(self, train, sampler, field):
        network = config.UNet(classes=10, null_class=False)
        with pytest.raises(config.ConfigError, match=field):
            config.validate(config.Config(network=network, train=train, sampler=sampler))


def test_a_symmetric_interpolation_is_brought_to_the_unit_range():
    unit = SMALL.clone(learned_variance=True)
    (same, u), (prediction, v) = apply(unit), apply(unit.clone(interpolation_range="symmetric"))
    np.testing.assert_array_equal(prediction, same)
    np.testing.assert_allclose(v, (1.0 + u) / 2.0, rtol=1e-6)


def test_dropout_is_at_the_heights_named():
    model = SMALL.clone(dropout=0.9, dropout_resolutions=(4,))
    params = {"params": random_params(shapes(model))}

    def masked(model):
        seen = []

        def record(call, args, kwargs, context):
            output = call(*args, **kwargs)
            if context.module.name == "dropout" and context.module.rate > 0.0:
                seen.append(output.shape[1])
            return output

        with nn.intercept_methods(record):
            jax.eval_shape(
                lambda: model.apply(params, X, T, train=True, rngs={"dropout": jax.random.key(0)})
            )
        return set(seen)

    assert masked(model) == {4}
    assert masked(model.clone(dropout_resolutions=None)) == {8, 4}


@pytest.mark.thorough
def test_in_float64_everything_inside_is_float64():
    with jax.enable_x64(True):
        wide = SMALL.clone(
            dtype=jnp.float64, attention_levels=(0,), scale_shift=True, learned_variance=True
        )
        params = {"params": random_params(shapes(wide))}
        output = jax.jit(wide.apply)(params, X, T)[0]
        assert output.dtype == jnp.float64
        doubled_input = jax.jit(wide.apply)(params, X.astype(jnp.float64) + 1e-12, T)[0]
    # A change of 1e-12 would drown in a single float32 layer.
    assert 0.0 < np.abs(doubled_input - output).max() < 1e-8


def check(network):
    spec = ImageSpec(name="images", shape=(32, 32, 3), levels=256, classes=None, class_counts=None)
    network.check(config.Config(network=network))
    network.make(spec)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"attention_levels": (4,)}, "network.attention_levels holds 4; the levels are 0 to 3"),
        ({"up_attention_levels": (-1,)}, "network.up_attention_levels holds -1"),
        ({"resampling": ("plain",)}, "network.resampling has 1 entries; .* each of 4 levels"),
        ({"dropout_resolutions": (5,)}, "network.dropout_resolutions holds 5; the levels have"),
        ({"head_channels": 48}, "network.head_channels is 48; .* one has 256"),
        ({"up_heads": 3}, "network.up_heads is 3; .* one has 256"),
        ({"channels": 48, "multipliers": (1, 1.5, 2, 2)}, "network.norm_groups is 32; .* widths"),
        ({"channels": 32, "frequency_shift": 16.0}, "network.frequency_shift is 16.0; .* below"),
    ],
)
def test_an_option_that_does_not_fit_is_named(fields, sentence):
    with pytest.raises(config.ConfigError, match=sentence):
        check(config.UNet(**fields))
