"""Networks of diffusers, in and out, beside themselves in PyTorch."""

import dataclasses
import json

import diffusers_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers_folders import CONFIGS
from peers import diffusers

from ddpm_jax.weights.diffusers import from_diffusers
from ddpm_jax.weights.to_diffusers import to_diffusers

FEW = ("cifar10", "scale_shift, another norm", "learned variance")


@pytest.fixture(
    scope="module",
    params=[
        name if name in FEW else pytest.param(name, marks=pytest.mark.thorough) for name in CONFIGS
    ],
)
def case(request, tmp_path_factory):
    """The options, diffusers' network, the folder that it wrote, and what was read of that."""
    config = CONFIGS[request.param]
    learned = config.get("out_channels", 3) == 6
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range" if learned else "fixed_small")
    network = folders.network_of(config)
    folder = folders.save(network, tmp_path_factory.mktemp("diffusers") / "pipeline", scheduler)
    return config, network, folder, from_diffusers(folder)


def our_output(weights, x_t, t, labels):
    labels = {} if labels is None else {"labels": jnp.asarray(labels)}
    output = jax.jit(weights.network.apply)(weights.params(), jnp.asarray(x_t), t, **labels)
    if weights.network.learned_variance:  # u = (v + 1) / 2
        output = jnp.concatenate([output[0], 2.0 * output[1] - 1.0], axis=-1)
    return np.asarray(output)


def test_prediction(case):
    config, network, _, weights = case
    x_t, t, labels = folders.inputs(config)
    x_t = np.float32(x_t)
    ours = our_output(weights, x_t, t, labels)
    theirs = folders.their_output(network, x_t, t, labels)
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.thorough
def test_prediction_in_float64(case):
    config, _, _, weights = case
    x_t, t, labels = folders.inputs(config)
    network = folders.widened(folders.network_of(config))
    theirs = folders.their_output(network, x_t, t, labels)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = dataclasses.replace(weights, network=weights.network.clone(dtype=jnp.float64))
        ours = our_output(wide, x_t, t, labels)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())


def write(folder, weights):
    to_diffusers(
        folder,
        weights.network,
        weights.image_shape,
        weights.arrays["ema"],
        chain=weights.chain,
        predicts=weights.predicts,
        variance=weights.variance,
        sampler=weights.sampler,
    )
    return folder


def test_in_and_out_is_the_same_network(case, tmp_path):
    _, _, folder, weights = case
    written = write(tmp_path / "written", weights)
    for path in ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        before, after = (json.loads((place / path).read_text()) for place in (folder, written))
        assert effective(after) == effective(before), path
    parameters = "unet/diffusion_pytorch_model.safetensors"
    assert (folder / parameters).read_bytes() == (written / parameters).read_bytes()


def effective(config):
    """A configuration without what changes nothing."""
    config = dict(config)
    kinds = [*config.get("down_block_types", ()), *config.get("up_block_types", ())]
    for key in ("down_block_types", "up_block_types"):
        if key in config:  # as blocks were called at first
            config[key] = [kind.removeprefix("UNetRes") for kind in config[key]]
    for way in ("down", "up"):
        if not any(f"Attn{way.capitalize()}Block2D" in kind for kind in kinds):
            config.pop(f"{way}sample_type", None)
    if not config.get("add_attention", True):
        config.pop("attn_norm_num_groups", None)
        config.pop("attention_head_dim" if "Attn" not in str(kinds) else "", None)
    return config


def test_out_and_in_is_the_same_network(case, tmp_path):
    weights = case[-1]
    again = from_diffusers(write(tmp_path / "written", weights))
    for field in ("network", "image_shape", "chain", "predicts", "variance", "sampler", "classes"):
        assert getattr(again, field) == getattr(weights, field), field
    assert list(again.arrays["ema"]) == list(weights.arrays["ema"])
    for path, array in weights.arrays["ema"].items():
        np.testing.assert_array_equal(again.arrays["ema"][path].read(), array.read(), strict=True)
