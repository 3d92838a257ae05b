"""The digits with a learned schedule, as in VDM (Kingma et al. 2021).

    ddpm-jax train digits_learned

https://arxiv.org/abs/2107.00630. Only the schedule differs from configs/digits.py: log SNR begins
as there, from 7 to -8 on a straight line, and is trained with the network, its ends included. A
step takes as long. There are 176,948 parameters, of which 99 are the schedule's.

Bits/dim with the same seed, and the mean difference to digits.py over the images, with its 95%
interval:

    straight, 7 to -8         digits.py                           1.964
    learned between 7 and -8  --schedule.endpoints fixed          1.934   -0.030 [-0.035, -0.024]
    straight, 6.23 to -4.99   digits.py with ends that a run      1.840   -0.124 [-0.129, -0.119]
                              of this config has found
    learned, 6.24 to -5.01    this config                         1.835   -0.129 [-0.135, -0.123]

Nearly all of the gain is that of the ends: the decoder costs 0.18 more, and the KL terms 0.31 less.
Between fixed ends the gain is that of training, which sees less noise in the loss; where the ends
are good, little is left of it.
"""

import dataclasses

from ddpm_jax import config


def get_config() -> config.Config:
    """The settings of configs/digits.py, but for the schedule."""
    return dataclasses.replace(
        config.load("digits"),
        schedule=config.LearnedLogSNR(
            num_steps=250, log_snr_max=7.0, log_snr_min=-8.0, endpoints="learned"
        ),
        workdir="runs/digits_learned",
    )
