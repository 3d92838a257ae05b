"""Beside torch-fidelity, another Inception-v3 with the same names for the same layers.

Both are given the same random weights and the same images. In float64 what is left between them is
rounding, which proves the layers alike; in float32 it is how sums are ordered.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fid_peers import import_peer
from inceptions import COUNTER, random_state
from peers import torch

from ddpm_jax.evaluation import inception_network
from ddpm_jax.evaluation.inception import PREPARATIONS, InceptionV3
from ddpm_jax.evaluation.inception_weights import expected_shapes, to_variables
from ddpm_jax.weights.torch_files import read_state_dict

pytestmark = pytest.mark.thorough


Peer = import_peer("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3

LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a"),
    *("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c"),
)


@pytest.fixture(scope="module")
def state():
    return random_state(seed=1)


@pytest.fixture(scope="module", params=["legacy", "zip"])
def path(request, state, tmp_path_factory):
    """Weights as torch writes them, in either format."""
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.pth"
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=request.param == "zip")
    return path


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def their_layers(path, pictures, dtype):
    """What each layer of theirs makes of the pictures, `[batch, height, width, channel]`."""
    peer, seen = Peer("peer", ["2048"], str(path)).to(dtype), {}
    peer.feature_extractor_internal_dtype = dtype  # as an argument, "float64" is taken for float32
    for name in (*LAYERS, "AvgPool", "Mixed_6d.branch1x1"):
        keep = lambda _, __, made, name=name: seen.update({name: made.clone()})  # noqa: E731
        peer.get_submodule(name).register_forward_hook(keep)
    peer(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    pooled = seen.pop("AvgPool").flatten(1)
    # What guided-diffusion's evaluator takes of the graph's tensor mixed_6/conv:0.
    spatial = seen.pop("Mixed_6d.branch1x1").permute(0, 2, 3, 1)[..., :7].flatten(1)
    made = {name: layer.permute(0, 2, 3, 1) for name, layer in seen.items()}
    made |= {"pooled": pooled, "logits": peer.fc(pooled) - peer.fc.bias, "spatial": spatial}
    return {name: layer.numpy() for name, layer in made.items()}


def our_layers(state, prepared):
    """The same of ours."""

    def apply(variables, x):
        top = lambda module, _: len(module.path) == 1  # noqa: E731
        out, rest = InceptionV3().apply(variables, x, capture_intermediates=top)
        layers = {name: made["__call__"][0] for name, made in rest["intermediates"].items()}
        return layers | {"pooled": out.pooled, "logits": out.logits, "spatial": out.spatial}

    variables = jax.tree.map(lambda leaf: leaf.astype(prepared.dtype), to_variables(state))
    return jax.jit(apply)(variables, prepared)


def differences(ours, theirs):
    """Largest of each layer, relative to the layer's largest value."""
    names = (*LAYERS, "pooled", "logits", "spatial")
    assert set(theirs) == set(names) <= set(ours)
    found = {}
    for name in names:
        assert ours[name].shape == theirs[name].shape
        assert ours[name].dtype == theirs[name].dtype
        found[name] = np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()
    return found


def test_names_and_shapes(path, state):
    peer = Peer("peer", ["2048"], str(path)).state_dict()
    assert set(peer) == set(state)
    ours = expected_shapes()
    assert {name: tuple(t.shape) for name, t in peer.items() if COUNTER not in name} == ours


def test_files_that_torch_writes(path, state):
    read = read_state_dict(path)
    assert list(read) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("legacy", [True, False])
def test_what_a_module_saves(legacy, tmp_path):
    # With metadata, parameters, several dtypes, tensors that share a storage, and one transposed.
    module = torch.nn.BatchNorm2d(3)
    whole = torch.arange(12.0)
    saved = module.state_dict()
    saved |= {
        "parameter": torch.nn.Parameter(whole[:4]),
        "part": whole[3:9].view(2, 3),
        "transposed": whole.view(3, 4).T,
        "empty": torch.zeros(0, 2),
    }
    for dtype in ("float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"):
        saved[dtype] = torch.tensor([[0, 1], [1, 0]]).to(getattr(torch, dtype))
    path = tmp_path / "module.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    read = read_state_dict(path)
    assert list(read) == list(saved)
    for name, tensor in saved.items():
        expected = tensor.detach().numpy()
        assert read[name].dtype == expected.dtype
        np.testing.assert_array_equal(read[name], expected)


@pytest.mark.parametrize("path", ["zip"], indirect=True)
def test_layers_in_float64(path, state):
    # Of 299 x 299 pixels, which neither resizes: theirs rounds positions to float32 all the same.
    pictures = images(1, 299, 299)
    theirs = their_layers(path, pictures, torch.float64)
    with jax.enable_x64(True):
        ours = our_layers(state, jnp.asarray((pictures - 128.0) / 128.0))
        found = differences(jax.tree.map(np.asarray, ours), theirs)
    print({name: f"{value:.1e}" for name, value in found.items()})
    assert np.max([*found.values()]) < 1e-12


@pytest.mark.parametrize("path", ["zip"], indirect=True)
def test_layers_in_float32(path, state):
    pictures = images(2, 32, 32)
    theirs = their_layers(path, pictures, torch.float32)
    x = PREPARATIONS["tensorflow"].prepare(jnp.asarray(pictures, jnp.float32))
    found = differences(our_layers(state, x), theirs)
    print({name: f"{value:.1e}" for name, value in found.items()})
    assert np.max([*found.values()]) < 1e-5


@pytest.mark.parametrize("path", ["legacy"], indirect=True)
def test_features(path):
    pictures = images(2, 48, 32)
    network = inception_network(path, other_weights=True)
    peer = Peer("peer", ["2048", "logits_unbiased"], str(path))
    theirs = peer(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    for our, their in zip(network.apply(jnp.asarray(pictures))[:2], theirs, strict=True):
        their = their.numpy()
        assert np.abs(our - their).max() < 1e-5 * np.abs(their).max()
