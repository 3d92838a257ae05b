"""Shapes, names and layouts of the tensors of improved-diffusion's and guided-diffusion's networks.

Blocks are numbered through: `input_blocks.0` is the first convolution, then each level has its
residual blocks (place 0 of a block), with attention (place 1) on some levels, and one block more
that halves the resolution; `output_blocks` goes back from the last level, and what doubles the
resolution has the place behind the last block of a level. Kernels are [out, in, height, width].
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ddpm_jax.models.unet import Resampling
from ddpm_jax.weights.openai_flags import CLASSIFIER, UPSAMPLER, Flags
from ddpm_jax.weights.weights import LazyArray, WeightsError, multiplier

__all__ = ["Heads", "Structure", "our_arrays", "structure_of"]


class Structure(NamedTuple):
    """What the shapes of a file's tensors tell."""

    image_channels: int
    channels: int
    widths: tuple[int, ...]
    """Of each level."""
    num_blocks: int
    attention_levels: tuple[int, ...]
    classes: int
    learned_variance: bool
    scale_shift: bool
    resampling: Resampling

    @property
    def multipliers(self) -> tuple[int | float, ...]:
        """Of `models.UNet`: the widths in units of `channels`."""
        return tuple(multiplier(self.channels, width) for width in self.widths)


def structure_of(file: Path, tensors: Mapping[str, LazyArray]) -> Structure:
    """What the shapes of a file tell; `match_arrays` has the last word on each tensor.

    Raises:
        WeightsError: it is of another network.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) != axes or 0 in tensors[name].shape:
            raise WeightsError(
                f"{file} is not a U-Net of improved-diffusion or guided-diffusion: it has no tensor"
                f" {name} of {axes} axes{_other_kind(tensors)}"
            )
        return tensors[name].shape

    channels = shape("time_embed.0.weight", 2)[1]
    image_channels = shape("input_blocks.0.0.weight", 4)[1]
    blocks = _indices("input_blocks", tensors)
    shape("output_blocks.0.0.in_layers.2.weight", 4)
    outputs = shape("out.2.weight", 4)[0]
    if image_channels == 6 and outputs in (3, 6):
        raise WeightsError(f"{file} is {UPSAMPLER}; only denoisers of images are read")
    num_blocks, resampling = _blocks(tensors, blocks)
    levels, rest = divmod(blocks[-1] + 1, num_blocks + 1)
    if rest or num_blocks < 1:
        raise WeightsError(
            f"{file} is not a U-Net of improved-diffusion or guided-diffusion: its {blocks[-1] + 1}"
            f" input_blocks are no levels of {num_blocks} blocks each"
        )
    firsts = [1 + level * (num_blocks + 1) for level in range(levels)]
    widths = [shape(f"input_blocks.{first}.0.in_layers.2.weight", 4)[0] for first in firsts]
    label_emb = "label_emb.weight"
    return Structure(
        image_channels=image_channels,
        channels=channels,
        widths=tuple(widths),
        num_blocks=num_blocks,
        attention_levels=tuple(
            level
            for level, first in enumerate(firsts)
            if f"input_blocks.{first}.1.qkv.weight" in tensors
        ),
        classes=shape(label_emb, 2)[0] if label_emb in tensors else 0,
        learned_variance=outputs == 2 * image_channels,
        scale_shift=shape("input_blocks.1.0.emb_layers.1.weight", 2)[0] == 2 * widths[0],
        resampling=resampling,
    )


def _other_kind(names: Iterable[str]) -> str:
    """The end of a sentence, where it is known what the file is."""
    if "conv_in.weight" in names:
        return "; it is of diffusers, whose folders from_diffusers reads"
    if "time_embed.0.weight" in names and not _indices("output_blocks", names):
        return f"; it is {CLASSIFIER}"
    return ""


def _indices(blocks: str, names: Iterable[str]) -> list[int]:
    matches = (re.match(rf"{blocks}\.(\d{{1,3}})\.", name) for name in names)
    return sorted({int(match[1]) for match in matches if match})


def _blocks(names: Iterable[str], blocks: list[int]) -> tuple[int, Resampling]:
    """How many residual blocks a level has on the way down, and what halves the resolution.

    What halves it stands behind the blocks of the first level: a convolution has a name of its own,
    an average no tensors, and a residual block looks like any other, but what doubles the
    resolution then stands in one place with the last block of its level.
    """
    ops = [index for index in blocks if f"input_blocks.{index}.0.op.weight" in names]
    if ops:
        return ops[0] - 1, "convolution"
    gaps = sorted(set(range(blocks[-1])) - set(blocks))
    if gaps:
        return gaps[0] - 1, "plain"
    for index in _indices("output_blocks", names):
        if any(f"output_blocks.{index}.{place}.in_layers.0.weight" in names for place in (1, 2)):
            return index, "residual"
    return blocks[-1], "convolution"  # one level, nothing halves it


class Heads(NamedTuple):
    """How the channels of attentions are split."""

    down: int
    up: int
    channels: int | None
    """Of each head, in place of their number."""
    parts_first: bool
    """Whether queries, keys and values stand one after the other, each with all heads
    (`use_new_attention_order`); each head has its own three otherwise."""

    @classmethod
    def of(cls, flags: Flags) -> "Heads":
        """In flags -1 stands for what is not given."""
        return cls(
            down=flags.num_heads,
            up=flags.num_heads if flags.num_heads_upsample < 0 else flags.num_heads_upsample,
            channels=None if flags.num_head_channels < 0 else flags.num_head_channels,
            parts_first=flags.use_new_attention_order,
        )

    def divisors(self) -> dict[str, int]:
        """What divides the channels of each attention, by the names of the flags."""
        if self.channels is not None:
            return {"num_head_channels": self.channels}
        return {"num_heads": self.down, "num_heads_upsample": self.up}


def our_arrays(
    tensors: Mapping[str, LazyArray], structure: Structure, heads: Heads
) -> tuple[dict[str, LazyArray], list[str]]:
    """The tensors in this library's names and layouts, float32, and the names without a place."""
    arrays: dict[str, LazyArray] = {}
    unused = dict.fromkeys(tensors)
    for layer in _layers(structure):
        for theirs, ours, move in _leaves(layer, heads):
            if theirs in tensors:
                unused.pop(theirs, None)
                arrays[ours] = move(tensors[theirs])
    return arrays, [*unused]


class _Layer(NamedTuple):
    """A layer, by our name and by theirs."""

    ours: str
    theirs: str
    kind: Literal["norm", "dense", "conv", "qkv", "table"]
    up: bool = False
    """Whether it is on the way up."""


_Kinds = tuple[tuple[str, str, Literal["norm", "dense", "conv", "qkv"]], ...]
_OF_BLOCK: _Kinds = (
    ("norm_0", "in_layers.0", "norm"),
    ("conv_0", "in_layers.2", "conv"),
    ("time", "emb_layers.1", "dense"),
    ("norm_1", "out_layers.0", "norm"),
    ("conv_1", "out_layers.3", "conv"),
    ("shortcut", "skip_connection", "dense"),
)
_OF_ATTENTION: _Kinds = (
    ("norm", "norm", "norm"),
    ("", "qkv", "qkv"),
    ("output", "proj_out", "dense"),
)


def _layers(structure: Structure) -> Iterator[_Layer]:
    """All that such a network may have. Shortcuts, attention and classes are not everywhere."""
    last, stride = len(structure.widths) - 1, structure.num_blocks + 1

    def block(ours: str, theirs: str) -> Iterator[_Layer]:
        for mine, their, kind in _OF_BLOCK:
            yield _Layer(f"{ours}/{mine}", f"{theirs}.{their}", kind)

    def attention(ours: str, theirs: str, *, up: bool = False) -> Iterator[_Layer]:
        for mine, their, kind in _OF_ATTENTION:
            yield _Layer(f"{ours}/{mine}".rstrip("/"), f"{theirs}.{their}", kind, up)

    yield _Layer("time_0", "time_embed.0", "dense")
    yield _Layer("time_1", "time_embed.2", "dense")
    yield _Layer("classes", "label_emb", "table")
    yield _Layer("input", "input_blocks.0.0", "conv")
    for level in range(last + 1):
        for index in range(structure.num_blocks):
            ours, theirs = f"down_{level}_{index}", f"input_blocks.{1 + level * stride + index}"
            yield from block(ours, f"{theirs}.0")
            yield from attention(f"{ours}_attention", f"{theirs}.1")
        if level < last:
            ours, theirs = f"down_{level}_half", f"input_blocks.{(level + 1) * stride}.0"
            yield _Layer(ours, f"{theirs}.op", "conv")
            yield from block(ours, theirs)
    yield from block("middle_0", "middle_block.0")
    yield from attention("middle_attention", "middle_block.1")
    yield from block("middle_1", "middle_block.2")
    for level in range(last + 1):
        first = (last - level) * stride
        for index in range(stride):
            ours, theirs = f"up_{level}_{index}", f"output_blocks.{first + index}"
            yield from block(ours, f"{theirs}.0")
            yield from attention(f"{ours}_attention", f"{theirs}.1", up=True)
        if level > 0:
            place = 2 if level in structure.attention_levels else 1
            ours, theirs = f"up_{level}_double", f"output_blocks.{first + stride - 1}.{place}"
            yield _Layer(ours, f"{theirs}.conv", "conv")
            yield from block(ours, theirs)
    yield _Layer("output_norm", "out.0", "norm")
    yield _Layer("output", "out.2", "conv")


_Move = Callable[[LazyArray], LazyArray]


def _leaves(layer: _Layer, heads: Heads) -> Iterator[tuple[str, str, _Move]]:
    """Their name of each tensor, ours of what is made of it, and how."""
    weight, bias = f"{layer.theirs}.weight", f"{layer.theirs}.bias"
    match layer.kind:
        case "table":
            yield weight, layer.ours, _unchanged
        case "norm":
            yield weight, f"{layer.ours}/scale", _unchanged
            yield bias, f"{layer.ours}/bias", _unchanged
        case "qkv":
            for index, name in enumerate(("query", "key", "value")):
                part = functools.partial(_part, index=index, heads=heads, up=layer.up)
                yield weight, f"{layer.ours}/{name}/kernel", functools.partial(_then_dense, part)
                yield bias, f"{layer.ours}/{name}/bias", part
        case kind:
            yield weight, f"{layer.ours}/kernel", _dense if kind == "dense" else _convolution
            yield bias, f"{layer.ours}/bias", _unchanged


def _moved(
    tensor: LazyArray, shape: tuple[int, ...], move: Callable[[np.ndarray], np.ndarray]
) -> LazyArray:
    def read() -> np.ndarray:
        return np.ascontiguousarray(move(tensor.read().astype(np.float32, copy=False)))

    return LazyArray(shape, read)


def _unchanged(tensor: LazyArray) -> LazyArray:
    return _moved(tensor, tensor.shape, lambda array: array)


def _convolution(tensor: LazyArray) -> LazyArray:
    """[out, in, height, width] to [height, width, in, out]."""
    if len(tensor.shape) != 4:
        return tensor  # which `match_arrays` refuses by its shape
    out, channels, *window = tensor.shape
    return _moved(tensor, (*window, channels, out), lambda array: array.transpose(2, 3, 1, 0))


def _dense(tensor: LazyArray) -> LazyArray:
    """[out, in], and perhaps axes of one pixel, to [in, out]."""
    if len(tensor.shape) < 2 or any(side != 1 for side in tensor.shape[2:]):
        return tensor
    out, channels = tensor.shape[:2]
    return _moved(tensor, (channels, out), lambda array: array.reshape(out, channels).T)


def _then_dense(move: _Move, tensor: LazyArray) -> LazyArray:
    return _dense(move(tensor))


def _part(tensor: LazyArray, *, index: int, heads: Heads, up: bool) -> LazyArray:
    """Queries, keys or values, along the first axis."""
    width, rest = divmod(tensor.shape[0] if tensor.shape else 0, 3)
    by_head = width // heads.channels if heads.channels else heads.up if up else heads.down
    if rest or by_head < 1 or width % by_head != 0:
        return tensor
    others = tensor.shape[1:]

    def part(qkv: np.ndarray) -> np.ndarray:
        if heads.parts_first:
            return qkv.reshape(3, width, *others)[index]
        return qkv.reshape(by_head, 3, -1, *others)[:, index].reshape(width, *others)

    return _moved(tensor, (width, *others), part)
