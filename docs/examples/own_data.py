"""Images of your own: anything that is an array, or that hands out images by index.

ddpm-jax train docs/examples/own_data.py --workdir runs/own_data
"""

import dataclasses

import numpy as np

from ddpm_jax import config
from ddpm_jax.data import Arrays, ImageSet


@dataclasses.dataclass(frozen=True)
class Stripes(config.Data):
    """Horizontal (class 0) and vertical (class 1) stripes of random brightness."""

    count: int = 2000
    side: int = 8

    def make(self, preparation):
        rng = np.random.default_rng(0)
        brightness = rng.integers(64, 256, (self.count, 1, 1, 1))
        labels = rng.integers(0, 2, self.count)
        across = np.arange(self.side)[None, :, None, None] % 2
        images = np.broadcast_to(across * brightness, (self.count, self.side, self.side, 1))
        images = np.where(labels[:, None, None, None] == 0, images, images.swapaxes(1, 2))
        images = preparation.of_array(images.astype(np.uint8))
        train = self.count * 4 // 5
        return ImageSet(
            "stripes",
            train=Arrays(images[:train], labels[:train]),
            held_out=Arrays(images[train:], labels[train:]),
            classes=("horizontal", "vertical"),
            preparation=str(preparation),
        )


def get_config():
    return config.Config(
        data=Stripes(),
        schedule=config.LinearLogSNR(num_steps=250, log_snr_max=12.5),
        objective=config.ELBO(),
        network=config.UNet(
            channels=16,
            multipliers=(1, 2),
            num_blocks=1,
            attention_resolutions=(),
            norm_groups=8,
            classes=2,
        ),
        train=config.Train(steps=2000, batch_size=64, save_every=500, draw_every=1000),
    )
