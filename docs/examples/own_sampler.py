"""A sampler of your own: two pure functions, `init` and `step`.

ddpm-jax train docs/examples/own_sampler.py --workdir runs/own_sampler
ddpm-jax sample runs/own_sampler --sampler.churn 0.3 --sampler.steps 50 --num 16 --out euler.png
"""

import dataclasses

import jax
import jax.numpy as jnp

from ddpm_jax import config, convert, q_sample, samplers


@dataclasses.dataclass(frozen=True)
class Euler(config.Sampler):
    """x0_hat and eps_hat at t, mixed again at s; `churn` of the noise is drawn anew."""

    churn: float = 0.0

    def make(self, model: config.BoundModel):
        process, threshold = model.process, self.threshold.make() or (lambda x0_hat: x0_hat)

        def init(key, shape, start=None):
            x_t = jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(key)
            return samplers.SamplerState(x_t if start is None else start)

        def step(key, state, t, s):
            x_t = state.x_t
            t, s = (jnp.full(x_t.shape[0], time, jnp.int32) for time in (t, s))
            prediction = model.predict(x_t, process.network_time(t))
            source = model.predicts
            x0_hat = threshold(convert(process, prediction, x_t, t, source=source, target="x0"))
            eps_hat = convert(process, x0_hat, x_t, t, source="x0", target="eps")
            fresh = jax.vmap(lambda key: jax.random.normal(key, x_t.shape[1:]))(key)
            eps = jnp.sqrt(1.0 - self.churn**2) * eps_hat + self.churn * fresh
            done = (s < 0)[:, None, None, None]
            x_s = jnp.where(done, x0_hat, q_sample(process, x0_hat, jnp.maximum(s, 0), eps))
            return samplers.SamplerState(x_s), samplers.StepInfo(x_s, x0_hat)

        return samplers.Sampler(init, step)


def get_config():
    return config.Config(
        sampler=Euler(steps=25),
        schedule=config.LinearLogSNR(num_steps=250),
        network=config.UNet(
            channels=16, multipliers=(1, 2), num_blocks=1, attention_resolutions=(), norm_groups=8
        ),
        train=config.Train(steps=2000, batch_size=64, save_every=500, draw_every=1000),
    )
