"""A forward process of your own: noise with a spectrum that falls with the frequency.

ddpm-jax train docs/examples/own_process.py --workdir runs/own_process
"""

import dataclasses

import numpy as np

from ddpm_jax import bases, config, processes


@dataclasses.dataclass(frozen=True)
class Pink(config.Process):
    """The variance of the noise in the cosine mode of frequency f is (1 + f)^-exponent."""

    exponent: float = 1.0

    def make(self, schedule, shape, measured):
        height, width, _ = shape
        rows, columns = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
        spectrum = (1.0 + np.hypot(rows, columns)) ** -self.exponent
        return processes.correlated(
            schedule, spectrum=spectrum / np.mean(spectrum), basis=bases.dct()
        )


def get_config():
    return config.Config(
        process=Pink(exponent=0.5),
        schedule=config.LinearLogSNR(num_steps=250),
        objective=config.ELBO(),
        network=config.UNet(
            channels=16, multipliers=(1, 2), num_blocks=1, attention_resolutions=(), norm_groups=8
        ),
        train=config.Train(steps=2000, batch_size=64, save_every=500, draw_every=1000),
    )
