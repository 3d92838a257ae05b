"""Options of diffusers' `UNet2DModel` as those of this library's `UNet`, and back."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ddpm_jax.models import UNet
from ddpm_jax.weights.weights import WeightsError, multiplier

__all__ = ["config_of_network", "network_of_config"]

_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
"""Every key of a configuration with the value that it has where it is missing, as of 0.42.1."""

_OF_AVERAGES = {
    *("decay", "min_decay", "optimization_step", "update_after_step"),
    *("use_ema_warmup", "inv_gamma", "power"),
}
"""Keys that `EMAModel.save_pretrained` adds, of how the average was taken."""

_WANTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "center_input_sample": ((False,), "images of [0, 1] at the input are not supported"),
    "time_embedding_type": (("positional",), "Fourier or learned times are not supported"),
    "mid_block_type": (("UNetMidBlock2D",), "a network without middle blocks is not supported"),
    "mid_block_scale_factor": ((1,), "middle blocks with a scale are not supported"),
    "downsample_padding": ((0, 1), "it has to be 0 or 1"),
    "downsample_type": (("conv", "resnet", None), "it has to be 'conv' or 'resnet'"),
    "upsample_type": (("conv", "resnet", None), "it has to be 'conv' or 'resnet'"),
    "act_fn": (("silu", "swish"), "activations other than 'silu' are not supported"),
    "resnet_time_scale_shift": (("default", "scale_shift"), "spatial norms are not supported"),
    "add_attention": ((True, False), "it has to be true or false"),
    "flip_sin_to_cos": ((True, False), "it has to be true or false"),
    "class_embed_type": ((None,), "classes come from a table alone, see num_class_embeds"),
}
"""Allowed values of keys, and the text of the error for others."""

_Resampling = Literal["convolution", "residual"]
_BLOCKS: dict[str, tuple[bool, _Resampling | None]] = {
    "DownBlock2D": (False, "convolution"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "residual"),
    "UpBlock2D": (False, "convolution"),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, "residual"),
}
"""Whether a block has attention, and how it resamples; None: as `*sample_type` says."""
_RESAMPLING: dict[str | None, _Resampling] = {
    "conv": "convolution",
    "resnet": "residual",
    None: "convolution",
}
_OTHER_BLOCKS = (
    ("CrossAttn", "it attends to a text, which needs a text encoder"),
    ("Skip", "it passes images on beside the features, by FIR filters of score-based networks"),
    ("Encoder", "it is a part of an autoencoder"),
    ("Decoder", "it is a part of an autoencoder"),
    ("K", "it is a part of an upscaler, with norms of the time's own"),
)


def network_of_config(
    config: Mapping[str, Any], where: str, image_size: int | tuple[int, int] | None = None
) -> tuple[UNet, tuple[int, int, int]]:
    """The network of a `config.json`, and the (height, width, channel) of its images.

    Args:
        config: keys of `UNet2DModel` that are missing have its defaults.
        where: the file, for error sentences.
        image_size: in the place of the config's `sample_size`.

    Raises:
        WeightsError: a key that is unknown, or has a value that this network cannot have.
    """
    values = _checked(config, where)

    def refuse(key: str, why: str) -> WeightsError:
        value = image_size if key == "image_size" else values[key]
        return WeightsError(f"{where}: {key} is {value!r}; {why}")

    widths = _counts(values, "block_out_channels", refuse)
    height, width = _image_size(image_size, values, len(widths), refuse)
    in_channels, out_channels = (_count(values, f"{way}_channels", refuse) for way in ("in", "out"))
    if out_channels not in (in_channels, 2 * in_channels):
        raise refuse(
            "out_channels",
            f"it has to be in_channels, {in_channels}, or twice that with a variance",
        )
    channels, groups = widths[0], _count(values, "norm_num_groups", refuse)
    if channels % 2 or channels < 4:
        raise refuse("block_out_channels", "the first has to be even, and 4 or more")
    if any(other % groups for other in widths):
        raise refuse("block_out_channels", f"norm_num_groups, {groups}, has to divide each of them")
    if values["time_embedding_dim"] not in (None, 4 * channels):
        raise refuse("time_embedding_dim", f"it has to be 4 times the first width, {4 * channels}")
    if channels // 2 <= _number(values, "freq_shift", refuse):
        raise refuse("freq_shift", f"it has to be below half of the first width, {channels // 2}")
    if _number(values, "norm_eps", refuse) == 0.0:
        raise refuse("norm_eps", "it has to be positive")
    if _number(values, "dropout", refuse) >= 1.0:
        raise refuse("dropout", "it has to be below 1")
    down = _levels(values, "down", len(widths), refuse)
    up = _levels(values, "up", len(widths), refuse)[::-1]
    attends, up_attends = (
        tuple(level for level, (attention, _) in enumerate(way) if attention) for way in (down, up)
    )
    _check_heads(values, widths, {*attends, *up_attends}, refuse)
    down_resampling, up_resampling = (tuple(how for _, how in way) for way in (down, up))
    num_classes = values["num_class_embeds"] or 0
    if num_classes:
        num_classes = _count(values, "num_class_embeds", refuse)
    scale_shift = values["resnet_time_scale_shift"] == "scale_shift"
    network = UNet(
        channels=channels,
        multipliers=tuple(multiplier(channels, other) for other in widths),
        num_blocks=_count(values, "layers_per_block", refuse),
        attention_resolutions=(),
        attention_levels=attends,
        up_attention_levels=None if up_attends == attends else up_attends,
        middle_attention=bool(values["add_attention"]),
        head_channels=values["attention_head_dim"],
        norm_groups=groups,
        norm_epsilon=_number(values, "norm_eps", refuse),
        scale_shift=scale_shift,
        resampling=_same(down_resampling),
        up_resampling=None if up_resampling == down_resampling else _same(up_resampling),
        symmetric_padding=values["downsample_padding"] == 1,
        cosine_first=bool(values["flip_sin_to_cos"]),
        frequency_shift=_number(values, "freq_shift", refuse),
        dropout=_number(values, "dropout", refuse),
        num_classes=num_classes,
        null_class=num_classes == 0,
        learned_variance=out_channels == 2 * in_channels,
        interpolation_range="symmetric" if out_channels == 2 * in_channels else "unit",
        **_middle_norm(values, widths[-1], scale_shift=scale_shift, refuse=refuse),
    )
    return network, (height, width, in_channels)


_Refuse = Callable[[str, str], WeightsError]


def _checked(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All keys with their values, if each is known, or is null: an option that is off."""
    given = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key not in _OF_AVERAGES
    }
    unknown = [key for key, value in given.items() if key not in _DEFAULTS and value is not None]
    if unknown:
        key = unknown[0]
        raise WeightsError(
            f"{where}: {key} is {given[key]!r}; this option of UNet2DModel is not known here"
        )
    values = _DEFAULTS | {key: value for key, value in given.items() if key in _DEFAULTS}
    for key, (accepted, why) in _WANTED.items():
        if values[key] not in accepted:
            raise WeightsError(f"{where}: {key} is {values[key]!r}; {why}")
    return values


def _count(values: Mapping[str, Any], key: str, refuse: _Refuse) -> int:
    value = values[key]
    if type(value) is not int or not 0 < value < 2**31:
        raise refuse(key, "it has to be a whole number, 1 or more")
    return value


def _counts(values: Mapping[str, Any], key: str, refuse: _Refuse) -> list[int]:
    value = values[key]
    if not isinstance(value, list | tuple) or not value:
        raise refuse(key, "it has to be a list of whole numbers")
    return [_count({key: item}, key, refuse) for item in value]


def _number(values: Mapping[str, Any], key: str, refuse: _Refuse) -> float:
    value = values[key]
    if type(value) not in (int, float) or not 0.0 <= value < math.inf:
        raise refuse(key, "it has to be a number, 0 or more")
    return float(value)


def _image_size(
    image_size: int | tuple[int, int] | None,
    values: Mapping[str, Any],
    levels: int,
    refuse: _Refuse,
) -> tuple[int, int]:
    size: Any = image_size or values["sample_size"]
    if size is None:
        raise refuse("sample_size", "give the images' size as image_size")
    sizes = [size, size] if isinstance(size, int) else size
    height_and_width = _counts({"sample_size": sizes}, "sample_size", refuse)
    factor = 2 ** (levels - 1)
    if len(height_and_width) != 2 or any(side % factor for side in height_and_width):
        raise refuse(
            "sample_size" if image_size is None else "image_size",
            f"height and width have to be multiples of {factor} for a network of {levels} levels",
        )
    height, width = height_and_width
    return height, width


def _levels(
    values: Mapping[str, Any], way: str, levels: int, refuse: _Refuse
) -> list[tuple[bool, _Resampling]]:
    """Of each block of one way: whether it has attention, and how it changes the resolution."""
    key = f"{way}_block_types"
    names = values[key]
    if not isinstance(names, list | tuple) or len(names) != levels:
        raise refuse(key, f"it has to have {levels} entries, as block_out_channels has")
    blocks = []
    for name in names:
        kind = str(name).removeprefix("UNetRes")  # as they were called at first
        if kind not in _BLOCKS or way not in kind.lower():
            reasons = (
                why for part, why in _OTHER_BLOCKS if kind.removeprefix("Attn").find(part) >= 0
            )
            raise refuse(key, f"{name} is not supported: {next(reasons, 'it is not known here')}")
        attention, how = _BLOCKS[kind]
        blocks.append((attention, how or _RESAMPLING[values[f"{way}sample_type"]]))
    return blocks


def _check_heads(
    values: Mapping[str, Any], widths: list[int], attends: set[int], refuse: _Refuse
) -> None:
    """All heads together are as wide as their level."""
    if values["attention_head_dim"] is None:
        return
    head = _count(values, "attention_head_dim", refuse)
    if values["add_attention"]:
        attends = attends | {len(widths) - 1}
    for level in sorted(attends):
        if widths[level] % head:
            raise refuse("attention_head_dim", f"it has to divide the width {widths[level]}")


def _middle_norm(
    values: Mapping[str, Any], width: int, *, scale_shift: bool, refuse: _Refuse
) -> dict[str, Any]:
    """The middle attention's norm, which diffusers leaves out beside scales and shifts."""
    if not values["add_attention"]:
        return {}
    groups = values["attn_norm_num_groups"]
    if groups is None and scale_shift:
        return {"middle_norm_groups": 0}
    if groups is None or groups == values["norm_num_groups"]:
        return {}
    if width % _count(values, "attn_norm_num_groups", refuse):
        raise refuse("attn_norm_num_groups", f"it has to divide the width {width}")
    return {"middle_norm_groups": groups}


def _same(entries: tuple[Any, ...]) -> Any:
    """One for all of them, where they are the same."""
    return entries[0] if len(set(entries)) == 1 else entries


def config_of_network(network: Any, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The `config.json` of a network, every key of `UNet2DModel` in it.

    Raises:
        WeightsError: `UNet2DModel` has no such network; it names the option.
    """
    if type(network) is not UNet:
        raise WeightsError(
            f"the network is a {type(network).__name__}; diffusers' UNet2DModel is a counterpart of"
            " UNet alone"
        )

    def check(fits: bool, option: str, why: str) -> None:
        if not fits:
            value = getattr(network, option)
            raise WeightsError(f"diffusers cannot express {option}={value!r}: {why}")

    height, width, channels = image_shape
    levels = range(len(network.multipliers))
    widths = [int(network.channels * multiplier) for multiplier in network.multipliers]
    check(widths[0] == network.channels, "multipliers", "the first has to be 1")
    check(network.time_scale == 1.0, "time_scale", "it has to be 1")
    check(network.max_period == 10_000.0, "max_period", "it has to be 10000")
    check(not network.fourier_features, "fourier_features", "its input is x_t alone")
    check(not network.num_classes or not network.null_class, "null_class", "it has to be False")
    check(
        not network.learned_variance or network.interpolation_range == "symmetric",
        "interpolation_range",
        "it has to be 'symmetric'",
    )
    heights = {height // 2**level for level in levels}
    check(
        not network.dropout
        or network.dropout_resolutions is None
        or heights <= set(network.dropout_resolutions),
        "dropout_resolutions",
        "its dropout is everywhere or nowhere",
    )
    down, up = (_attends(network, height, way=way) for way in ("down", "up"))
    attended = {widths[level] for level in levels if down[level] or up[level]}
    attended |= {widths[-1]} if network.middle_attention else set()
    down_types, downsample = _block_types(network, "down", down, check)
    up_types, upsample = _block_types(network, "up", up, check)
    middle_groups = network.middle_norm_groups
    if middle_groups is None and network.scale_shift:
        middle_groups = network.norm_groups
    check(
        middle_groups != 0 or network.scale_shift or not network.middle_attention,
        "middle_norm_groups",
        "its middle attention goes without a norm beside scale_shift alone",
    )
    return _DEFAULTS | {
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": 2 * channels if network.learned_variance else channels,
        "freq_shift": _whole(network.frequency_shift),
        "flip_sin_to_cos": network.cosine_first,
        "down_block_types": down_types,
        "up_block_types": up_types[::-1],
        "block_out_channels": widths,
        "layers_per_block": network.num_blocks,
        "downsample_padding": int(network.symmetric_padding),
        "downsample_type": downsample,
        "upsample_type": upsample,
        "dropout": network.dropout,
        "attention_head_dim": _head_channels(network, attended, check),
        "norm_num_groups": network.norm_groups,
        "attn_norm_num_groups": middle_groups or None,
        "norm_eps": network.norm_epsilon,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "add_attention": network.middle_attention,
        "num_class_embeds": network.num_classes or None,
    }


_Check = Callable[[bool, str, str], None]


def _attends(network: UNet, height: int, *, way: str) -> list[bool]:
    """Of each level, whether its blocks have attention."""
    levels = range(len(network.multipliers))
    if way == "up" and network.up_attention_levels is not None:
        return [level in network.up_attention_levels for level in levels]
    return [
        level in network.attention_levels or height // 2**level in network.attention_resolutions
        for level in levels
    ]


def _block_types(
    network: UNet, way: str, attends: list[bool], check: _Check
) -> tuple[list[str], str]:
    """The kind of each level's block, and the `*sample_type` of those with attention."""
    option = "resampling" if way == "down" or network.up_resampling is None else "up_resampling"
    value = getattr(network, option)
    every = [value] * len(attends) if isinstance(value, str) else [*value]
    resamples = [
        level != (len(attends) - 1 if way == "down" else 0) for level in range(len(attends))
    ]
    check(
        all(how != "plain" for how, here in zip(every, resamples, strict=True) if here),
        option,
        "it has no resampling without parameters",
    )
    needed = {
        how
        for how, here, attention in zip(every, resamples, attends, strict=True)
        if here and attention
    }
    check(len(needed) < 2, option, "its levels with attention all resample in one way")
    name = way.capitalize()
    residual = f"Resnet{name}sampleBlock2D"
    kinds = [
        f"Attn{name}Block2D" if attention else residual if how == "residual" else f"{name}Block2D"
        for how, attention in zip(every, attends, strict=True)
    ]
    return kinds, "resnet" if needed == {"residual"} else "conv"


def _head_channels(network: UNet, widths: set[int], check: _Check) -> int | None:
    """Channels of each head of attention; None for one head as wide as its level."""
    one_width = len(widths) < 2
    check(
        network.up_heads in (None, network.heads) or network.head_channels is not None,
        "up_heads",
        "its heads are the same on both ways",
    )
    if network.head_channels is not None:
        return network.head_channels
    check(
        network.heads == 1 or one_width,
        "heads",
        "its heads are as wide on every level; use head_channels",
    )
    return None if network.heads == 1 or not widths else min(widths) // network.heads


def _whole(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
