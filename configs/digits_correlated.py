"""Scikit-learn's digits under noise that is correlated between neighbouring pixels.

    ddpm-jax train digits_correlated

Only the process differs from configs/digits.py. With the same 176,849 parameters it reaches
1.995 +- 0.013 bits/dim, and digits.py 1.964 +- 0.013; the mean difference over the images is
0.030 +- 0.002.

Why this number: the noise of two pixels (x, y) apart has the correlation rho^(|x| + |y|) with rho =
exp(-1 / correlation_length). Half a pixel gives rho = 0.14, and a factor of 3 in SNR between the
coarsest mode and the finest. A pixel's noise at t = 0 has the same variance as in digits.py, and
the decoder works pixel by pixel, so that it gains almost nothing (0.116 bits/dim, and 0.123 in
digits.py). But of all noise with that variance, white noise has the largest entropy. Correlated
noise has log2(1 / (1 - rho^2)) bits/dim less, 0.027 here. The chain therefore begins with finer
detail. This costs KL terms as far as the network does not know the grid of grey levels: 0.037 more
than digits.py. For Gaussian data with the digits' covariance and the best denoiser the cost would
be 0.033, and 0.032 at T = 1000.

Longer correlations cost more. At 1 pixel (rho = 0.37) the entropy is 0.21 bits/dim less. After 500
steps of training the digits were at 2.479 bits/dim, with half a pixel at 2.307, and with white
noise at 2.277 (all three predicting v, which made no difference for white noise). A start with more
noise (--schedule.log-snr-max 6.7, with the entropy of white noise at 7) does not help: the decoder
term grows, and the whole run ends at 2.101.
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
