"""DINOv2 as a feature network, for FD_DINOv2.

Stein et al. 2023 (https://arxiv.org/abs/2306.04675) found that distances in the space of DINOv2
(Oquab et al. 2023, https://arxiv.org/abs/2304.07193) rank images as people do, where Inception's do
not. The features are those of the class after the last norm. Images become 224 x 224, whatever
their shape, are divided by 255 and normalized by the mean and standard deviation of ImageNet's
channels. Two programs define published numbers, which differ in the resize:

    dgm-eval   PIL's bicubic filter of bytes, which rounds to bytes (Stein et al.).
    edm2       The same filter in floats, neither rounded nor clipped (Karras et al. 2024,
               https://arxiv.org/abs/2312.02696).

Both run Meta's own code for the network. Its table of positions is for 37 x 37 patches, and becomes
one for 16 x 16 by torch's bicubic resize with the scale (16 + 0.1) / 37, so that position i lies at
37 / 16.1 (i + 1/2) - 1/2. The library transformers takes 37 / 16 there; its features are others.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ddpm_jax.evaluation import resizing
from ddpm_jax.evaluation.features import EvaluationError, FeatureNetwork, Features, as_rgb
from ddpm_jax.evaluation.transformer_weights import Architecture, read_network
from ddpm_jax.evaluation.vision_transformer import VisionTransformer, normalized
from ddpm_jax.weights import WeightsError

__all__ = ["DINOv2Resize", "dinov2_network"]

DINOv2Resize = Literal["dgm-eval", "edm2"]
"""The program whose resize of images is used: see `ddpm_jax.evaluation.dinov2`."""

SIDE = 224
OFFSET = 0.1
"""Of the number of patches, in the scale of the table of positions."""
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)

_ARCHITECTURE = Architecture(
    "DINOv2", ("dinov2",), "", {"layer_scale": True, "activation": "gelu", "epsilon": 1e-6}
)
_SIZES = {(384, 12): "ViT-S", (768, 12): "ViT-B", (1024, 24): "ViT-L", (1536, 40): "ViT-g"}
"""By width and depth."""

Images = Float[Array, "batch _ _ _"]


class _Resize(NamedTuple):
    suffix: str
    """What the network's name says of it."""
    sentence: str
    """A part of the network's identity: change this sentence with what it says."""
    resize: Callable[[UInt8[Array, "batch _ _ _"]], Images]


def _in_floats(images: UInt8[Array, "batch _ _ _"]) -> Images:
    return resizing.resize(images.astype(jnp.float32), SIDE, resizing.pil_bicubic)


_RESIZES = {
    "dgm-eval": _Resize(
        "", "PIL bicubic in bytes", functools.partial(resizing.resize_bytes, side=SIDE)
    ),
    "edm2": _Resize(", EDM2's resize", "PIL bicubic in floats", _in_floats),
}


def dinov2_network(
    path: Path,
    *,
    resize: DINOv2Resize = "dgm-eval",
    sharding: jax.sharding.Sharding | None = None,
) -> FeatureNetwork:
    """DINOv2 with the weights of a file; its name has the size, "DINOv2 ViT-L/14".

    Which of the networks of that architecture it is, the name does not say: the identity has the
    SHA-256 of the weights. Networks with register tokens are refused.

    Args:
        path: Meta's `dinov2_vitl14_pretrain.pth` or that of another size; the library
            transformers' folder of such a network, as of `facebook/dinov2-large`, or its
            `.safetensors` alone.
        resize: the program whose resize of images is used, "dgm-eval" or "edm2". The network's name
            and identity say which.
        sharding: placement of the weights, see `inception_network`.

    Returns:
        The feature network, without logits.

    Raises:
        EvaluationError: `resize` is none of these.
        WeightsError: the file is missing, damaged or of another network.

    References:
        Stein et al. 2023, https://arxiv.org/abs/2306.04675
    """
    if resize not in _RESIZES:
        names = ", ".join(map(repr, _RESIZES))
        raise EvaluationError(f"resize is {resize!r}; it has to be one of {names}")
    network = read_network(path, _ARCHITECTURE)
    module = network.module
    if SIDE % module.patch:
        raise WeightsError(
            f"{path} has patches of {module.patch} pixels; those of DINOv2 divide {SIDE}"
        )
    grid = SIDE // module.patch
    params = network.params | {"positions": positions(network.params["positions"], grid)}
    size = _SIZES.get((module.width, module.depth), f"of width {module.width}")
    preparation = _RESIZES[resize]
    about = (
        f"{network.digest} {preparation.sentence} to {SIDE} x {SIDE}, / 255, mean {MEAN}, deviation"
        f" {DEVIATION}, grey repeated to RGB, positions by torch bicubic with offset {OFFSET}"
    )
    return FeatureNetwork(
        name=f"DINOv2 {size}/{module.patch}{preparation.suffix}",
        identity=hashlib.sha256(about.encode()).hexdigest(),
        dim=module.width,
        classes=0,
        apply=jax.tree_util.Partial(
            _compiled(module, resize), jax.device_put({"params": params}, sharding)
        ),
    )


def positions(table: np.ndarray, grid: int) -> np.ndarray:
    """The table of positions for `grid` x `grid` patches; the first row, of the class, is kept.

    Args:
        table: `[1 + patches, width]`.
        grid: patches along a side.
    """
    given = round((len(table) - 1) ** 0.5)
    if given == grid:
        return table
    weights = resizing.torch_bicubic(given, grid, (grid + OFFSET) / given)
    square = table[1:].astype(np.float64).reshape(given, given, -1)
    resized = np.einsum("yh,xw,hwc->yxc", weights, weights, square, optimize=True)
    return np.concatenate([table[:1], resized.reshape(grid * grid, -1).astype(table.dtype)])


@functools.cache
def _compiled(
    module: VisionTransformer, resize: DINOv2Resize
) -> Callable[[Any, jax.Array], Features]:
    @jax.jit
    def features(variables: Any, images: UInt8[Array, "batch height width channel"]) -> Features:
        x = _RESIZES[resize].resize(as_rgb(images)) / 255.0
        pooled: Any = module.apply(variables, normalized(x, MEAN, DEVIATION))
        return Features(pooled)

    return features
