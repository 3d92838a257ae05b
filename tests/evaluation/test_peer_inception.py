"""Beside torch-fidelity, another Inception-v3 with the same names for the same layers.

Both are given the same random weights and the same images. In float64 what is left between them is
rounding, which proves the layers alike; in float32 it is how sums are ordered.
"""

import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inceptions import COUNTER, random_state
from peers import torch

from ddpm_jax.evaluation import inception_network
from ddpm_jax.evaluation.inception import InceptionV3, resize
from ddpm_jax.evaluation.inception_weights import expected_shapes, to_variables
from ddpm_jax.weights.torch_files import read_state_dict

pytestmark = pytest.mark.thorough


def part_of_torch_fidelity(name):
    """A module of torch-fidelity alone.

    All of it needs torchvision, whose wheels are for CUDA and do not load beside a CPU's torch.
    These parts have no need of it.
    """
    if "torch_fidelity" not in sys.modules:
        found = importlib.util.find_spec("torch_fidelity")
        if found is None:
            pytest.skip("torch-fidelity comes with the extra 'peers'", allow_module_level=True)
        package = types.ModuleType("torch_fidelity")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["torch_fidelity"] = package
    return importlib.import_module(f"torch_fidelity.{name}")


Peer = part_of_torch_fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
interpolate = part_of_torch_fidelity("interpolate_compat_tensorflow")

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
    for name in (*LAYERS, "AvgPool"):
        keep = lambda _, __, made, name=name: seen.update({name: made.clone()})  # noqa: E731
        getattr(peer, name).register_forward_hook(keep)
    peer(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    pooled = seen.pop("AvgPool").flatten(1)
    made = {name: layer.permute(0, 2, 3, 1) for name, layer in seen.items()}
    made |= {"pooled": pooled, "logits": peer.fc(pooled) - peer.fc.bias}
    return {name: layer.numpy() for name, layer in made.items()}


def our_layers(state, prepared):
    """The same of ours."""

    def apply(variables, x):
        top = lambda module, _: len(module.path) == 1  # noqa: E731
        (pooled, logits), rest = InceptionV3().apply(variables, x, capture_intermediates=top)
        kept = {name: made["__call__"][0] for name, made in rest["intermediates"].items()}
        return kept | {"pooled": pooled, "logits": logits}

    variables = jax.tree.map(lambda leaf: leaf.astype(prepared.dtype), to_variables(state))
    return jax.jit(apply)(variables, prepared)


def differences(ours, theirs):
    """Largest of each layer, relative to the layer's largest value."""
    names = (*LAYERS, "pooled", "logits")
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
    assert max(found.values()) < 1e-12


@pytest.mark.parametrize("path", ["zip"], indirect=True)
def test_layers_in_float32(path, state):
    pictures = images(2, 32, 32)
    theirs = their_layers(path, pictures, torch.float32)
    x = (resize(jnp.asarray(pictures, jnp.float32), 299) - 128) / 128
    found = differences(our_layers(state, x), theirs)
    print({name: f"{value:.1e}" for name, value in found.items()})
    assert max(found.values()) < 1e-5


@pytest.mark.parametrize("path", ["legacy"], indirect=True)
def test_features(path):
    pictures = images(2, 48, 32)
    network = inception_network(path, other_weights=True)
    peer = Peer("peer", ["2048", "logits_unbiased"], str(path))
    theirs = peer(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    for our, their in zip(network.apply(jnp.asarray(pictures)), theirs, strict=True):
        their = their.numpy()
        assert np.abs(our - their).max() < 1e-5 * np.abs(their).max()


@pytest.mark.parametrize("shape", [(8, 8), (32, 32), (64, 48), (256, 256), (299, 299), (400, 30)])
def test_resize(shape):
    pictures = images(2, *shape).astype(np.float32)
    moved = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    theirs = interpolate.interpolate_bilinear_2d_like_tensorflow1x(
        moved, size=(299, 299), align_corners=False
    )
    ours = jax.jit(resize, static_argnums=1)(jnp.asarray(pictures), 299)
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - theirs).max() < 2e-4  # of 255: a few roundings
    if shape[0] < 299:
        usual = torch.nn.functional.interpolate(moved, (299, 299), mode="bilinear")
        assert np.abs(usual.permute(0, 2, 3, 1).numpy() - theirs).max() > 10
