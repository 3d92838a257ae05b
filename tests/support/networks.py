"""A network that compiles in a tenth of the time, for tests of what is done with one."""

import importlib

import flax.linen as nn
import jax.numpy as jnp
import pytest

from ddpm_jax.models.layers import Dropout


class Mixer(nn.Module):
    """A layer over channels, one over positions, the time and the class as biases, and dropout."""

    classes: int = 0
    learned_variance: bool = False
    dropout: float = 0.0
    width: int = 8

    @nn.compact
    def __call__(self, x_t, t, *, train=False, keys=None, labels=None):
        bias = nn.Dense(self.width, name="time")(jnp.cos(t[:, None].astype(jnp.float32)))
        if self.classes:
            table = self.param("classes", nn.initializers.normal(1.0), (self.classes + 1, 8))
            last = jnp.full(t.shape, self.classes)
            bias = bias + table[last if labels is None else jnp.where(labels < 0, last, labels)]
        h = nn.Dense(self.width, name="in")(x_t) + bias[:, None, None]
        h = nn.swish(h.reshape(len(h), -1, self.width).swapaxes(1, 2))
        h = Dropout(self.dropout, name="dropout")(h, keys if train else None)
        h = (h + nn.Dense(h.shape[-1], name="places")(h)).swapaxes(1, 2)
        outputs = nn.Dense(2 * x_t.shape[-1], name="out")(h).reshape(*x_t.shape[:-1], -1)
        first, second = jnp.split(outputs, 2, axis=-1)
        return (first, second) if self.learned_variance else first


def make_mixers(patch):
    """Every run of this process has a Mixer for its network, as long as the patch lasts."""
    build = importlib.import_module("ddpm_jax.experiment.build")

    def make_model(config):
        model = config.model
        return Mixer(model.classes, model.variance == "learned_range", model.dropout)

    patch.setattr(build, "make_model", make_model)


def main(arguments):
    """The command in a process of its own, where every run has a Mixer for its network."""
    from ddpm_jax.cli import main

    make_mixers(pytest.MonkeyPatch())
    return main(arguments)
