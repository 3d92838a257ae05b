"""What the tests of the benchmarks share."""

import importlib
from pathlib import Path

import flax.linen as nn
from paths import TINY

from benchmarks import scaling, train_step
from benchmarks.__main__ import main


def run(capsys, *arguments):
    """Exit code, output and errors of a command."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as left:  # by tyro
        code = left.code
    said = capsys.readouterr()
    return code, said.out, said.err


class Scaled(nn.Module):
    """A network of one parameter, which compiles at once."""

    @nn.compact
    def __call__(self, x_t, t, *, train=False, keys=None):
        return self.param("scale", nn.initializers.ones, ()) * x_t


def make_small(patch):
    """Every network is a Scaled, as long as the patch lasts."""
    patch.setattr(train_step, "make_model", lambda config: Scaled())
    build = importlib.import_module("ddpm_jax.experiment.build")
    patch.setattr(build, "make_model", lambda config: Scaled())


def timed_config():
    return scaling.timed_config(scaling.Settings(timed_config=Path(TINY), timed_batch=8), 4)
