"""What improved-diffusion and guided-diffusion are started with: their flags, and the public files.

A file of these programs holds tensors alone. What they stand for (how many heads an attention has,
the schedule, the size of the images) is in the flags that the programs are started with. Defaults
are theirs (`model_and_diffusion_defaults` of each), and those of the public files are from the two
README files: https://github.com/openai/improved-diffusion, https://github.com/openai/guided-diffusion.
"""

import dataclasses
import math
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from ddpm_jax.weights.weights import Recipe, WeightsError

__all__ = ["CHANNEL_MULT", "CLASSIFIER", "PUBLIC", "REFUSED", "UPSAMPLER", "Flags", "parse_flags"]

CHANNEL_MULT: dict[int, tuple[float, ...]] = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
"""Multipliers of the levels' width by the size of the images, where channel_mult is not given."""

_IMPROVED = "--learn_sigma True --rescale_timesteps True --diffusion_steps 4000"
_IMAGENET = (
    "--learn_sigma True --attention_resolutions 32,16,8 --resblock_updown True"
    " --use_scale_shift_norm True --diffusion_steps 1000 --timestep_respacing 250"
)
_GUIDED = f"{_IMAGENET} --noise_schedule linear --num_channels 256 --num_res_blocks 2"
_BEDROOM = (
    "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 --learn_sigma True"
    " --use_scale_shift_norm False --attention_resolutions 16 --diffusion_steps 1000"
    " --noise_schedule linear --rescale_timesteps False"
)
_LSUN = (
    f"{_GUIDED} --image_size 256 --class_cond False --num_head_channels 64"
    " --timestep_respacing 1000"
)
_CIFAR10 = (
    f"{_IMPROVED} --image_size 32 --num_channels 128 --num_res_blocks 3 --dropout 0.3"
    " --noise_schedule cosine"
)
_IMAGENET_64 = (
    f"{_IMPROVED} --image_size 64 --num_channels 128 --num_res_blocks 3 --noise_schedule cosine"
)

PUBLIC: dict[str, str] = {
    "cifar10_uncond_50M_500K.pt": _CIFAR10,
    "cifar10_uncond_vlb_50M_500K.pt": _CIFAR10,
    "imagenet64_uncond_100M_1500K.pt": _IMAGENET_64,
    "imagenet64_uncond_vlb_100M_1500K.pt": _IMAGENET_64,
    "imagenet64_cond_270M_250K.pt": (
        f"{_IMAGENET_64} --num_channels 192 --class_cond True --rescale_timesteps False"
    ),
    "lsun_uncond_100M_1200K_bs128.pt": _BEDROOM,
    "lsun_uncond_100M_2400K_bs64.pt": _BEDROOM,
    "64x64_diffusion.pt": (
        f"{_IMAGENET} --image_size 64 --class_cond True --dropout 0.1 --noise_schedule cosine"
        " --num_channels 192 --num_head_channels 64 --num_res_blocks 3"
        " --use_new_attention_order True"
    ),
    "128x128_diffusion.pt": f"{_GUIDED} --image_size 128 --class_cond True --num_heads 4",
    "256x256_diffusion.pt": f"{_GUIDED} --image_size 256 --class_cond True --num_head_channels 64",
    "256x256_diffusion_uncond.pt": (
        f"{_GUIDED} --image_size 256 --class_cond False --num_head_channels 64"
    ),
    "512x512_diffusion.pt": f"{_GUIDED} --image_size 512 --class_cond True --num_head_channels 64",
    "lsun_bedroom.pt": f"{_LSUN} --dropout 0.1",
    "lsun_cat.pt": f"{_LSUN} --dropout 0.1",
    "lsun_horse.pt": f"{_LSUN} --dropout 0.1",
    "lsun_horse_nodropout.pt": _LSUN,
}
"""The flags of each public file. `timestep_respacing` is what guided-diffusion's README samples
with: 250 steps on ImageNet, all 1000 on LSUN."""

UPSAMPLER = "a super-resolution network, which takes a small image beside x_t"
CLASSIFIER = "a classifier of noised images, not a denoiser"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("upsample_cond_500K.pt", "64_256_upsampler.pt", "128_512_upsampler.pt"), UPSAMPLER
    ),
    **{f"{side}x{side}_classifier.pt": CLASSIFIER for side in (64, 128, 256, 512)},
}
"""Public files that cannot be opened, and what they are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of their programs; None for what was not given, and what the tensors' shapes tell."""

    image_size: int = 64
    num_channels: int | None = None
    num_res_blocks: int | None = None
    channel_mult: tuple[float, ...] | None = None
    attention_resolutions: tuple[int, ...] | None = None
    num_heads: int = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    use_new_attention_order: bool = False
    use_scale_shift_norm: bool | None = None
    resblock_updown: bool | None = None
    conv_resample: bool | None = None
    class_cond: bool | None = None
    dropout: float = 0.0
    learn_sigma: bool | None = None
    sigma_small: bool = False
    predict_xstart: bool = False
    diffusion_steps: int = 1000
    noise_schedule: str = "linear"
    rescale_timesteps: bool | None = None
    """Their defaults differ: true in improved-diffusion, false in guided-diffusion."""
    timestep_respacing: str = ""
    use_ddim: bool = False
    clip_denoised: bool = True

    def chain(self) -> Recipe:
        """The schedule (`get_named_beta_schedule`): the linear one is scaled by 1000 / T.

        Raises:
            WeightsError: an unknown schedule, or a linear one of so few steps that a beta is 1.
        """
        T = self.diffusion_steps
        if T < 2:
            raise WeightsError(f"--diffusion_steps is {T}; it has to be 2 or more")
        if self.noise_schedule == "cosine":
            return Recipe("cosine", {"num_steps": T})
        if self.noise_schedule != "linear":
            raise WeightsError(
                f"--noise_schedule is {self.noise_schedule!r}; it has to be linear or cosine"
            )
        scale = 1000 / T
        if scale * 0.02 >= 1.0:
            raise WeightsError(
                f"--diffusion_steps is {T}; the linear schedule of T steps ends with the beta"
                " 20 / T, which has to be below 1"
            )
        return Recipe(
            "linear", {"num_steps": T, "beta_min": scale * 1e-4, "beta_max": scale * 0.02}
        )

    def sampler(self) -> Recipe:
        """How `image_sample.py` draws images (`space_timesteps`).

        Raises:
            WeightsError: times that no `spacing` of this library visits.
        """
        steps, spacing = self._steps()
        threshold = Recipe("static_threshold", {}) if self.clip_denoised else None
        arguments = {"steps": steps, "spacing": spacing, "threshold": threshold}
        if self.use_ddim:
            return Recipe("ddim", {"eta": 0.0, **arguments})
        return Recipe("ancestral", arguments)

    def time_scale(self, *, guided: bool, improved: bool) -> float:
        """What a time is multiplied by before the network sees it.

        Args:
            guided: whether the file is known to be guided-diffusion's.
            improved: whether it is known to be improved-diffusion's.

        Raises:
            WeightsError: it depends on which program the file is from, and nothing tells it.
        """
        T, rescaled = self.diffusion_steps, self.rescale_timesteps
        if rescaled is None and T != 1000 and guided == improved:
            raise WeightsError(
                f"--diffusion_steps is {T} and --rescale_timesteps is not given; it has to be, as"
                " it is True by default in improved-diffusion and False in guided-diffusion"
            )
        return 1000.0 / T if rescaled or (rescaled is None and improved) else 1.0

    def _steps(self) -> tuple[int | None, str]:
        T, respacing = self.diffusion_steps, self.timestep_respacing
        if not respacing:
            return None, "linspace"
        digits = respacing.removeprefix("ddim")
        steps = int(digits) if digits.isdecimal() and len(digits) < 10 else 0
        if not 2 <= steps <= T:
            raise WeightsError(
                f"--timestep_respacing is {respacing!r}; it has to be a number of steps from 2 to"
                f" --diffusion_steps, {T}, or ddim and such a number; sections are not supported"
            )
        if respacing == digits:
            return steps, "linspace"
        if len(range(0, T, T // steps)) != steps:
            raise WeightsError(
                f"--timestep_respacing is {respacing!r}; its number has to divide"
                f" --diffusion_steps, {T}"
            )
        return steps, "leading"


def parse_flags(options: str | Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Flags` that are given.

    Args:
        options: flags as on a command line, "--image_size 64 --num_channels 192"; or a mapping of
            them. Flags of training and of the program itself, as --lr and --batch_size, are passed
            over.

    Raises:
        WeightsError: an unknown flag, or a value of the wrong kind, by name.
    """
    pairs = _split(options) if isinstance(options, str) else options
    given = {}
    for name, value in pairs.items():
        if name in _WITHOUT_EFFECT:
            continue
        if name in ("large_size", "small_size"):
            raise WeightsError(f"--{name} is {value}; it is of {UPSAMPLER}, which is not read")
        if name.startswith("classifier_"):
            raise WeightsError(f"--{name} is {value}; there is no guidance by a classifier here")
        if name not in _PARSERS:
            raise WeightsError(
                f"--{name} is not a flag of improved-diffusion or guided-diffusion; they are"
                f" {', '.join(_PARSERS)}"
            )
        parser, what = _PARSERS[name]
        try:
            given[name] = parser(value)
        except (TypeError, ValueError, OverflowError):
            raise WeightsError(f"--{name} is {value!r}; it has to be {what}") from None
    return given


def _split(options: str) -> dict[str, str]:
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise WeightsError(f"options are {options!r}, which have an unclosed quote") from error
    words = [part for word in words for part in (word.split("=", 1) if "--" in word else [word])]
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        raise WeightsError(
            f"options are {options!r}; they have to be pairs such as --image_size 64"
        )
    return {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}


def _count(value: Any) -> int:
    number = int(value)
    if number != float(value) or number < 1 or isinstance(value, bool):
        raise ValueError
    return number


def _count_or_none(value: Any) -> int:
    return -1 if str(value) == "-1" else _count(value)


def _rate(value: Any) -> float:
    if not 0.0 <= float(value) < 1.0:
        raise ValueError
    return float(value)


def _switch(value: Any) -> bool:
    word = str(value).lower()
    if word not in ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"):
        raise ValueError
    return word in ("yes", "true", "t", "y", "1")


def _counts(value: Any) -> tuple[int, ...]:
    return tuple(_count(number) for number in _items(value))


def _multipliers(value: Any) -> tuple[float, ...] | None:
    numbers = tuple(float(number) for number in _items(value))
    if not all(number > 0.0 and math.isfinite(number) for number in numbers):
        raise ValueError
    return numbers or None


def _items(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        return tuple(value.split(",")) if value else ()
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


_Parser = tuple[Callable[[Any], Any], str]
_COUNT: _Parser = (_count, "a whole number of 1 or more")
_OR_NONE: _Parser = (_count_or_none, "a whole number of 1 or more, or -1")
_SWITCH: _Parser = (_switch, "True or False")
_STRING: _Parser = (str, "a string")
_PARSERS: dict[str, _Parser] = {
    "image_size": _COUNT,
    "num_channels": _COUNT,
    "num_res_blocks": _COUNT,
    "channel_mult": (_multipliers, "numbers above 0, as 1,2,3,4"),
    "attention_resolutions": (_counts, "whole numbers, as 32,16,8"),
    "num_heads": _COUNT,
    "num_heads_upsample": _OR_NONE,
    "num_head_channels": _OR_NONE,
    "use_new_attention_order": _SWITCH,
    "use_scale_shift_norm": _SWITCH,
    "resblock_updown": _SWITCH,
    "conv_resample": _SWITCH,
    "class_cond": _SWITCH,
    "dropout": (_rate, "in [0, 1)"),
    "learn_sigma": _SWITCH,
    "sigma_small": _SWITCH,
    "predict_xstart": _SWITCH,
    "diffusion_steps": _COUNT,
    "noise_schedule": _STRING,
    "rescale_timesteps": _SWITCH,
    "timestep_respacing": _STRING,
    "use_ddim": _SWITCH,
    "clip_denoised": _SWITCH,
}
_WITHOUT_EFFECT = {
    *("use_kl", "rescale_learned_sigmas", "use_checkpoint", "use_fp16", "fp16_scale_growth"),
    *("lr", "weight_decay", "lr_anneal_steps", "batch_size", "microbatch", "ema_rate"),
    *("schedule_sampler", "log_interval", "save_interval", "resume_checkpoint", "data_dir"),
    *("model_path", "num_samples"),
}
"""Flags of training, of speed and of the programs: the network and its chain are the same."""
