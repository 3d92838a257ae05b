"""Reads networks from folders of diffusers: of a pipeline, or of a single `UNet2DModel`.

The files are::

    model_index.json                                a pipeline: DDPMPipeline or DDIMPipeline
    scheduler/scheduler_config.json                 its chain and sampler
    unet/config.json                                its network
    unet/diffusion_pytorch_model.safetensors        its parameters
    unet_ema/                                       their average, in checkpoints of training

diffusers need not be installed, and nothing in a folder is executed.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.files import JsonFileError, file_sha256, read_json
from ddpm_jax.models import UNet
from ddpm_jax.predictions import PredictionName
from ddpm_jax.reverse import Variance
from ddpm_jax.weights.diffusers_names import our_arrays
from ddpm_jax.weights.diffusers_networks import network_of_config
from ddpm_jax.weights.diffusers_schedulers import Scheduler, scheduler_of_config
from ddpm_jax.weights.safetensors_files import open_safetensors, open_shards
from ddpm_jax.weights.torch_files import open_state_dict
from ddpm_jax.weights.weights import (
    LazyArray,
    Recipe,
    Weights,
    WeightsError,
    expected_shapes,
    match_arrays,
)

__all__ = ["from_diffusers"]

_PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")
_OTHER_PIPELINES = (
    ("StableDiffusion", "draws latents of a text by an autoencoder and a text encoder"),
    ("LDM", "draws latents of an autoencoder"),
    ("LatentDiffusion", "draws latents of an autoencoder"),
    ("DiT", "draws latents of an autoencoder"),
    ("ScoreSdeVe", "has a chain that explodes, without betas"),
    ("KarrasVe", "has a chain that explodes, without betas"),
)
_OTHER_NETWORKS = {
    "AutoencoderKL": "an autoencoder",
    "VQModel": "an autoencoder",
    "UNet2DConditionModel": "a network that attends to a text",
    "UNet1DModel": "a network for sequences",
    "UNet3DConditionModel": "a network for videos",
    "DiTTransformer2DModel": "a transformer for latents",
    "Transformer2DModel": "a transformer for latents",
}

_NAME = "diffusion_pytorch_model"


def from_diffusers(
    folder: str | Path,
    *,
    chain: Recipe | None = None,
    predicts: PredictionName | None = None,
    variance: Variance | None = None,
    sampler: Recipe | None = None,
    image_size: int | tuple[int, int] | None = None,
    variant: str | None = None,
) -> Weights:
    """Reads the network of a diffusers folder, with the settings that it was trained with.

    Args:
        folder: path of a pipeline, of a training checkpoint with `unet/` (and `unet_ema/`, the
            average), or of a network with its `config.json`.
        chain: the schedule, for a folder without a scheduler, or in place of the scheduler's.
        predicts: what the network predicts, in place of what the scheduler says.
        variance: of the reverse process, in place of what the scheduler says; without both it is
            "small", or "learned_range" for a network with twice as many outputs as inputs.
        sampler: the sampler, in place of what the scheduler says.
        image_size: height and width in pixels, for a network without `sample_size`.
        variant: which parameter files to read, such as "fp16"; by default the only ones.

    Returns:
        The network, its settings and its arrays, which are read when they are needed.

    Raises:
        WeightsError: the pipeline, network or scheduler is of an unsupported class; an option has
            no counterpart here; a file is missing or damaged; or the names of the parameters do not
            fit the network.
    """
    folder = Path(folder)
    where = _folders(folder)
    network, image_shape = _network(where.network, image_size)
    if where.raw is not None and _network(where.raw, image_size) != (network, image_shape):
        raise WeightsError(f"{where.network} and {where.raw} hold networks with different options")
    scheduler = _scheduler(where, chain, predicts, sampler)
    variance = variance or scheduler.variance
    if variance is None:
        variance = "learned_range" if network.learned_variance else "small"
    if (variance == "learned_range") != network.learned_variance:
        raise WeightsError(
            f"the variance is {variance!r}, and {where.network} has"
            f" {'twice' if network.learned_variance else 'just'} as many outputs as inputs;"
            " 'learned_range' needs twice as many, and the others as many"
        )
    expected = expected_shapes(network, image_shape)
    arrays: dict[str, dict[str, LazyArray]] = {}
    digests: dict[str, str] = {}
    for name, place in (("ema", where.network), ("raw", where.raw)):
        if place is not None:
            files, theirs = _open(place, variant)
            ours, unused = our_arrays(expected, theirs, len(network.multipliers))
            arrays[name] = match_arrays(expected, ours, unused)
            digests |= {str(file.relative_to(folder)): file_sha256(file) for file in files}
    return Weights(
        network=network,
        image_shape=image_shape,
        chain=scheduler.chain,
        predicts=scheduler.predicts,
        variance=variance,
        sampler=scheduler.sampler,
        classes=tuple(map(str, range(network.num_classes))) if network.num_classes else None,
        arrays=arrays,
        source={
            "kind": "diffusers",
            "path": str(folder),
            "sha256": digests,
            "notes": [*scheduler.notes],
        },
    )


class _Folders(NamedTuple):
    network: Path
    """Whose parameters draw images."""
    raw: Path | None
    """Of the last step, beside an average."""
    scheduler: Path | None


def _folders(folder: Path) -> _Folders:
    """What is where, if it is a folder that can be read."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise WeightsError(f"{folder} {what}; give a folder that diffusers' save_pretrained wrote")
    index = folder / "model_index.json"
    if index.exists():
        _check_pipeline(index)
    elif (folder / "config.json").exists():
        return _Folders(folder, None, None)
    elif not (folder / "unet" / "config.json").exists():
        raise WeightsError(
            f"{folder} has neither model_index.json, of a pipeline, nor config.json, of a network"
        )
    unet, average, scheduler = (folder / name for name in ("unet", "unet_ema", "scheduler"))
    if not unet.is_dir() and (folder / "config.json").exists():  # a pipeline of 2022
        return _Folders(folder, None, folder)
    has_scheduler = index.exists() or scheduler.is_dir()
    if average.is_dir():
        return _Folders(average, unet, scheduler if has_scheduler else None)
    return _Folders(unet, None, scheduler if has_scheduler else None)


def _check_pipeline(index: Path) -> None:
    kind = str(_json(index).get("_class_name"))
    if kind not in _PIPELINES:
        reasons = (why for part, why in _OTHER_PIPELINES if kind.startswith(part))
        reason = next(reasons, "is not known here")
        raise WeightsError(
            f"{index} is of a {kind}, which {reason}; supported are {', '.join(_PIPELINES)}, which"
            " draw pixels"
        )


def _network(folder: Path, image_size: Any) -> tuple[UNet, tuple[int, int, int]]:
    path = folder / "config.json"
    config = _json(path)
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        what = _OTHER_NETWORKS.get(str(kind), "not known here")
        raise WeightsError(f"{path} is of a {kind}, {what}; supported is UNet2DModel")
    return network_of_config(config, str(path), image_size)


def _scheduler(
    where: _Folders, chain: Recipe | None, predicts: PredictionName | None, sampler: Recipe | None
) -> Scheduler:
    """What the folder says of it; an argument goes before that."""
    if where.scheduler is None or (chain is not None and predicts is not None):
        if chain is None or predicts is None:
            missing = " and ".join(
                name for name, value in (("chain", chain), ("predicts", predicts)) if value is None
            )
            raise WeightsError(
                f"{where.network} is a network without a scheduler; give {missing}, what it was"
                " trained with, or the folder of its pipeline"
            )
        return Scheduler(chain, predicts, None, sampler or Recipe("ancestral", {}), ())
    path = where.scheduler / "scheduler_config.json"
    scheduler = scheduler_of_config(_json(path), str(path), sampler=sampler)
    return scheduler._replace(
        chain=chain or scheduler.chain, predicts=predicts or scheduler.predicts
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except JsonFileError as error:
        raise WeightsError(str(error)) from error


# ---- files of parameters


class _Format(NamedTuple):
    pattern: str
    """A regular expression of its file names, with the variant as its group."""
    open: Callable[[Path], dict[str, LazyArray]]
    """All arrays, from the file or the index."""


_VARIANT = r"(?:[.](?P<variant>(?![^.]*-\d+-of-\d+)[^.]+))?"
"""Not those of shards, as in "diffusion_pytorch_model.fp16-00001-of-00002.safetensors"."""
_FORMATS = (
    _Format(rf"{_NAME}{_VARIANT}[.]safetensors", lambda path: open_safetensors(path)[0]),
    _Format(rf"{_NAME}[.]safetensors[.]index{_VARIANT}[.]json", open_shards),
    _Format(rf"{_NAME}{_VARIANT}[.]bin", open_state_dict),
    _Format(
        rf"{_NAME}[.]bin[.]index{_VARIANT}[.]json", lambda path: open_shards(path, open_state_dict)
    ),
)
"""Of the same variant in several, the first one is taken."""


def _open(folder: Path, variant: str | None) -> tuple[list[Path], dict[str, LazyArray]]:
    """The arrays of a network's folder by diffusers' names, and the files that they are in."""
    names = sorted(path.name for path in folder.iterdir())
    variants: dict[str | None, tuple[_Format, Path]] = {}
    for form in _FORMATS:
        for match in filter(None, (re.fullmatch(form.pattern, name) for name in names)):
            variants.setdefault(match["variant"], (form, folder / match[0]))
    if variant is None and None not in variants and variants:
        variant, *others = map(str, variants)
        if others:
            raise WeightsError(
                f"{folder} has the variants {', '.join(map(str, variants))}; give one as variant"
            )
    if variant in variants:
        form, path = variants[variant]
        arrays = form.open(path)
        return [path, *_shards(path)], arrays
    what = "" if variant is None else f" of the variant {variant!r}"
    raise WeightsError(
        f"{folder} has no file of parameters{what}: {_NAME}.safetensors or .bin, with or without"
        f" an index; it has {', '.join(names) or 'no file'}"
    )


def _shards(path: Path) -> Iterator[Path]:
    """The files that an index names, which were opened before."""
    if path.name.endswith(".json"):
        yield from (path.parent / name for name in sorted({*_json(path)["weight_map"].values()}))
