"""A run's experiment and its newest checkpoint, for the commands that only read."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ddpm_jax.config import MeshConfig
from ddpm_jax.experiment import Experiment, RunDirectory, RunDirectoryError, abstract_state, build
from ddpm_jax.training import CheckpointError, Checkpoints, TrainState
from ddpm_jax.training.checkpoints import Restored

__all__ = ["ParamsName", "RestoredRun", "restore_run"]

ParamsName = Literal["ema", "raw"]


class RestoredRun(NamedTuple):
    """What a command needs of a run."""

    experiment: Experiment
    params: Any
    step: int


def restore_run(directory: Path, params: ParamsName, data_dir: str | None) -> RestoredRun:
    """Reads a finished or running run; never writes to it.

    It may have been trained elsewhere: all devices of this machine are used, and `data_dir`, if
    given, is where its dataset is here.

    Raises:
        UserError: no run there, no checkpoint yet, or one that cannot be read.
    """
    run = RunDirectory(directory)
    config = dataclasses.replace(run.read_config(), mesh=MeshConfig())
    if data_dir is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=data_dir))
    experiment = build(config)
    restored = _newest(run, abstract_state(experiment))
    if restored is None:
        raise RunDirectoryError(f"{str(directory)!r} has no checkpoint yet; try again later")
    state = restored.state
    return RestoredRun(
        experiment, state.ema_params if params == "ema" else state.params, restored.step
    )


def _newest(run: RunDirectory, like: TrainState) -> Restored | None:
    """The newest checkpoint; the next one if training deletes it while it is being read."""
    while True:
        with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
            before = checkpoints.steps()
            try:
                return checkpoints.restore(like)
            except CheckpointError:
                if checkpoints.steps() == before:
                    raise
