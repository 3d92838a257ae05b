"""DINOv2 and CLIP beside the library transformers, at random weights, layer by layer."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax.traverse_util import flatten_dict
from peers import torch

from ddpm_jax.evaluation import clip, clip_network, dinov2, dinov2_network
from ddpm_jax.evaluation.transformer_weights import read_network
from ddpm_jax.evaluation.vision_transformer import Block

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip(
        "transformers", reason="transformers comes with the extra 'peers'"
    )
    from transformers.utils import import_utils

    for module in (import_utils, transformers.utils):  # see peers about torchvision
        module.is_torchvision_available = lambda: False
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        Dinov2Config,
        Dinov2Model,
    )

pytestmark = pytest.mark.thorough

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 14,
}


def at_random(model):
    """Parameters that leave activations of every layer near 1, and no two layers alike."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        shape = parameter.shape
        scale = 1 / np.sqrt(np.prod(shape[1:])) if parameter.ndim in (2, 4) else 0.3
        noise = torch.randn(shape, generator=generator, dtype=parameter.dtype)
        parameter.data = noise * scale + (0.7 if parameter.ndim == 1 else 0)
    return model.eval().requires_grad_(False)


def new_dinov2(image_size=224, **options):
    config = Dinov2Config(**(SMALL | {"image_size": image_size} | options))
    return at_random(Dinov2Model(config))


def new_clip(image_size=70):
    return at_random(
        CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                **SMALL, image_size=image_size, projection_dim=16, intermediate_size=48
            )
        )
    )


KINDS = {
    "dinov2": (new_dinov2, dinov2, {}),
    "dinov2, gated": (new_dinov2, dinov2, {"use_swiglu_ffn": True}),
    "clip": (new_clip, clip, {}),
}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    """A network of theirs, the same network of ours, and the side of its images."""
    make, module, options = KINDS[request.param]
    peer = make(**options)
    peer.save_pretrained(tmp_path)
    return peer, read_network(tmp_path, module._ARCHITECTURE), peer.config.image_size


def their_layers(peer, images):
    """After the positions (and CLIP's first norm), after each block, and the output."""
    pixels = torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)
    out = peer.to(pixels.dtype)(pixels, output_hidden_states=True)
    last = out.image_embeds if hasattr(out, "image_embeds") else out.pooler_output
    return [layer.numpy() for layer in (*out.hidden_states[1:], last)]


def our_layers(network, images):
    def is_block(module, _):
        return isinstance(module, Block)

    def apply(params, images):
        out, state = network.module.apply(
            {"params": params}, images, capture_intermediates=is_block
        )
        states, _ = state["intermediates"]["blocks"]["__call__"][0]
        return [*states, out]

    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, images.dtype), network.params)
    return [np.asarray(layer) for layer in jax.jit(apply)(params, images)]


def differences(ours, theirs):
    assert [layer.shape for layer in ours] == [layer.shape for layer in theirs]
    assert [layer.dtype for layer in ours] == [layer.dtype for layer in theirs]
    of = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True)]
    print([f"{value:.1e}" for value in of])
    return of


@pytest.mark.parametrize(("dtype", "within"), [(np.float64, 1e-13), (np.float32, 1e-5)])
def test_layers(kind, dtype, within):
    peer, network, side = kind
    images = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(dtype)
    with jax.enable_x64(dtype is np.float64):
        ours = our_layers(network, jnp.asarray(images))
    assert np.max(differences(ours, their_layers(peer, images))) < within


def by_hand(images, side, mean, deviation):
    """Prepared by PIL and NumPy."""
    resized = [
        np.asarray(PIL.Image.fromarray(image).resize((side, side), PIL.Image.Resampling.BICUBIC))
        for image in images
    ]
    scaled = (np.stack(resized) / 255 - mean) / deviation
    return torch.from_numpy(scaled).permute(0, 3, 1, 2).float()


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def test_features_of_dinov2(tmp_path, pictures):
    # Theirs has the positions of 16 x 16 patches, as Meta's program makes them of 37 x 37.
    peer = new_dinov2(image_size=518)
    peer.save_pretrained(tmp_path)
    table = peer.embeddings.position_embeddings
    square = table[:, 1:].reshape(1, 37, 37, 32).permute(0, 3, 1, 2)
    scale = float(16.1 / np.sqrt(37 * 37))
    resized = torch.nn.functional.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    small = resized.permute(0, 2, 3, 1).reshape(1, 256, 32)
    peer.embeddings.position_embeddings.data = torch.cat([table[:, :1], small], dim=1)
    theirs = peer(by_hand(pictures, 224, dinov2.MEAN, dinov2.DEVIATION)).pooler_output.numpy()
    network = dinov2_network(tmp_path)
    assert relative(network.apply(jnp.asarray(pictures)).pooled, theirs) < 1e-5
    # The two resizes differ, if by little.
    other = dinov2_network(tmp_path, resize="edm2").apply(jnp.asarray(pictures)).pooled
    assert 1e-5 < relative(other, theirs) < 0.1


def test_features_of_clip(tmp_path, pictures):
    peer = new_clip()
    peer.save_pretrained(tmp_path)
    theirs = peer(by_hand(pictures, 70, clip.MEAN, clip.DEVIATION)).image_embeds.numpy()
    network = clip_network(tmp_path)
    ours = network.apply(jnp.asarray(pictures)).pooled
    assert relative(ours, theirs) < 1e-5
    # Of an image that is not a square, the middle.
    wide = np.concatenate([pictures[:, :, :3], pictures, pictures[:, :, :4]], axis=2)
    np.testing.assert_allclose(network.apply(jnp.asarray(wide)).pooled, ours, atol=1e-5)


def test_a_file_of_pytorch_is_the_same_network(tmp_path):
    peer = new_dinov2()
    peer.save_pretrained(tmp_path)
    folder = read_network(tmp_path, dinov2._ARCHITECTURE)
    (tmp_path / "model.safetensors").unlink()
    torch.save(peer.state_dict(), tmp_path / "pytorch_model.bin")  # names of version 5
    state = read_network(tmp_path, dinov2._ARCHITECTURE)
    assert folder.digest == state.digest
    for name, leaf in flatten_dict(folder.params).items():
        np.testing.assert_array_equal(leaf, flatten_dict(state.params)[name])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    assert read_network(tmp_path, dinov2._ARCHITECTURE).module.heads == 2
