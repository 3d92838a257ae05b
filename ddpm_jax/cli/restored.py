"""A run's experiment and its newest checkpoint, for the commands that only read."""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ddpm_jax.config import Config, HostsConfig, MeshConfig
from ddpm_jax.experiment import (
    Experiment,
    RunDirectory,
    RunDirectoryError,
    build,
    post_hoc_params,
)
from ddpm_jax.training import Checkpoints

__all__ = ["ParamsName", "RestoredRun", "read_config", "restore_run"]

ParamsName = Literal["ema", "raw"]


class RestoredRun(NamedTuple):
    """What a command needs of a run."""

    experiment: Experiment
    params: dict[str, Any]
    """The moving average, "ema", and the raw ones, "raw"; or one of a width, "sigma_rel"."""
    step: int

    def chosen(self, name: ParamsName) -> Any:
        """Those of this name, or the average that was asked for."""
        return self.params.get("sigma_rel", self.params.get(name))


def read_config(run: RunDirectory, data_dir: str | None, *, for_training: bool = False) -> Config:
    """What the run was trained with, for a single process and the place of its dataset here."""
    config = dataclasses.replace(run.read_config(for_training=for_training), hosts=HostsConfig())
    if data_dir is None:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, dir=data_dir))


def restore_run(
    directory: Path,
    data_dir: str | None = None,
    sigma_rel: float | None = None,
    likelihood_times: int | None = None,
) -> RestoredRun:
    """Reads a finished or running run; never writes to it.

    With `sigma_rel` the parameters are an average of this width, made of the run's snapshots.

    It may have been trained elsewhere: all devices of this machine are used, and `data_dir`, if
    given, is where its dataset is here. `likelihood_times`, if given, replaces that of its config.

    Raises:
        UserError: no run there, no checkpoint yet, or one that cannot be read.
    """
    run = RunDirectory(directory)
    config = dataclasses.replace(read_config(run, data_dir), mesh=MeshConfig())
    if likelihood_times is not None:
        evaluation = dataclasses.replace(config.evaluation, likelihood_times=likelihood_times)
        config = dataclasses.replace(config, evaluation=evaluation)
    experiment = build(config)
    for source in (experiment.images.train, experiment.images.held_out):
        for where, why in source.skipped.items():
            print(f"ddpm-jax: skipped: {where} {why}", file=sys.stderr)
    verify = config.train.verify_checkpoints
    if sigma_rel is not None:
        averaged, step = post_hoc_params(experiment, run, sigma_rel, verify=verify)
        return RestoredRun(experiment, {"sigma_rel": averaged}, step)
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        restored = checkpoints.restore(experiment.abstract_state, verify=verify)
    if restored is None:
        raise RunDirectoryError(f"{str(directory)!r} has no checkpoint yet; try again later")
    for sentence in restored.refused.values():
        print(f"ddpm-jax: not read: {sentence}", file=sys.stderr)
    state = restored.state
    return RestoredRun(experiment, {"ema": state.ema_params, "raw": state.params}, restored.step)
