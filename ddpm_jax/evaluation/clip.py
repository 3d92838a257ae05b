"""The image half of CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020), for CMMD.

Images are prepared as by the program of CMMD (Jayasumana et al. 2024,
https://arxiv.org/abs/2401.09603). The largest square in the middle is resized to the size that the
network's positions are for, by PIL's bicubic filter of bytes, which rounds to bytes. Then it is
divided by 255 and normalized by the mean and standard deviation of the channels of CLIP's training
images. The features are the projections that are compared with texts, as the library transformers'
`image_embeds`: they are not scaled to length 1.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, UInt8

from ddpm_jax.evaluation import resizing
from ddpm_jax.evaluation.features import FeatureNetwork, Features, as_rgb
from ddpm_jax.evaluation.transformer_weights import Architecture, read_network
from ddpm_jax.evaluation.vision_transformer import VisionTransformer, normalized
from ddpm_jax.weights import WeightsError

__all__ = ["clip_network"]

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
PREPARATION = (
    "middle square, PIL bicubic in bytes to the size of the positions, / 255, mean"
    f" {MEAN}, deviation {DEVIATION}, grey repeated to RGB"
)
"""A part of the network's identity: change this sentence with what it says."""

_ARCHITECTURE = Architecture(
    "CLIP",
    ("clip", "clip_vision_model"),
    "vision_config",
    {"first_norm": True, "activation": "quick_gelu", "epsilon": 1e-5},
)
_SIZES = {(768, 12): "ViT-B", (1024, 24): "ViT-L"}
"""By width and depth."""


def clip_network(path: Path, *, sharding: jax.sharding.Sharding | None = None) -> FeatureNetwork:
    """The image half of CLIP with the weights of a file; CMMD's is "CLIP ViT-L/14-336".

    Which of the networks of that architecture it is, the name does not say: the identity has the
    SHA-256 of the weights.

    Args:
        path: the library transformers' folder of a CLIP, as of
            `openai/clip-vit-large-patch14-336`, or its `.safetensors` or `.bin` alone; whole or
            with the image half alone.
        sharding: placement of the weights, see `inception_network`.

    Returns:
        The feature network, without logits.

    Raises:
        WeightsError: the file is missing, damaged or of another network.

    References:
        Jayasumana et al. 2024, https://arxiv.org/abs/2401.09603
    """
    network = read_network(path, _ARCHITECTURE)
    module = network.module
    if not module.projection:
        raise WeightsError(
            f"{path} has no projection; CMMD compares what CLIP projects, so that the weights have"
            " to be those of a whole CLIP or of a CLIPVisionModelWithProjection"
        )
    side = module.patch * network.grid
    size = _SIZES.get((module.width, module.depth), f"of width {module.width}")
    return FeatureNetwork(
        name=f"CLIP {size}/{module.patch}" + (f"-{side}" if side != 224 else ""),
        identity=hashlib.sha256(f"{network.digest} {PREPARATION}".encode()).hexdigest(),
        dim=module.projection,
        classes=0,
        apply=jax.tree_util.Partial(
            _compiled(module, side), jax.device_put({"params": network.params}, sharding)
        ),
    )


@functools.cache
def _compiled(module: VisionTransformer, side: int) -> Callable[[Any, jax.Array], Features]:
    @jax.jit
    def features(variables: Any, images: UInt8[Array, "batch height width channel"]) -> Features:
        x = resizing.resize_bytes(_middle_square(as_rgb(images)), side) / 255.0
        pooled: Any = module.apply(variables, normalized(x, MEAN, DEVIATION))
        return Features(pooled)

    return features


def _middle_square(images: Array) -> Array:
    _, height, width, _ = images.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]
