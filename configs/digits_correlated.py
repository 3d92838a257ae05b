"""Scikit-learn's digits under noise that is correlated between neighbouring pixels.

    ddpm-jax train configs/digits_correlated.py

All but the process is as in configs/digits.py, with its 176,849 parameters: 1.995 +- 0.013 bits/dim
beside 1.964 +- 0.013; image by image the difference is 0.030 +- 0.002.

Why this number. Pixels (x, y) apart have noise of correlation rho^(|x| + |y|), rho =
exp(-1 / correlation_length): 0.14 at half a pixel, a factor of 3 in SNR between the coarsest mode
and the finest. A pixel's noise at t = 0 has the variance that it has in digits.py, and the decoder
works pixel by pixel, so it gains next to nothing (0.116 beside 0.123 bits/dim). But of all noise
with that variance white noise has the most entropy; correlated noise has log2(1 / (1 - rho^2))
bits/dim less, 0.027 here. The chain begins at so much finer detail, and pays for it in KL terms
as far as the network does not know the grid of grey levels: 0.037 more than digits.py. Gaussian
data with the digits' covariance and the best denoiser would pay 0.033, and 0.032 at T = 1000.

Longer correlations cost more: at 1 pixel (rho = 0.37) that entropy is 0.21, and after 500 steps of
training the digits stood at 2.479 bits/dim beside 2.307 with half a pixel and 2.277 with white
noise (all three predicting v, which made no difference to white noise). To begin with more noise
(--schedule.log-snr-max 6.7, as much entropy as white noise has at 7) is no way out: the decoder
pays then, and the whole run ends at 2.101.
"""

import dataclasses

from ddpm_jax import config


def get_config() -> config.Config:
    """The settings of configs/digits.py, but for the process."""
    return dataclasses.replace(
        config.load("digits"),
        process=config.Correlated(correlation_length=0.5),
        workdir="runs/digits_correlated",
    )
