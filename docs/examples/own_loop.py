"""The library alone: a Flax NNX network, a loop of your own, an average, samples, bits/dim.

python docs/examples/own_loop.py
"""

import sys

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import ddpm_jax
from ddpm_jax import samplers, schedules, timesteps
from ddpm_jax.data import read_digits, to_model_range

T = 100


class MLP(nnx.Module):
    """All pixels at once; t as a one-hot vector."""

    def __init__(self, pixels: int, width: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(pixels + T, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.last = nnx.Linear(width, pixels, rngs=rngs)

    def __call__(self, x_t: jax.Array, t: jax.Array) -> jax.Array:
        h = jnp.concatenate([x_t.reshape(x_t.shape[0], -1), jax.nn.one_hot(t, T)], axis=-1)
        h = nnx.swish(self.second(nnx.swish(self.first(h))))
        return self.last(h).reshape(x_t.shape)


def main(steps: int = 2000) -> None:
    digits = read_digits()
    images = jnp.asarray(to_model_range(digits.train.images, digits.levels))
    process = schedules.linear_log_snr(T)
    network, params = nnx.split(MLP(images[0].size, 256, nnx.Rngs(0)))
    optimizer = optax.adam(1e-3)
    opt_state, average = optimizer.init(params), params

    @jax.jit
    def train_step(params, average, opt_state, key):
        keys = jax.random.split(key, 3)
        x0 = jax.random.choice(keys[0], images, (64,))
        t = timesteps.stratified(keys[1], 64, T)
        eps = jax.random.normal(keys[2], x0.shape)

        def loss(params):
            x_t = ddpm_jax.q_sample(process, x0, t, eps)
            prediction = nnx.merge(network, params)(x_t, t)
            return jnp.mean(
                ddpm_jax.elbo_loss(
                    process, prediction, x0, x_t, t, predicts="eps", levels=digits.levels
                )
            )

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, new: old + 0.01 * (new - old), average, params)
        return params, average, opt_state, value

    for step in range(steps):
        key = jax.random.fold_in(jax.random.key(0), step)
        params, average, opt_state, loss = train_step(params, average, opt_state, key)
    print(f"step {steps}: loss {loss:.3f} bits/dim")

    model = nnx.merge(network, average)
    sampler = samplers.ddim(process, model)
    times = samplers.time_grid(process, 25)
    drawn = samplers.sample(sampler, jax.random.key(1), (16, *digits.image_shape), times)
    print(f"16 samples in [{drawn.x0.min():.2f}, {drawn.x0.max():.2f}]")

    held_out = jnp.asarray(to_model_range(digits.held_out.images, digits.levels))
    bits = ddpm_jax.bits_per_dim(
        process, model, jax.random.key(2), held_out, predicts="eps", levels=digits.levels
    )
    print(f"held out: {jnp.mean(bits.total):.3f} bits/dim")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
