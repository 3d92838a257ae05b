"""Parameters averaged with a width that is chosen after training: post-hoc EMA."""

from typing import Any

import numpy as np

from ddpm_jax import training
from ddpm_jax.experiment.build import Experiment
from ddpm_jax.experiment.directory import RunDirectory, RunDirectoryError
from ddpm_jax.training import ema

__all__ = ["post_hoc_params"]


def post_hoc_params(
    experiment: Experiment, run: RunDirectory, sigma_rel: float, *, verify: bool = True
) -> tuple[Any, int]:
    """The average of width `sigma_rel` at the last snapshot, and its step.

    It is a weighted sum of all snapshots, which are read one after the other
    (`ddpm_jax.training.ema`).

    Raises:
        UserError: no snapshots, a damaged one, or a width that no average has.
    """
    stored = training.list_snapshots(run.snapshots)
    if not stored:
        raise RunDirectoryError(
            f"{str(run.path)!r} has no snapshots to make an average of; --train.post-hoc-ema 0.05"
            " 0.1 has a run keep them"
        )
    try:
        gamma = ema.gamma_of(sigma_rel)
    except ValueError as error:
        raise RunDirectoryError(str(error)) from None
    profiles = [(step, ema.gamma_of(width)) for step, widths in stored.items() for width in widths]
    times, gammas = np.array(profiles, np.float64).T
    last = max(stored)
    weights = ema.post_hoc_weights(times, gammas, time=float(last), gamma=gamma)
    like = experiment.abstract_state.params
    snapshots = (
        average
        for step in stored
        for average in training.load_snapshot(run.snapshots, step, like, verify=verify).averages
    )
    return ema.reconstruct(snapshots, weights), last
