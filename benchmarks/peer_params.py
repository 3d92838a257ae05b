"""This library's parameters in diffusers' network: names and layouts of one and of the other.

    down_0_1/conv_0/kernel   [height, width, in, out]
    down_blocks.0.resnets.1.conv1.weight   [out, in, height, width]

With the settings of `peer_torch.make_network` both networks then compute the same.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

__all__ = ["copy_params"]


def copy_params(params: Mapping[str, Any], network: Any, torch: Any) -> None:
    """Gives diffusers' network the parameters of ours, `{"params": {layer: ...}}`.

    Raises:
        KeyError: a layer that one of them has and the other has not.
    """
    left = dict(network.named_parameters())
    levels = len(network.down_blocks)
    with torch.no_grad():
        for path, leaf in flatten_dict(params["params"], sep="/").items():
            value = np.asarray(leaf)
            target = left.pop(_their_name(path, levels))
            target.copy_(torch.from_numpy(_their_layout(value, target.ndim).copy()))
    if left:
        raise KeyError(f"diffusers' network has more parameters: {', '.join(left)}")


_PLACES = {
    "input": "conv_in",
    "output_norm": "conv_norm_out",
    "output": "conv_out",
    "time_0": "time_embedding.linear_1",
    "time_1": "time_embedding.linear_2",
    "middle_0": "mid_block.resnets.0",
    "middle_1": "mid_block.resnets.1",
    "middle_attention": "mid_block.attentions.0",
}
_LAYERS = {
    "norm_0": "norm1",
    "conv_0": "conv1",
    "time": "time_emb_proj",
    "norm_1": "norm2",
    "conv_1": "conv2",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "output": "to_out.0",
}


def _their_name(path: str, levels: int) -> str:
    """What diffusers calls the parameter `path`, like "down_0_1/conv_0/kernel"."""
    place, *layer, kind = path.split("/")
    inner = "".join(f"{_LAYERS[name]}." for name in layer)
    return f"{_their_place(place, levels)}.{inner}{'bias' if kind == 'bias' else 'weight'}"


def _their_place(place: str, levels: int) -> str:
    if place in _PLACES:
        return _PLACES[place]
    way, level, what, *rest = place.split("_")
    block = int(level) if way == "down" else levels - 1 - int(level)
    match what:
        case "half":
            return f"down_blocks.{block}.downsamplers.0.conv"
        case "double":
            return f"up_blocks.{block}.upsamplers.0.conv"
    return f"{way}_blocks.{block}.{'attentions' if rest else 'resnets'}.{what}"


def _their_layout(value: np.ndarray, ndim: int) -> np.ndarray:
    """Output before input, height and width last; a shortcut is a convolution there."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    if value.ndim == 2:
        value = value.T
        return value[:, :, None, None] if ndim == 4 else value
    return value
