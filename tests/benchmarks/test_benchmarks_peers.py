"""The two networks of the benchmark beside diffusers: the same one, asked the same."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import TINY
from peers import diffusers, torch

from benchmarks import network_cases, peak_memory, peer_torch
from ddpm_jax import likelihood
from ddpm_jax.config import load, make_schedule
from ddpm_jax.experiment import image_spec_of, make_network

LIBRARIES = peer_torch.import_libraries("peers")


def of(config, *, dtype="float32"):
    """diffusers' network and step for a config."""
    shape = network_cases.shape_of(config)
    return peer_torch.Peer(LIBRARIES, config, shape, device="cpu", dtype=dtype, seed=0)


@pytest.fixture(scope="module")
def digits():
    """The config, parameters, and diffusers' network with the same."""
    config = load("configs/digits.py")
    params = network_cases.random_params(config, 1)
    peer = of(config)
    peer_torch.copy_params(jax.device_get(params), peer.network, torch)
    return config, params, peer


@pytest.mark.parametrize(
    ("path", "parameters"), [("configs/cifar10.py", 35_746_307), ("configs/digits.py", 176_849)]
)
def test_both_networks_have_as_many_parameters(path, parameters):
    config = load(path)
    assert network_cases.count(network_cases.abstract_params(config)) == parameters
    with torch.device("meta"):  # shapes alone
        network = peer_torch.make_network(diffusers, config, network_cases.shape_of(config))
    assert sum(leaf.numel() for leaf in network.parameters()) == parameters


def test_both_networks_compute_the_same(digits):
    config, params, peer = digits
    rng = np.random.default_rng(0)
    x_t = np.float32(rng.normal(size=(3, *network_cases.shape_of(config))))
    t = np.array([0, 3, 200], np.int32)
    ours = jax.jit(make_network(config, image_spec_of(config)).apply)(params, x_t, t)
    theirs = peer.forward(torch.from_numpy(np.moveaxis(x_t, -1, 1).copy()), torch.from_numpy(t))
    theirs = np.moveaxis(theirs.numpy(), 1, -1)
    assert np.abs(theirs).max() > 0.01  # nothing is zero, as it is before training
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(np.abs(theirs).max()))


def test_a_layer_that_one_of_them_has_not_is_an_error(digits):
    _, params, peer = digits
    layers = dict(jax.device_get(params)["params"])
    del layers["output_norm"]
    with pytest.raises(KeyError, match="conv_norm_out"):
        peer_torch.copy_params({"params": layers}, peer.network, torch)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_plain_loop_has_the_same_bits_per_dim(variance):
    """A chain of 8 times, the same noise at each."""
    config = load(TINY)
    network = dataclasses.replace(config.network, variance=variance)
    config = dataclasses.replace(config, network=network)
    model = make_network(config, image_spec_of(config))
    params, peer = network_cases.random_params(config, 2), of(config)
    peer_torch.copy_params(jax.device_get(params), peer.network, torch)
    images = peer.images(3)
    x0 = jnp.asarray(np.moveaxis(images.numpy(), 1, -1), jnp.float32) / 127.5 - 1.0
    key = jax.random.key(0)
    ours = jax.jit(
        lambda params: likelihood.bits_per_dim(
            make_schedule(config.schedule),
            functools.partial(model.apply, params),
            key,
            x0,
            predicts="eps",
            levels=256,
            variance=variance,
        )
    )(params)

    def noise(t):
        eps = np.asarray(jax.random.normal(jax.random.fold_in(key, t), x0.shape))
        return torch.from_numpy(np.moveaxis(eps, -1, 1).copy())

    theirs = peer.bits_per_dim(images, noise)
    # Their decoder clips the probability of a grey level from below, and ours does not.
    np.testing.assert_allclose(
        ours.total - ours.decoder, _without_decoder(peer, images, noise), rtol=1e-4
    )
    assert theirs.shape == (3,)


def _without_decoder(peer, images, noise):
    whole = peer._decoder
    peer._decoder = lambda x0, x0_hat, deviation: torch.zeros(len(x0))
    try:
        return peer.bits_per_dim(images, noise).numpy()
    finally:
        peer._decoder = whole


def test_their_bits_are_of_a_chain_as_long_as_ours():
    peer, calls = of(load(TINY)), []  # whose own chain has 8 times
    peer.network.register_forward_pre_hook(lambda network, arguments: calls.append(arguments))
    assert peer.make_run("bits/dim", 2, 5)().shape == (2,)
    assert [int(t[0]) for _, t in calls] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_their_step_trains_and_averages(dtype):
    config = load(TINY)
    peer = of(config, dtype=dtype)
    run = peer.make_run("train step", 2, 1)
    before = [leaf.detach().clone() for leaf in peer.network.parameters()]
    run()
    after = [leaf.detach() for leaf in peer.network.parameters()]
    moved = [float((one - other).abs().max()) for one, other in zip(after, before, strict=True)]
    # Adam's first step moves what has a gradient by the learning rate, whatever the gradient is.
    assert max(moved) == pytest.approx(config.optimizer.learning_rate, rel=1e-2)
    decay = config.averages.decays[0]
    for average, one, other in zip(peer._average, before, after, strict=True):
        np.testing.assert_allclose(average, decay * one + (1.0 - decay) * other, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", ["DDIM", "DPM-Solver++"])
def test_their_pipelines_draw(what, dtype):
    images = of(load(TINY), dtype=dtype).make_run(what, 3, 4)()
    assert images.shape == (3, 8, 8, 1)
    assert np.isfinite(images).all()


@pytest.mark.parametrize("by", ["ddpm_jax", "diffusers"])
def test_memory_at_the_peak_holds_the_images_between_layers(by, tmp_path):
    """512 images of 64x64: a forward pass holds several times 4 channels of them in float32."""
    config = load(TINY)
    peak = peak_memory.measured(
        by, "forward pass", config, batch=4096, steps=1, seed=0, cache=str(tmp_path)
    )
    one_layer = 4096 * 8 * 8 * 4 * 4
    if peak is not None:
        assert 1.5 * one_layer < peak < 40 * one_layer
