"""Reads networks of improved-diffusion and guided-diffusion: a `.pt` file and its flags.

Both programs save the state dict of the class `UNetModel`, which guided-diffusion extends:
https://github.com/openai/improved-diffusion (Nichol & Dhariwal 2021) and
https://github.com/openai/guided-diffusion (Dhariwal & Nichol 2021). The shapes of the tensors show
how wide and deep the network is, where it has attention, and some options. `openai_flags` reads the
rest from the file's public name, or from the flags of its authors' command.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_jax.files import file_sha256
from ddpm_jax.models import UNet
from ddpm_jax.reverse import Variance
from ddpm_jax.weights.openai_flags import CHANNEL_MULT, PUBLIC, REFUSED, Flags, parse_flags
from ddpm_jax.weights.openai_tensors import Heads, Structure, our_arrays, structure_of
from ddpm_jax.weights.torch_files import open_state_dict
from ddpm_jax.weights.weights import LazyArray, Weights, WeightsError, expected_shapes, match_arrays

__all__ = ["from_openai"]

_GROUPS, _EPSILON = 32, 1e-5
"""Groups and epsilon of all their group norms."""


def from_openai(
    file: str | Path,
    *,
    raw: str | Path | None = None,
    options: str | Mapping[str, Any] | None = None,
) -> Weights:
    """Reads a network of improved-diffusion or guided-diffusion.

    Tensors of any dtype are read as float32.

    Args:
        file: path of a file that their programs wrote: the average, such as
            "ema_0.9999_500000.pt", or a public file, such as "256x256_diffusion.pt".
        raw: path of the parameters of the last training step, such as "model500000.pt".
        options: the flags that the network was trained with, as a string
            ("--image_size 64 --num_channels 192 --learn_sigma True") or a mapping. Other flags have
            their programs' defaults. For a public file with its public name the flags are known;
            `options` may change them, as in "--timestep_respacing ddim50 --use_ddim True".

    Returns:
        The network, its settings and its arrays, which are read when they are needed.

    Raises:
        WeightsError: there are no options and the file name is not a public one; the file is
            missing, damaged, or of another network (an upsampler, a classifier); an option is
            unknown or contradicts the file; or the names of the tensors do not fit the network.

    Example:
        >>> from ddpm_jax import weights
        >>> weights.from_openai("64_256_upsampler.pt")
        Traceback (most recent call last):
            ...
        ddpm_jax.weights.weights.WeightsError: 64_256_upsampler.pt is a super-resolution network, \
which takes a small image beside x_t; only denoisers of images are read
    """
    file, raw = Path(file), None if raw is None else Path(raw)
    given = _given(file, options)
    flags = Flags(**given)
    chain, sampler = flags.chain(), flags.sampler()
    tensors = open_state_dict(file)
    structure = structure_of(file, tensors)
    _check_flags(file, flags, structure)
    network = _network(file, given, flags, structure)
    side = flags.image_size
    image_shape = (side, side, structure.image_channels)
    expected = expected_shapes(network, image_shape)

    def arrays(path: Path, tensors: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
        ours, unused = our_arrays(tensors, structure, Heads.of(flags))
        try:
            return match_arrays(expected, ours, unused)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None

    result = {"ema": arrays(file, tensors)}
    if raw is not None:
        result["raw"] = arrays(raw, open_state_dict(raw))
    variance: Variance = "small" if flags.sigma_small else "large"
    return Weights(
        network=network,
        image_shape=image_shape,
        chain=chain,
        predicts="x0" if flags.predict_xstart else "eps",
        variance="learned_range" if structure.learned_variance else variance,
        sampler=sampler,
        classes=tuple(map(str, range(structure.classes))) or None,
        arrays=result,
        source={
            "kind": "openai",
            "path": str(file),
            "options": {
                name: [*value] if isinstance(value, tuple) else value
                for name, value in given.items()
            },
            "sha256": {str(path): file_sha256(path) for path in (file, raw) if path is not None},
        },
    )


def _given(file: Path, options: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The flags of the file's public name, and those that are given."""
    if file.name in REFUSED:
        raise WeightsError(f"{file} is {REFUSED[file.name]}; only denoisers of images are read")
    if options is None and file.name not in PUBLIC:
        raise WeightsError(
            f"options are not given, and {file.name} is not a public file with known flags; give"
            ' the flags of its training, as in options="--image_size 64 --num_channels 128'
            ' --num_res_blocks 3 --learn_sigma True --diffusion_steps 4000 --noise_schedule cosine"'
        )
    return parse_flags(PUBLIC.get(file.name, "")) | parse_flags(options or "")


def _check_flags(file: Path, flags: Flags, structure: Structure) -> None:
    """Compares what was given with what the shapes tell."""
    side, multipliers = flags.image_size, structure.multipliers
    halvings = len(multipliers) - 1

    def check(name: str, of_file: Any, value: Any) -> None:
        if value is not None and value != of_file:
            raise WeightsError(
                f"--{name} is {_words(value)}, and the tensors of {file} are of {_words(of_file)}"
            )

    for name, of_file in {
        "num_channels": structure.channels,
        "num_res_blocks": structure.num_blocks,
        "class_cond": structure.classes > 0,
        "learn_sigma": structure.learned_variance,
        "use_scale_shift_norm": structure.scale_shift,
        "resblock_updown": structure.resampling == "residual",
    }.items():
        check(name, of_file, getattr(flags, name))
    if structure.resampling != "residual":
        check("conv_resample", structure.resampling == "convolution", flags.conv_resample)
    if flags.channel_mult is not None:
        widths = tuple(int(structure.channels * multiplier) for multiplier in flags.channel_mult)
        if widths != structure.widths:
            check("channel_mult", multipliers, flags.channel_mult)
    usual = CHANNEL_MULT.get(side, multipliers)
    if flags.channel_mult is None and usual != multipliers:
        raise WeightsError(
            f"--image_size is {side}, which has the --channel_mult {_words(usual)} by default, and"
            f" the tensors of {file} are of {_words(multipliers)}"
        )
    if side % 2**halvings != 0:
        raise WeightsError(
            f"--image_size is {side}, and the network of {file} halves it {halvings} times"
        )
    if flags.attention_resolutions is not None:
        factors = [side // height for height in flags.attention_resolutions]
        stated = tuple(level for level in range(halvings + 1) if 2**level in factors)
        if stated != structure.attention_levels:
            heights = tuple(side >> level for level in structure.attention_levels)
            check("attention_resolutions", heights, flags.attention_resolutions)


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{number:g}" for number in value) or "none"
    return str(value)


def _network(file: Path, given: Mapping[str, Any], flags: Flags, structure: Structure) -> UNet:
    heads = Heads.of(flags)
    widths = {structure.widths[level] for level in structure.attention_levels}
    for width in sorted(widths | {structure.widths[-1]}):  # that of the middle, too
        for name, number in heads.divisors().items():
            if width % number != 0:
                raise WeightsError(
                    f"--{name} is {number}; it has to divide {width}, the channels of an attention"
                    f" of {file}"
                )
    if any(width % _GROUPS != 0 for width in structure.widths):
        raise WeightsError(
            f"the levels of {file} have {_words(structure.widths)} channels; its program splits"
            f" them into {_GROUPS} groups"
        )
    guided = structure.resampling != "convolution" or not _GUIDED.isdisjoint(given)
    return UNet(
        channels=structure.channels,
        multipliers=structure.multipliers,
        num_blocks=structure.num_blocks,
        attention_resolutions=tuple(
            flags.image_size >> level for level in structure.attention_levels
        ),
        heads=heads.down,
        head_channels=heads.channels,
        up_heads=None if heads.up == heads.down else heads.up,
        resampling=structure.resampling,
        symmetric_padding=structure.resampling == "convolution",
        scale_shift=structure.scale_shift,
        dropout=flags.dropout,
        norm_groups=_GROUPS,
        norm_epsilon=_EPSILON,
        cosine_first=True,
        frequency_shift=0.0,
        time_scale=flags.time_scale(guided=guided, improved="sigma_small" in given),
        num_classes=structure.classes,
        null_class=structure.classes == 0,
        learned_variance=structure.learned_variance,
        interpolation_range="symmetric" if structure.learned_variance else "unit",
    )


_GUIDED = {"num_head_channels", "channel_mult", "resblock_updown", "use_new_attention_order"}
"""Flags that guided-diffusion added."""
