"""A state of a training, its bits, and checkpoints of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax import training
from ddpm_jax.training import Checkpoints


def make_state(seed=0, width=5):
    params = {"w": jax.random.normal(jax.random.key(seed), (300, width)), "b": jnp.zeros(width)}
    return training.init_state(params, optax.adam(1e-3), jax.random.key(7))


def bits(tree):
    def of(leaf):
        dtype = leaf.dtype
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return str(dtype), np.asarray(leaf).tobytes()

    return jax.tree.map(of, tree)


def save(directory, steps_and_losses, **policy):
    state = make_state()
    with Checkpoints(directory, **policy) as checkpoints:
        for step, loss in steps_and_losses:
            checkpoints.save(step, state, {"batches": step}, held_out_loss=loss)
    return state
