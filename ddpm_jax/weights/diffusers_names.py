"""Names and layouts of diffusers' `UNet2DModel` for the parameters of this library's `UNet`.

    down_0_1/conv_0/kernel                   [height, width, in, out]
    down_blocks.0.resnets.1.conv1.weight     [out, in, height, width]

Levels are counted from the largest images here; diffusers counts the blocks on the way up from the
smallest.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from ddpm_jax.weights.weights import LazyArray

__all__ = ["our_arrays", "their_array", "their_name"]

_PLACES = {
    "input": "conv_in",
    "output_norm": "conv_norm_out",
    "output": "conv_out",
    "time_0": "time_embedding.linear_1",
    "time_1": "time_embedding.linear_2",
    "classes": "class_embedding",
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
_OLD_LAYERS = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
    "norm": "group_norm",
}
"""What the layers of attention were called before version 0.15."""


def their_name(path: str, levels: int) -> str:
    """What diffusers calls the parameter `path`, like "down_0_1/conv_0/kernel"."""
    place, *layers = path.split("/")
    kind = "bias" if layers and layers[-1] == "bias" else "weight"
    inner = "".join(f"{_LAYERS[name]}." for name in layers[:-1])
    return f"{_their_place(place, levels, convolution=not inner)}.{inner}{kind}"


def _their_place(place: str, levels: int, *, convolution: bool) -> str:
    if place in _PLACES:
        return _PLACES[place]
    way, level, what, *rest = place.split("_")
    block = f"{way}_blocks.{int(level) if way == 'down' else levels - 1 - int(level)}"
    if what in ("half", "double"):
        return f"{block}.{way}samplers.0{'.conv' if convolution else ''}"
    return f"{block}.{'attentions' if rest else 'resnets'}.{what}"


def their_array(path: str, value: np.ndarray) -> np.ndarray:
    """A parameter in diffusers' layout: output before input; a shortcut is a convolution there."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    if value.ndim == 2 and path != "classes":
        value = value.T
        return value[:, :, None, None] if path.endswith("shortcut/kernel") else value
    return value


def our_arrays(
    expected: Iterable[str], theirs: Mapping[str, LazyArray], levels: int
) -> tuple[dict[str, LazyArray], list[str]]:
    """The arrays of a file by our names, in our layouts, float32; and keys that were not used.

    Args:
        expected: names of the network's parameters.
        theirs: the file's arrays by their names.
        levels: of the network.
    """
    left = {}
    for name, array in theirs.items():
        new = _new_name(name)
        left[name if new in theirs else new] = (name, array)
    arrays = {}
    for path in expected:
        name = their_name(path, levels)
        if name in left:
            arrays[path] = _ours(path, left.pop(name)[1])
    return arrays, [name for name, _ in left.values()]


def _new_name(name: str) -> str:
    match = re.fullmatch(r"(.*[.]attentions[.]\d+[.])(\w+)[.](weight|bias)", name)
    if match is None or match[2] not in _OLD_LAYERS:
        return name
    return f"{match[1]}{_OLD_LAYERS[match[2]]}.{match[3]}"


def _ours(path: str, array: LazyArray) -> LazyArray:
    axes: tuple[int, ...] = tuple(range(len(array.shape)))
    if path != "classes" and len(axes) in (2, 4):
        axes = (2, 3, 1, 0) if len(axes) == 4 else (1, 0)
    shape = tuple(array.shape[axis] for axis in axes)
    # A dense layer here is a convolution of one pixel there, if it is a shortcut or old attention.
    dense = re.search(r"/(shortcut|query|key|value|output)/kernel$", path) is not None
    if dense and shape[:2] == (1, 1):
        shape = shape[2:]

    def read() -> np.ndarray:
        values = np.asarray(array.read(), np.float32)
        return np.ascontiguousarray(values.transpose(axes)).reshape(shape)

    return LazyArray(shape, read)
