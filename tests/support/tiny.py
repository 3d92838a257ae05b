"""The digits with a network that compiles in seconds: for tests that run the whole thing."""

import dataclasses
from pathlib import Path

from ddpm_jax import config


def get_config() -> config.Config:
    return dataclasses.replace(
        config.load(Path(__file__).parents[2] / "configs" / "digits.py"),
        schedule=config.LinearLogSNR(num_steps=8),
        network=config.UNet(
            channels=4,
            multipliers=(1,),
            num_blocks=1,
            attention_resolutions=(),
            dropout=0.1,
            norm_groups=2,
        ),
        times=config.Importance(),
        averages=config.EMA(decays=(0.9,)),
        evaluation=config.BitsPerDim(batch_size=128, num_samples=4),
        train=config.Train(
            steps=24, batch_size=16, log_every=5, eval_every=8, save_every=4, draw_every=12
        ),
    )
