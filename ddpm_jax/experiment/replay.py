"""Computes one step of a run again; all in it follows from the seed and the number of the step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import training
from ddpm_jax.data import Examples
from ddpm_jax.experiment.experiment import Experiment, initial_state
from ddpm_jax.experiment.run_directory import RunDirectory, RunDirectoryError
from ddpm_jax.experiment.step import lower_step, make_batches, make_form, make_objective
from ddpm_jax.training.objective import draw

__all__ = ["Replayed", "replay"]


class Replayed(NamedTuple):
    """Values of one step, before the clipping of the gradient."""

    step: int
    """Number of the step, from 1."""
    replayed_from: int
    """Step of the checkpoint from which the run was computed again; 0 is the start."""
    t: np.ndarray
    """Time of each example, int32 `[batch]`."""
    losses: np.ndarray
    """Weighted loss of each example, `[batch]`; their mean is the loss."""
    gradient_norms: dict[str, float]
    """Norm of the gradient of each parameter, by its name."""
    parameter_norms: dict[str, float]
    """Norm of each parameter before the step, by its name."""


def replay(experiment: Experiment, run: RunDirectory, step: int) -> Replayed:
    """Computes a run again from the last checkpoint before a step, and looks at that step.

    On the mesh of the run, the steps have the same bits as in the run; on another mesh they differ
    by rounding. Nothing is written.

    Args:
        experiment: of the run, with its images.
        run: its directory.
        step: number of the step, from 1.

    Returns:
        The values of the step.

    Raises:
        UserError: the step is outside of the run, or checkpoints are missing or damaged.
    """
    config = experiment.config
    if not 1 <= step <= config.train.steps:
        raise RunDirectoryError(f"step is {step}; it has to be 1 to {config.train.steps}")
    data = make_batches(experiment)
    start, state = 0, None
    with training.Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        before = [saved for saved in checkpoints.steps() if saved < step]
        if before:
            restored = checkpoints.restore(experiment.abstract_state, before[-1])
            if restored is not None:
                start, state = restored.step, restored.state
                data.set_state(restored.data_state)
    if state is None:
        state = initial_state(experiment)
    if start < step - 1:
        form = make_form(experiment)
        train_step = lower_step(experiment, form).compile()
        for _ in range(start, step - 1):
            state, _ = train_step(state, form.place(next(data)))
    t, losses, gradient_norms, parameter_norms = jax.device_get(
        jax.jit(_look(experiment))(state, jax.tree.map(jnp.asarray, next(data)))
    )
    return Replayed(step, start, t, losses, _by_name(gradient_norms), _by_name(parameter_norms))


def _look(experiment: Experiment) -> Any:
    objective = make_objective(experiment, train=True)
    gradient_of = training.make_gradient(
        objective.losses, accumulate=experiment.config.train.accumulate
    )

    def look(state: training.TrainState, batch: Examples) -> Any:
        key = jax.random.fold_in(state.key, state.step)
        drawn = draw(objective, key, len(batch.images), state.memory)
        losses, gradient = gradient_of(state.params, batch, drawn)
        norms = [jax.tree.map(jnp.linalg.norm, tree) for tree in (gradient, state.params)]
        return drawn.t, drawn.weight * losses, *norms

    return look


def _by_name(tree: Any) -> dict[str, float]:
    return {
        jax.tree_util.keystr(path[1:], simple=True, separator="/"): float(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
