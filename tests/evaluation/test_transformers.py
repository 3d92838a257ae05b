"""DINOv2 and CLIP: names, files that are taken, files that are refused, many devices.

What the layers compute is compared with another implementation in `test_peer_transformers.py`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from torch_pickles import Call, Named, as_file, pickled
from vits import PATCH, WIDTH, as_folder, as_safetensors, clip_state, meta_state

from ddpm_jax.evaluation import EvaluationError, clip_network, dinov2_network
from ddpm_jax.evaluation.clip import _ARCHITECTURE as CLIP
from ddpm_jax.evaluation.dinov2 import _ARCHITECTURE as DINOV2
from ddpm_jax.evaluation.dinov2 import positions
from ddpm_jax.evaluation.transformer_weights import _shapes, read_network
from ddpm_jax.evaluation.vision_transformer import VisionTransformer
from ddpm_jax.weights import WeightsError

RNG = np.random.default_rng(0)
DINO = {"model_type": "dinov2", "num_attention_heads": 1}


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    path = tmp_path_factory.mktemp("dino") / "dinov2.pth"
    path.write_bytes(as_file(meta_state()))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return as_safetensors(tmp_path_factory.mktemp("clip") / "clip.safetensors", clip_state())


@pytest.fixture(scope="module")
def photos():
    return jnp.asarray(RNG.integers(0, 256, (8, 9, 12, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def network(dino):
    return dinov2_network(dino)


@pytest.fixture(scope="module")
def features(network, photos):
    return network.apply(photos)


# ---- the networks


def test_what_a_network_states(network, features, clip):
    assert (network.name, network.dim, network.classes) == (f"DINOv2 of width {WIDTH}/28", 64, 0)
    assert features.pooled.shape == (8, WIDTH)
    assert features.pooled.dtype == jnp.float32
    assert features.logits is None
    assert features.spatial is None
    other = clip_network(clip)
    assert (other.name, other.dim) == (f"CLIP of width {WIDTH}/28-56", 5)
    assert other.apply(jnp.zeros((2, 5, 5, 1), jnp.uint8)).pooled.shape == (2, 5)


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        # The published counts have the mask token, too.
        ({"width": 384, "depth": 12, "heads": 6, "hidden": 1536}, 22_056_576),
        ({"width": 1024, "depth": 24, "heads": 16, "hidden": 4096}, 304_368_640),
        ({"width": 1536, "depth": 40, "heads": 24, "hidden": 4096, "gated": True}, 1_136_480_768),
    ],
)
def test_parameters_of_dinov2(sizes, count):
    shapes = _shapes(VisionTransformer(patch=14, layer_scale=True, **sizes), 37)
    assert sum(map(math.prod, shapes.values())) == count - sizes["width"]


@pytest.mark.optimized
def test_grey_images_are_repeated(network, photos):
    one, three = network.apply(photos[..., :1]), network.apply(jnp.tile(photos[..., :1], 3))
    np.testing.assert_allclose(one.pooled, three.pooled, rtol=1e-5, atol=1e-5)


@pytest.mark.optimized
@pytest.mark.thorough
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_eight_devices(dino, photos, features, axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    network = dinov2_network(dino, sharding=NamedSharding(mesh, PartitionSpec()))
    split = jax.device_put(photos, NamedSharding(mesh, PartitionSpec("data")))
    ours = network.apply(split).pooled
    assert ours.sharding.spec[0] == "data"
    np.testing.assert_allclose(ours, features.pooled, rtol=1e-4, atol=1e-4)


def test_positions_of_the_size_of_the_images_are_kept():
    table = RNG.normal(size=(1 + 16, 3)).astype(np.float32)
    assert positions(table, 4) is table
    assert positions(table, 2).shape == (1 + 4, 3)
    np.testing.assert_array_equal(positions(table, 2)[0], table[0])


# ---- names and identities


def test_a_resize_is_in_the_name_and_in_the_identity(dino, network):
    other = dinov2_network(dino, resize="edm2")
    assert other.name == network.name + ", EDM2's resize"
    assert other.identity != network.identity


@pytest.mark.usefixtures("without_annotation_checks")
def test_a_resize_that_is_none(dino):
    with pytest.raises(EvaluationError, match="resize is 'pil'; it has to be one of 'dgm-eval'"):
        dinov2_network(dino, resize="pil")


@pytest.mark.parametrize("gated", [False, True])
def test_the_same_weights_in_another_file_are_the_same_network(gated, tmp_path):
    state = meta_state(gated=gated)
    path = tmp_path / "dinov2.pth"
    path.write_bytes(as_file(state))
    folder = as_folder(tmp_path / "folder", state, **DINO)
    assert dinov2_network(path).identity == dinov2_network(folder).identity
    other = as_safetensors(tmp_path / "other.safetensors", meta_state(1, gated=gated))
    assert dinov2_network(path).identity != dinov2_network(other).identity


def test_half_precision_is_read_as_float32(clip, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(as_file({k: v.astype(np.float16) for k, v in clip_state().items()}))
    half, whole = read_network(path, CLIP).params, read_network(clip, CLIP).params
    assert half["positions"].dtype == np.float32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), half, whole)


def test_a_config_states_heads_and_norms(tmp_path):
    folder = as_folder(tmp_path / "a", meta_state(), **DINO | {"num_attention_heads": 8})
    network = read_network(folder, DINOV2)
    assert network.module.heads == 8
    one = read_network(as_folder(tmp_path / "a", meta_state(), **DINO), DINOV2)
    assert one.digest != network.digest  # the tensors are the same
    vision = {"num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-3}
    nested = {"model_type": "clip", "hidden_act": "relu", "vision_config": vision}
    module = read_network(as_folder(tmp_path / "b", clip_state(), **nested), CLIP).module
    assert (module.heads, module.activation, module.epsilon) == (2, "gelu", 1e-3)


def test_without_a_config_norms_and_activations_are_those_that_were_published(dino, clip):
    of_dino, of_clip = read_network(dino, DINOV2).module, read_network(clip, CLIP).module
    assert (of_dino.activation, of_dino.epsilon, of_dino.heads) == ("gelu", 1e-6, 1)
    assert (of_clip.activation, of_clip.epsilon, of_clip.heads) == ("quick_gelu", 1e-5, 1)


# ---- refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"register_tokens": (1, 4, WIDTH)}, "the network does not use: register_tokens"),
        ({"norm.weight": None}, "the file does not have: last_norm/scale"),
        (
            {"blocks.1.mlp.fc2.weight": (WIDTH, 7)},
            r"blocks/1/down/kernel is \[7, 64\] in the file and \[24, 64\] in the network",
        ),
        ({"pos_embed": (1, 0, WIDTH)}, "is not a DINOv2: it has no patches, positions"),
        ({"cls_token": (1, 1, 0)}, r"class_token is \[1, 1, 0\] in the file and \[64\] in"),
        ({"pos_embed": (1, 8, WIDTH)}, "has 8 positions; they have to be one for the class"),
        ({"patch_embed.proj.weight": None}, "is not a DINOv2: it has no patches, positions"),
        ({"patch_embed.proj.weight": (WIDTH, 3, 15, 15)}, "has patches of 15 pixels"),
        ({"blocks.7.norm1.weight": (WIDTH,)}, "the file does not have: blocks/2/"),
    ],
)
def test_tensors_are_those_of_dinov2(change, message, tmp_path):
    state = meta_state()
    for name, shape in change.items():
        state.pop(name, None)
        if shape is not None:
            state[name] = np.ones(shape, np.float32)
    with pytest.raises(WeightsError, match=message):
        dinov2_network(as_safetensors(tmp_path / "weights.safetensors", state))


def test_one_is_not_the_other(dino, clip, tmp_path):
    with pytest.raises(WeightsError, match="is not a DINOv2: the weights do not fit"):
        dinov2_network(clip)
    with pytest.raises(WeightsError, match="is not a CLIP: the weights do not fit"):
        clip_network(dino)
    state = clip_state()
    del state["visual_projection.weight"]
    with pytest.raises(WeightsError, match="has no projection; CMMD compares what CLIP projects"):
        clip_network(as_safetensors(tmp_path / "clip.safetensors", state))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "dinov2_with_registers"}, "the model_type 'dinov2_with_registers'; that"),
        (DINO | {"num_attention_heads": 5}, "64 channels and 5 heads; the number of heads has to"),
        (DINO | {"num_attention_heads": "4"}, "num_attention_heads '4'; it has to be of type int"),
        (DINO | {"hidden_act": "relu"}, "the hidden_act 'relu'; it has to be 'gelu' or"),
    ],
)
def test_a_config_of_another_network(config, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        dinov2_network(as_folder(tmp_path / "folder", meta_state(), **config))


def test_a_folder_without_its_files(tmp_path):
    with pytest.raises(WeightsError, match=r"config.json' does not exist"):
        dinov2_network(tmp_path)
    folder = as_folder(tmp_path, meta_state(), **DINO)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has no file of weights: model\.safetensors, "):
        dinov2_network(folder)


def test_values_that_are_not_finite(tmp_path):
    state = meta_state()
    state["blocks.1.norm2.bias"][3] = np.nan
    path = as_safetensors(tmp_path / "weights.safetensors", state)
    with pytest.raises(WeightsError, match="is damaged: blocks/1/norm_2/bias is not finite"):
        dinov2_network(path)


def test_heads_that_no_file_states(tmp_path):
    state = {
        name: array[..., :48] if name.startswith("norm") else array
        for name, array in meta_state().items()
    }
    state["patch_embed.proj.weight"] = np.ones((48, 3, PATCH, PATCH), np.float32)
    with pytest.raises(WeightsError, match=r"48 channels and 0\.75 heads; .* config\.json of a"):
        dinov2_network(as_safetensors(tmp_path / "weights.safetensors", state))


def test_a_pickle_with_code_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    harmful = Call(Named("os", "system"), ("touch harm",))
    path.write_bytes(as_file({}).replace(pickled({}), pickled({"cls_token": harmful})))
    with pytest.raises(WeightsError, match=r"names os\.system, which no dict of tensors needs"):
        dinov2_network(path)


def test_a_file_that_is_not_there(tmp_path):
    for name in ("missing.pth", "missing.safetensors"):
        with pytest.raises(WeightsError, match=f"{name} cannot be read: No such file"):
            dinov2_network(tmp_path / name)
