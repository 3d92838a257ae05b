"""A network that compiles in a tenth of the time, for tests of what is done with one."""

import pytest
from mixed import Mixer

from ddpm_jax import config


def make_mixers(patch):
    """Every UNet of this process is a Mixer, as long as the patch lasts; its checks are made."""
    genuine = config.UNet.make

    def make(self, images):
        genuine(self, images)
        return Mixer(self.classes, self.variance == "learned_range", self.dropout)

    patch.setattr(config.UNet, "make", make)


def main(arguments):
    """The command in a process of its own, where every run has a Mixer for its network.

    Classifiers are trained for a moment, and blocks of images are small.
    """
    from ddpm_jax.cli import main
    from ddpm_jax.evaluation import classifier
    from ddpm_jax.parallel import shares

    patch = pytest.MonkeyPatch()
    make_mixers(patch)
    patch.setattr(classifier, "_STEPS", 100)
    patch.setattr(shares, "BLOCK", 100)
    return main(arguments)
