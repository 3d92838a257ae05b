"""A run's experiment and its newest checkpoint, for the commands that only read."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ddpm_jax.config import Config, HostsConfig, MeshConfig
from ddpm_jax.experiment import (
    Experiment,
    RunDirectory,
    RunDirectoryError,
    build,
    check_same_data,
    post_hoc_params,
    read_data_record,
)
from ddpm_jax.terminal import complain
from ddpm_jax.training import Checkpoints

__all__ = ["DataPlace", "ParamsName", "RestoredRun", "build_run", "read_config", "restore_run"]

ParamsName = Literal["ema", "raw"]


@dataclasses.dataclass(frozen=True)
class DataPlace:
    """Where the run's data set is now, if not where the run found it. It has to be the same set."""

    name: str | None = None
    """As `--data.name` of train: folder:PATH, npz:PATH or a name."""
    dir: str | None = None
    """As `--data.dir` of train: the folder that relative paths and prepared data sets are in."""


class RestoredRun(NamedTuple):
    """What a command needs of a run."""

    experiment: Experiment
    params: dict[str, Any]
    """The moving average, "ema", and the raw ones, "raw"; or one of a width, "sigma_rel"."""
    step: int

    def params_of(self, name: ParamsName) -> Any:
        """Those of this name; or the average of a width, if that is what was restored."""
        return self.params.get("sigma_rel", self.params.get(name))


def build_run(
    run: RunDirectory, config: Config, *, data: DataPlace | None, with_images: bool = True
) -> Experiment:
    """The experiment of `config`, which is the run's or differs in what `run` allows.

    Args:
        run: nothing is written to it.
        config: of the run.
        data: where its data set is now, if anything is known of it.
        with_images: False opens no data set where the run has recorded what is needed of it.

    Raises:
        UserError: the data set is missing, or is not the one that the run was trained on.
    """
    if data is not None:
        places = {name: value for name, value in vars(data).items() if value is not None}
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **places))
    record = read_data_record(run.images)
    if record is None:
        return build(config)
    if not with_images:
        return build(config, spec=record.spec, spectrum=record.spectrum)
    experiment = build(config, spectrum=record.spectrum)
    check_same_data(record, experiment.images, run.path)
    return experiment


def read_config(run: RunDirectory, *, for_training: bool = False) -> Config:
    """What the run was trained with, for a single process; see `RunDirectory.read_config`."""
    return dataclasses.replace(run.read_config(for_training=for_training), hosts=HostsConfig())


def restore_run(
    directory: Path,
    *,
    data: DataPlace | None = None,
    with_images: bool = True,
    sigma_rel: float | None = None,
    likelihood_times: int | None = None,
    skip_missing_snapshots: bool = False,
) -> RestoredRun:
    """Reads a finished or running run; never writes to it.

    It may have been trained elsewhere: all devices of this machine are used.

    Args:
        directory: of the run.
        data: where its data set is now.
        with_images: see `build_run`.
        sigma_rel: the parameters are an average of this width, made of the run's snapshots.
        likelihood_times: replaces that of its config.
        skip_missing_snapshots: make that average of the snapshots that are sound.

    Raises:
        UserError: no run there, no checkpoint yet, or one that cannot be read.
    """
    run = RunDirectory(directory)
    config = dataclasses.replace(read_config(run), mesh=MeshConfig())
    if likelihood_times is not None:
        evaluation = dataclasses.replace(config.evaluation, likelihood_times=likelihood_times)
        config = dataclasses.replace(config, evaluation=evaluation)
    experiment = build_run(run, config, data=data, with_images=with_images)
    if experiment.loaded is not None:
        for source in (experiment.loaded.train, experiment.loaded.held_out):
            for where, why in source.skipped.items():
                complain(f"skipped: {where} {why}")
    verify = config.train.verify_checkpoints
    if sigma_rel is not None:
        averaged, step = post_hoc_params(
            experiment,
            run,
            sigma_rel,
            verify=verify,
            skip_missing=skip_missing_snapshots,
            say=complain,
        )
        return RestoredRun(experiment, {"sigma_rel": averaged}, step)
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        restored = checkpoints.restore(experiment.abstract_state, verify=verify)
    if restored is None:
        raise RunDirectoryError(f"{str(directory)!r} has no checkpoint yet; try again later")
    for sentence in restored.refused.values():
        complain(f"not read: {sentence}")
    state = restored.state
    return RestoredRun(experiment, {"ema": state.ema_params, "raw": state.params}, restored.step)
