"""A small network and its objective, for steps on many meshes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ddpm_jax import config, training
from ddpm_jax.schedules import linear_log_snr

BATCH, SIDE, WIDTH = 32, 8, 96
# An epsilon above the gradients' size: Adam would make a step of a rounding error near 0.
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2, b2=0.99, eps=1e-2))


class Network(nn.Module):
    """Two layers with dropout between, large enough to be split; compiles in a moment."""

    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x_t, t, *, train=False, keys=None):
        def dense(width, name):
            init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            bias = nn.with_logical_partitioning(nn.initializers.zeros, ("out",))
            return nn.Dense(width, dtype=self.dtype, kernel_init=init, bias_init=bias, name=name)

        h = x_t.reshape(len(x_t), -1)
        h = jnp.tanh(dense(WIDTH, "first")(h) + 0.1 * t[:, None].astype(self.dtype))
        if train:
            kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.9, (WIDTH,)))(keys)
            h = jnp.where(kept, h, jnp.zeros_like(h))
        return dense(SIDE * SIDE, "last")(h).reshape(x_t.shape).astype(jnp.float32)


def make_objective(dtype=jnp.float32, times=None):
    schedule = linear_log_snr(8)
    losses = training.make_losses(
        Network(dtype).apply,
        schedule,
        config.Simple().make(),
        predicts="eps",
        levels=17,
    )
    return training.Objective((times or config.Stratified()).make(schedule), losses)


def born(objective, dtype):
    params = Network(dtype).init(
        jax.random.key(1), jnp.zeros((1, SIDE, SIDE, 1)), jnp.zeros(1, jnp.int32)
    )
    memory = objective.times.initial_memory()
    return training.init_state(params, OPTIMIZER, jax.random.key(2), memory=memory)
