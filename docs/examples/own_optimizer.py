"""An optimizer and a learning rate of your own: any optax transformation, any function of a step.

ddpm-jax train docs/examples/own_optimizer.py --workdir runs/own_optimizer
"""

import dataclasses

import jax.numpy as jnp
import optax

from ddpm_jax import config


@dataclasses.dataclass(frozen=True)
class AdaBelief(config.Optimizer):
    """optax.adabelief; the clip of the gradient comes before, the learning rate is `decay`'s."""

    b2: float = 0.999

    def make(self, learning_rate):
        return optax.adabelief(learning_rate, b2=self.b2)


@dataclasses.dataclass(frozen=True)
class Staircase(config.Decay):
    """Half as much after every `every` steps."""

    every: int = 500

    def make(self, peak, steps, warmup_steps):
        return lambda step: peak * 0.5 ** jnp.floor(step / self.every)


def get_config():
    return config.Config(
        optimizer=AdaBelief(learning_rate=1e-3, warmup_steps=100, decay=Staircase()),
        schedule=config.LinearLogSNR(num_steps=250),
        network=config.UNet(
            channels=16, multipliers=(1, 2), num_blocks=1, attention_resolutions=(), norm_groups=8
        ),
        train=config.Train(steps=2000, batch_size=64, save_every=500, draw_every=1000),
    )
