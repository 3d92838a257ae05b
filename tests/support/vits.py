"""Small vision transformers at random, under the names of their programs."""

import json

import numpy as np

from ddpm_jax.weights import LazyArray
from ddpm_jax.weights.safetensors_files import write_safetensors

WIDTH, DEPTH, HIDDEN, PATCH = 64, 2, 24, 28


def _drawn(shapes, seed):
    rng = np.random.default_rng(seed)

    def draw(shape):
        scale = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) in (2, 4) else 0.3
        return (rng.normal(size=shape) * scale + 0.7 * (len(shape) == 1)).astype(np.float32)

    return {name: draw(shape) for name, shape in shapes.items()}


def _layers(prefix, parts):
    """Weight and bias of each part in each layer; a part without a matrix is a norm."""
    shapes = {}
    for layer in range(DEPTH):
        for part, (out, *inputs) in parts.items():
            shapes[f"{prefix}.{layer}.{part}.weight"] = (out, *inputs)
            shapes[f"{prefix}.{layer}.{part}.bias"] = (out,)
    return shapes


def meta_state(seed=0, *, gated=False, grid=9):
    """A DINOv2 as Meta's program saves it, with one head of 64 channels."""
    mlp = (
        {"mlp.w12": (2 * HIDDEN, WIDTH), "mlp.w3": (WIDTH, HIDDEN)}
        if gated
        else {"mlp.fc1": (HIDDEN, WIDTH), "mlp.fc2": (WIDTH, HIDDEN)}
    )
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + grid**2, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    shapes |= _layers(
        "blocks",
        {
            "norm1": (WIDTH,),
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "norm2": (WIDTH,),
            **mlp,
        },
    )
    for layer in range(DEPTH):
        shapes |= {f"blocks.{layer}.ls{n}.gamma": (WIDTH,) for n in (1, 2)}
    return _drawn(shapes, seed)


def clip_state(seed=0, *, grid=2):
    """A CLIP as the library transformers saves it, with one head, and parts of its text half."""
    of = "vision_model"
    shapes = {
        "logit_scale": (),
        "text_model.final_layer_norm.weight": (8,),
        "text_projection.weight": (5, 8),
        "visual_projection.weight": (5, WIDTH),
        f"{of}.embeddings.class_embedding": (WIDTH,),
        f"{of}.embeddings.position_embedding.weight": (1 + grid**2, WIDTH),
        f"{of}.embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        f"{of}.pre_layrnorm.weight": (WIDTH,),
        f"{of}.pre_layrnorm.bias": (WIDTH,),
        f"{of}.post_layernorm.weight": (WIDTH,),
        f"{of}.post_layernorm.bias": (WIDTH,),
    }
    shapes |= _layers(
        f"{of}.encoder.layers",
        {
            "layer_norm1": (WIDTH,),
            **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")},
            "layer_norm2": (WIDTH,),
            "mlp.fc1": (HIDDEN, WIDTH),
            "mlp.fc2": (WIDTH, HIDDEN),
        },
    )
    return _drawn(shapes, seed)


def as_safetensors(path, state):
    lazy = {name: LazyArray(array.shape, lambda a=array: a) for name, array in state.items()}
    write_safetensors(path, lazy, {})
    return path


def as_folder(folder, state, **config):
    """As the library transformers has it."""
    folder.mkdir(exist_ok=True)
    as_safetensors(folder / "model.safetensors", state)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
