"""A loss of your own: a function of what the network said, `[batch]` out.

ddpm-jax train docs/examples/own_objective.py --workdir runs/own_objective
"""

import dataclasses

import jax.numpy as jnp

from ddpm_jax import config


@dataclasses.dataclass(frozen=True)
class Huber(config.Objective):
    """Squared error of eps up to `delta`, absolute error beyond."""

    delta: float = 1.0

    def make(self):
        def loss(terms: config.LossTerms):
            error = jnp.abs(terms.target - terms.prediction)
            inside = jnp.minimum(error, self.delta)
            losses = inside * (error - inside / 2.0)
            return jnp.mean(losses, axis=tuple(range(1, losses.ndim)))

        return loss


def get_config():
    return config.Config(
        objective=Huber(delta=0.5),
        schedule=config.Cosine(num_steps=250),
        network=config.UNet(
            channels=16, multipliers=(1, 2), num_blocks=1, attention_resolutions=(), norm_groups=8
        ),
        train=config.Train(steps=2000, batch_size=64, save_every=500, draw_every=1000),
    )
