"""Scikit-learn's digits under blur and noise at once (Hoogeboom & Salimans 2022).

    ddpm-jax train configs/digits_blurring.py

https://arxiv.org/abs/2209.05557. All but the process is as in configs/digits.py, with its
176,849 parameters: 1.988 +- 0.013 bits/dim beside 1.964 +- 0.013; image by image the difference is
0.023 +- 0.003.

Why these numbers. A kernel of 2 pixels at the end, 1 pixel half way, is a stroke's width on 8x8,
and it acts late: at t = 0 there is none, so that the decoder's noise is that of digits.py. What
blur can cost: the KL terms are a line integral of the best denoiser's error over the SNR of all
modes, and depend on where SNR begins and ends, not on the way (Guo et al. 2005,
https://doi.org/10.1109/TIT.2005.844072). Blur leaves the beginning alone, and the end was noise
anyway. It makes the way longer: log SNR of the finest mode falls by 29 in place of 15, in as many
steps. For Gaussian data with the digits' covariance and the best denoiser that costs 0.012
bits/dim at T = 250, and a quarter of it at T = 1000.

The 20 pixels of the paper's larger images wipe out these: the finest mode falls to its least scale
within the first 40 of 250 steps. The same Gaussian pays 0.169 for it. After 500 steps of training
the digits stood at 2.942 bits/dim, beside 2.314 with 2 pixels and 2.280 without blur: four fifths
of the KL are then in those 40 steps, a sixth of what the network is trained on. To predict v is no
way out, 2.954, and makes little difference to 2 pixels, 2.318.
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
