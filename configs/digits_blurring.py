"""Scikit-learn's digits under blur and noise at once (Hoogeboom & Salimans 2022).

    ddpm-jax train digits_blurring

https://arxiv.org/abs/2209.05557. Only the process differs from configs/digits.py. With the same
176,849 parameters it reaches 1.988 +- 0.013 bits/dim, and digits.py 1.964 +- 0.013; the mean
difference over the images is 0.023 +- 0.003.

Why these numbers: a kernel of 2 pixels at the end, and 1 pixel half way, is as wide as a stroke on
8x8. It acts late: at t = 0 there is no blur, so that the decoder's noise is that of digits.py. The
KL terms are a line integral of the best denoiser's error over the SNR of all modes. It depends on
where SNR begins and ends, not on the path (Guo et al. 2005,
https://doi.org/10.1109/TIT.2005.844072). Blur does not change the beginning, and the end is noise
in any case. But it makes the path longer: log SNR of the finest mode falls by 29 in place of 15, in
the same number of steps. For Gaussian data with the digits' covariance and the best denoiser this
costs 0.012 bits/dim at T = 250, and a quarter of it at T = 1000.

The 20 pixels of the paper, which has larger images, are too many here: the finest mode falls to its
smallest scale within the first 40 of 250 steps. For the same Gaussian data this costs 0.169
bits/dim. After 500 steps of training the digits were at 2.942 bits/dim, with 2 pixels at 2.314, and
without blur at 2.280: four fifths of the KL are in those 40 steps, which are a sixth of what the
network is trained on. Predicting v does not help (2.954), and makes little difference for 2 pixels
(2.318).
"""

import dataclasses

from ddpm_jax import config


def get_config() -> config.Config:
    """The settings of configs/digits.py, but for the process."""
    return dataclasses.replace(
        config.load("digits"),
        process=config.Blurring(max_blur=2.0, min_scale=1e-3),
        workdir="runs/digits_blurring",
    )
