"""The parameters of a run for other programs, or as one file that can be imported again."""

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax import config as configs
from ddpm_jax.config import Config
from ddpm_jax.experiment.data_record import plain_record, read_data_record
from ddpm_jax.experiment.experiment import Experiment
from ddpm_jax.experiment.imported import check_params_name, imported_files, recipe_of
from ddpm_jax.experiment.run import alone, build_run, restore_run
from ddpm_jax.experiment.run_directory import RunDirectory, RunDirectoryError
from ddpm_jax.experiment.weight_files import arrays_of, check_weight_file, write_weight_file
from ddpm_jax.weights import LazyArray, WeightsError, to_diffusers

__all__ = ["export_diffusers", "export_file"]


class _Parameters(NamedTuple):
    """Of a run, ready to be written."""

    config: Config
    experiment: Experiment
    arrays: Mapping[str, LazyArray]
    step: int
    source: dict[str, Any]


def export_file(
    run: RunDirectory, out: Path, params: str, *, report: Callable[[str], None] = warnings.warn
) -> str:
    """Writes one .safetensors file with all that is needed to use it; returns a line that says so.

    It is what `write_run_of_file` reads: the same parameters, config and record of the images.

    Args:
        run: any, trained or imported.
        out: the file.
        params: "ema" or "raw".
        report: gets a line of each thing that a user should know.

    Raises:
        UserError: no run, no such parameters, parameters that are not float32, or a disk that
            refuses.
    """
    parameters = _parameters(run, params, report)
    record = read_data_record(run.images)
    if record is None:
        raise RunDirectoryError(
            f"{str(run.path)!r} has no images.json, which says what its images are"
        )
    write_weight_file(
        out,
        parameters.arrays,
        parameters.config,
        plain_record(record),
        parameters.step,
        parameters.source,
    )
    if (source := configs.source_of(parameters.config)) is not None:
        report(
            f"members of the config are of {run.config_copy}, of which {out} holds the sha256"
            f" alone; --config-file {source.name} goes with its import"
        )
    return _line(parameters, params, out, out.stat().st_size)


def export_diffusers(
    run: RunDirectory, out: Path, params: str, *, report: Callable[[str], None] = warnings.warn
) -> str:
    """Writes a folder that diffusers' `DDPMPipeline` loads; returns a line that says so.

    Args:
        run: any, trained or imported, of a network that diffusers has.
        out: the folder.
        params: "ema" or "raw".
        report: gets a line of each thing that a user should know.

    Raises:
        UserError: see `weights.to_diffusers`; also no run, no such parameters, or a process that
            diffusers does not have.
    """
    parameters = _parameters(run, params, report)
    config, experiment = parameters.config, parameters.experiment
    process, known = type(config.process).__name__, type(Config().process).__name__
    if process != known:
        raise WeightsError(f"process is {process}; diffusers has {known} alone")
    if experiment.learned is not None:
        raise WeightsError(
            f"schedule is {type(config.schedule).__name__}, which is learned; diffusers has"
            " schedules of whole times alone"
        )
    to_diffusers(
        out,
        experiment.model,
        experiment.spec.shape,
        parameters.arrays,
        chain=recipe_of(config.schedule) or configs.make_schedule(config.schedule),
        predicts=config.network.predicts,
        variance=config.network.variance,
        sampler=recipe_of(config.sampler),
    )
    return _line(parameters, params, out, sum(file.stat().st_size for file in out.rglob("*")))


def _parameters(run: RunDirectory, params: str, report: Callable[[str], None]) -> _Parameters:
    """Those of this name; an imported run's are left in their file, after they were verified."""
    stored = run.read_config(report=report)
    config = alone(stored)
    if not (files := imported_files(run)):
        restored = restore_run(run, config, with_images=False, report=report)
        arrays = arrays_of(restored.params[params])
        return _Parameters(stored, restored.experiment, arrays, restored.step, {})
    check_params_name(files, params)
    file = files[params]
    if config.train.verify_checkpoints:
        check_weight_file(file)
    experiment = build_run(run, config, with_images=False)
    return _Parameters(stored, experiment, file.arrays, file.step, file.source)


def _line(parameters: _Parameters, params: str, out: Path, size: int) -> str:
    count = sum(math.prod(array.shape) for array in parameters.arrays.values())
    return f"{params} of step {parameters.step}: {count:,} parameters, {size:,} bytes in {out}"
