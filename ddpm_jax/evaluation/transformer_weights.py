"""Reads files of vision transformers, in any of the names that their programs give the tensors.

The shapes of the tensors give the width, the depth and the side of a patch. The number of heads is
in the `config.json` of a folder of the library transformers; the networks that Meta and OpenAI
published have 64 channels in each head.

The digest of a network is the same whatever file it comes from: it is that of the tensors under the
names that they have here, and of the options that no tensor shows.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.evaluation.vision_transformer import VisionTransformer
from ddpm_jax.files import JsonFileError, read_json
from ddpm_jax.npz import arrays_digest
from ddpm_jax.weights import LazyArray, WeightsError
from ddpm_jax.weights.safetensors_files import open_safetensors, open_shards
from ddpm_jax.weights.torch_files import open_state_dict
from ddpm_jax.weights.weights import match_arrays

__all__ = ["Architecture", "Network", "read_network"]

_HEAD = 64
"""Channels of a head in the published networks."""
_FILES: dict[str, Callable[[Path], dict[str, LazyArray]]] = {
    "model.safetensors": lambda path: open_safetensors(path)[0],
    "model.safetensors.index.json": open_shards,
    "pytorch_model.bin": open_state_dict,
}
"""The files that a folder of transformers may have, and their readers."""

_NAMES: dict[str, tuple[str, ...]] = {
    "cls_token": ("class_token",),
    "pos_embed": ("positions",),
    "patch_embed.proj": ("patches",),
    "norm": ("last_norm",),
    "blocks.*.norm1": ("norm_1",),
    "blocks.*.attn.qkv": ("query", "key", "value"),
    "blocks.*.attn.proj": ("out",),
    "blocks.*.ls1.gamma": ("scale_1",),
    "blocks.*.norm2": ("norm_2",),
    "blocks.*.mlp.fc1": ("up",),
    "blocks.*.mlp.fc2": ("down",),
    "blocks.*.mlp.w12": ("gate", "up"),
    "blocks.*.mlp.w3": ("down",),
    "blocks.*.ls2.gamma": ("scale_2",),
    # DINOv2 in transformers. Where there are two names, the second is that of version 5.
    "embeddings.cls_token": ("class_token",),
    "embeddings.position_embeddings": ("positions",),
    "embeddings.patch_embeddings.projection": ("patches",),
    "layernorm": ("last_norm",),
    "encoder.layer.*.norm1": ("norm_1",),
    "encoder.layer.*.attention.attention.query": ("query",),
    "encoder.layer.*.attention.q_proj": ("query",),
    "encoder.layer.*.attention.attention.key": ("key",),
    "encoder.layer.*.attention.k_proj": ("key",),
    "encoder.layer.*.attention.attention.value": ("value",),
    "encoder.layer.*.attention.v_proj": ("value",),
    "encoder.layer.*.attention.output.dense": ("out",),
    "encoder.layer.*.attention.o_proj": ("out",),
    "encoder.layer.*.layer_scale1.lambda1": ("scale_1",),
    "encoder.layer.*.norm2": ("norm_2",),
    "encoder.layer.*.mlp.fc1": ("up",),
    "encoder.layer.*.mlp.fc2": ("down",),
    "encoder.layer.*.mlp.weights_in": ("gate", "up"),
    "encoder.layer.*.mlp.gate_proj": ("gate",),
    "encoder.layer.*.mlp.up_proj": ("up",),
    "encoder.layer.*.mlp.weights_out": ("down",),
    "encoder.layer.*.mlp.down_proj": ("down",),
    "encoder.layer.*.layer_scale2.lambda1": ("scale_2",),
    # CLIP in transformers.
    "vision_model.embeddings.class_embedding": ("class_token",),
    "vision_model.embeddings.position_embedding": ("positions",),
    "vision_model.embeddings.patch_embedding": ("patches",),
    "vision_model.pre_layrnorm": ("first_norm",),
    "vision_model.post_layernorm": ("last_norm",),
    "visual_projection": ("projection",),
    "vision_model.encoder.layers.*.layer_norm1": ("norm_1",),
    "vision_model.encoder.layers.*.self_attn.q_proj": ("query",),
    "vision_model.encoder.layers.*.self_attn.k_proj": ("key",),
    "vision_model.encoder.layers.*.self_attn.v_proj": ("value",),
    "vision_model.encoder.layers.*.self_attn.out_proj": ("out",),
    "vision_model.encoder.layers.*.layer_norm2": ("norm_2",),
    "vision_model.encoder.layers.*.mlp.fc1": ("up",),
    "vision_model.encoder.layers.*.mlp.fc2": ("down",),
}
"""Names of tensors, without "weight" and "bias" and with * for the layer; and the names here, of
which there are several where a program has joined them."""

_UNUSED = re.compile(
    r"(embeddings\.)?mask_token|text_model\..*|text_projection\.weight|logit_scale"
    r"|vision_model\.embeddings\.position_ids"
)
"""Tensors that only training needs, and the half of CLIP that reads texts."""


class Architecture(NamedTuple):
    """What a family of networks has in common, which its files do not state."""

    name: str
    """In sentences: "DINOv2"."""
    model_types: tuple[str, ...]
    """Of transformers' `config.json`."""
    nested: str
    """The object of `config.json` that describes the network where it is one of several."""
    options: Mapping[str, Any]
    """Of a `VisionTransformer`, the same for the whole family."""


class Network(NamedTuple):
    """A vision transformer of a file."""

    module: VisionTransformer
    params: dict[str, Any]
    """The collection "params", on the host, float32; "positions" are as the file has them."""
    digest: str
    """SHA-256 of all tensors, and of the options that they do not show."""
    grid: int
    """Patches along a side of the images that the positions are for."""


def read_network(path: Path, architecture: Architecture) -> Network:
    """The network of a file, or of a folder of the library transformers.

    Args:
        path: a `.safetensors`; a file of PyTorch (`.pth`, `.pt`, `.bin`), which is read without
            running it; or a folder with `config.json` and one of `model.safetensors`, its index, or
            `pytorch_model.bin`.
        architecture: what it has to be.

    Raises:
        WeightsError: the file is missing or damaged; its pickle names what no dict of tensors
            needs; a tensor is missing, unknown, not finite or of another shape; it is of another
            architecture.
    """
    arrays, options = _opened(path, architecture)
    arrays, unused = _renamed(arrays)
    sizes = _sizes(path, architecture, arrays)
    heads = options.pop("heads", sizes["width"] / _HEAD)
    if heads != int(heads) or heads < 1 or sizes["width"] % heads:
        raise WeightsError(
            f"{path} has {sizes['width']} channels and {heads:g} heads; the number of heads has to"
            " divide that of the channels; the config.json of a folder states it"
        )
    module = VisionTransformer(**sizes, heads=int(heads), **{**architecture.options, **options})
    tokens = arrays["positions"].shape[0]
    grid = math.isqrt(tokens - 1)
    if grid**2 != tokens - 1:
        raise WeightsError(
            f"{path} has {tokens} positions; they have to be one for the class and a square number"
            " of patches"
        )
    try:
        ordered = match_arrays(_expected(module, grid), arrays, unused)
    except WeightsError as error:
        raise WeightsError(f"{path} is not a {architecture.name}: {error}") from error
    return _loaded(path, module, ordered, grid)


def _opened(path: Path, architecture: Architecture) -> tuple[dict[str, LazyArray], dict[str, Any]]:
    """The tensors, and what `config.json` states beside them."""
    if path.is_dir():
        options = _options(path / "config.json", architecture)
        for name, read in _FILES.items():
            if (path / name).exists():
                return read(path / name), options
        raise WeightsError(f"{path} has no file of weights: {', '.join(_FILES)}")
    read = _FILES["model.safetensors" if path.suffix == ".safetensors" else "pytorch_model.bin"]
    return read(path), {}


def _options(path: Path, architecture: Architecture) -> dict[str, Any]:
    try:
        values = read_json(path)
    except JsonFileError as error:
        raise WeightsError(str(error)) from error
    kind = values.get("model_type")
    if kind not in architecture.model_types:
        types = " or ".join(map(repr, architecture.model_types))
        raise WeightsError(
            f"{path} has the model_type {kind!r}; that of a {architecture.name} is {types}"
        )
    inner = values.get(architecture.nested, values)
    values = inner if isinstance(inner, dict) else values
    options: dict[str, Any] = {}
    for field, name, wanted in (
        ("num_attention_heads", "heads", int),
        ("hidden_act", "activation", str),
        ("layer_norm_eps", "epsilon", float),
    ):
        if field in values:
            if type(values[field]) is not wanted:
                raise WeightsError(
                    f"{path} has the {field} {values[field]!r}; it has to be of type"
                    f" {wanted.__name__}"
                )
            options[name] = values[field]
    if options.get("activation", "gelu") not in ("gelu", "quick_gelu"):
        raise WeightsError(
            f"{path} has the hidden_act {options['activation']!r}; it has to be 'gelu' or"
            " 'quick_gelu'"
        )
    return options


def _renamed(arrays: Mapping[str, LazyArray]) -> tuple[dict[str, LazyArray], list[str]]:
    """The tensors by the names and in the layouts of here, and the names that are unknown."""
    renamed: dict[str, LazyArray] = {}
    unused = []
    for name, array in arrays.items():
        if _UNUSED.fullmatch(name):
            continue
        stem, _, leaf = name.rpartition(".")
        if leaf not in ("weight", "bias"):
            stem, leaf = name, ""
        layer = re.search(r"\.(\d{1,4})\.", stem)
        targets = _NAMES.get(re.sub(r"\.\d{1,4}\.", ".*.", stem, count=1))
        if targets is None:
            unused.append(name)
            continue
        prefix = f"blocks/{int(layer[1])}/" if layer else ""
        for part, target in enumerate(targets):
            path = prefix + target + _leaf(target, leaf)
            renamed[path] = _part(array, part, len(targets), path)
    return renamed, unused


def _leaf(target: str, leaf: str) -> str:
    if leaf == "bias":
        return "/bias"
    if target in ("class_token", "positions", "scale_1", "scale_2"):
        return ""
    return "/scale" if "norm" in target else "/kernel"


def _part(array: LazyArray, part: int, parts: int, path: str) -> LazyArray:
    """One of the parts that a program has joined, in Flax's layout."""

    def moved(values: np.ndarray) -> np.ndarray:
        if path.endswith("/kernel"):  # [out, in, *pixels] to [*pixels, in, out]
            values = np.moveaxis(values, (1, 0), (-2, -1)) if values.ndim > 1 else values
        elif path in ("class_token", "positions"):  # transformers' DINOv2 has leading axes of 1
            values = values.reshape(-1, values.shape[-1])
            values = values[0] if path == "class_token" and len(values) == 1 else values
        return values

    def cut(values: np.ndarray) -> np.ndarray:
        size = values.shape[0] // parts
        return values[part * size : (part + 1) * size] if parts > 1 else values

    if not array.shape or 0 in array.shape:
        return array
    # The shape without reading: of an array that takes no memory.
    empty = np.broadcast_to(np.float32(0), array.shape)
    return LazyArray(moved(cut(empty)).shape, lambda: moved(cut(array.read())))


def _sizes(
    path: Path, architecture: Architecture, arrays: Mapping[str, LazyArray]
) -> dict[str, Any]:
    """Of the network, which its tensors have."""
    names = ("patches/kernel", "positions", "blocks/0/up/kernel")
    shapes = [arrays[name].shape for name in names if name in arrays]
    if [len(shape) for shape in shapes] != [4, 2, 2] or any(0 in shape for shape in shapes):
        raise WeightsError(
            f"{path} is not a {architecture.name}: it has no patches, positions and blocks of a"
            " vision transformer under any of the names that are known"
        )
    (patch, _, _, width), _, (_, hidden) = shapes
    layers = {int(name.split("/")[1]) for name in arrays if name.startswith("blocks/")}
    projection = arrays.get("projection/kernel")
    return {
        "patch": patch,
        "width": width,
        "depth": len(layers),
        "hidden": hidden,
        "gated": "blocks/0/gate/kernel" in arrays,
        "projection": 0 if projection is None else projection.shape[-1],
    }


@functools.cache
def _shapes(module: VisionTransformer, grid: int) -> dict[str, tuple[int, ...]]:
    """Of the parameters, those of the blocks with an axis of layers."""
    side = module.patch * grid
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    flat = flatten_dict(variables["params"], sep="/")
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def _expected(module: VisionTransformer, grid: int) -> dict[str, tuple[int, ...]]:
    """The same, layer by layer."""
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in _shapes(module, grid).items():
        first, _, rest = name.partition("/")
        if first == "blocks":
            expected |= {f"blocks/{i}/{rest}": shape[1:] for i in range(module.depth)}
        else:
            expected[name] = shape
    return expected


def _loaded(
    path: Path, module: VisionTransformer, arrays: Mapping[str, LazyArray], grid: int
) -> Network:
    """Reads the arrays, one leaf of the parameters after the other."""

    def read(name: str) -> np.ndarray:
        values = np.asarray(arrays[name].read(), np.float32)
        if not np.isfinite(values).all():
            raise WeightsError(f"{path} is damaged: {name} is not finite everywhere")
        return values

    flat, digests = {}, [json.dumps([module.heads, module.activation, module.epsilon])]
    for name in _shapes(module, grid):
        first, _, rest = name.partition("/")
        if first == "blocks":
            flat[name] = np.stack([read(f"blocks/{i}/{rest}") for i in range(module.depth)])
        else:
            flat[name] = read(name)
        digests.append(arrays_digest({name: flat[name]}))
    digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return Network(module, unflatten_dict(flat, sep="/"), digest, grid)
