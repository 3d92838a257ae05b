"""Writes networks of this library as folders that `DDPMPipeline.from_pretrained` loads."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from ddpm_jax import schedules
from ddpm_jax.files import whole_file, whole_folder
from ddpm_jax.predictions import Predicts
from ddpm_jax.reverse import Variance
from ddpm_jax.weights.diffusers_names import their_array, their_name
from ddpm_jax.weights.diffusers_networks import config_of_network
from ddpm_jax.weights.diffusers_schedulers import config_of_scheduler
from ddpm_jax.weights.safetensors_files import write_safetensors
from ddpm_jax.weights.weights import LazyArray, Recipe, WeightsError, expected_shapes, match_arrays

__all__ = ["to_diffusers"]

_VERSION = "0.42.1"
"""Version of diffusers whose options are written."""


def to_diffusers(
    folder: str | Path,
    network: nn.Module,
    image_shape: tuple[int, int, int],
    arrays: Mapping[str, LazyArray],
    *,
    chain: Recipe | schedules.Schedule,
    predicts: Predicts,
    variance: Variance,
    sampler: Recipe | None = None,
) -> None:
    """Writes a network as a folder of a diffusers pipeline, either completely or not at all.

    Args:
        folder: path of the new folder; it may not exist.
        network: a `models.UNet` with options that diffusers has.
        image_shape: (height, width, channel).
        arrays: parameters by the flat names of this library.
        chain: the schedule.
        predicts: what the network predicts, see `ddpm_jax.predictions`.
        variance: of the reverse process.
        sampler: its threshold and spacing are written to the scheduler. The scheduler's class is
            always DDPMScheduler, from which diffusers makes its other schedulers.

    Raises:
        WeightsError: diffusers has no such network, chain or prediction; `arrays` do not fit the
            network; `folder` exists or cannot be written.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise WeightsError(f"{folder} exists; choose a folder that does not exist")
    config = config_of_network(network, image_shape)
    scheduler = config_of_scheduler(chain, predicts, variance, sampler)
    arrays = match_arrays(expected_shapes(network, image_shape), arrays, ())
    levels = len(config["block_out_channels"])
    theirs = {their_name(path, levels): _theirs(path, array) for path, array in arrays.items()}
    pipeline = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    try:
        with whole_folder(folder) as partial:
            _write_json(partial / "model_index.json", "DDPMPipeline", pipeline)
            place = partial / "scheduler" / "scheduler_config.json"
            _write_json(place, "DDPMScheduler", scheduler)
            _write_json(partial / "unet" / "config.json", "UNet2DModel", config)
            parameters = partial / "unet" / "diffusion_pytorch_model.safetensors"
            write_safetensors(parameters, dict(sorted(theirs.items())), {"format": "pt"})
    except OSError as error:
        raise WeightsError(f"{folder} cannot be written: {error.strerror}") from error


def _theirs(path: str, array: LazyArray) -> LazyArray:
    # Shapes are those of a view of one number, which takes no memory.
    shape = their_array(path, np.broadcast_to(np.float32(0.0), array.shape)).shape
    return LazyArray(shape, lambda: their_array(path, array.read()))


def _write_json(path: Path, kind: str, values: dict[str, Any]) -> None:
    values = {"_class_name": kind, "_diffusers_version": _VERSION} | values
    with whole_file(path) as file:
        file.write((json.dumps(values, indent=2, sort_keys=True) + "\n").encode())
