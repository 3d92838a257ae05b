"""A run's experiment and its newest checkpoint, for the commands that only read."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from ddpm_jax.experiment import Experiment, RunDirectory, RunDirectoryError, abstract_state, build
from ddpm_jax.training import Checkpoints

__all__ = ["ParamsName", "RestoredRun", "restore_run"]

ParamsName = Literal["ema", "raw"]


class RestoredRun(NamedTuple):
    """What a command needs of a run."""

    experiment: Experiment
    params: Any
    step: int


def restore_run(directory: Path, params: ParamsName) -> RestoredRun:
    """Reads a finished or running run; never writes to it.

    Raises:
        UserError: no run there, no checkpoint yet, or one that cannot be read.
    """
    run = RunDirectory(directory)
    experiment = build(run.read_config())
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        restored = checkpoints.restore(abstract_state(experiment))
    if restored is None:
        raise RunDirectoryError(f"{str(directory)!r} has no checkpoint yet; try again later")
    state = restored.state
    return RestoredRun(
        experiment, state.ema_params if params == "ema" else state.params, restored.step
    )
