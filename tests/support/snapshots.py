"""Snapshots and checkpoints of a run in which nothing was trained."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.config import to_json
from ddpm_jax.experiment.post_hoc import MISSED_SNAPSHOTS
from ddpm_jax.training import Checkpoints, save_snapshot

WIDTHS = (0.05, 0.1)


def snapshot(experiment, folder, step, widths=WIDTHS, config=None):
    rng = np.random.default_rng(step)
    one = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32),
        experiment.abstract_state.params,
    )
    averages = tuple(jax.tree.map(lambda leaf, w=w: leaf * w, one) for w in widths)
    save_snapshot(folder, step, averages, widths, config=to_json(config or experiment.config))


def checkpoint(experiment, run, step, missed=()):
    state = jax.tree.map(lambda leaf: jnp.zeros((), jnp.int32), experiment.abstract_state)
    with Checkpoints(run.checkpoints, keep_latest=9) as checkpoints:
        checkpoints.save(step, state, {}, held_out_loss=1.0, notes={MISSED_SNAPSHOTS: list(missed)})
