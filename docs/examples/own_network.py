"""A network of your own: a config file with a class, nothing registered.

ddpm-jax train docs/examples/own_network.py --workdir runs/own_network
ddpm-jax train docs/examples/own_network.py --network.width 64 --workdir runs/narrow
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax import config


class MLP(nn.Module):
    """All pixels at once, with t as sines and cosines."""

    width: int

    @nn.compact
    def __call__(self, x_t, t):
        angles = t[:, None].astype(jnp.float32) / 10.0 ** jnp.linspace(0.0, 3.0, 16)
        pixels = x_t.reshape(x_t.shape[0], -1)
        h = jnp.concatenate([pixels, jnp.sin(angles), jnp.cos(angles)], axis=-1)
        for _ in range(3):
            h = nn.swish(nn.Dense(self.width)(h))
        return nn.Dense(pixels.shape[1])(h).reshape(x_t.shape)


@dataclasses.dataclass(frozen=True)
class TinyMLP(config.Network):
    width: int = 256

    def make(self, images):
        return MLP(self.width)


def get_config():
    return config.Config(
        network=TinyMLP(),
        schedule=config.LinearLogSNR(num_steps=100),
        objective=config.ELBO(),
        optimizer=config.Adam(learning_rate=1e-3, warmup_steps=100),
        averages=config.EMA(decays=(0.99,)),
        train=config.Train(steps=2000, batch_size=64, save_every=500, draw_every=1000),
    )
