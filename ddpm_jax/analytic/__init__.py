"""Data whose best denoiser is known in closed form, for tests of samplers and losses.

`mixtures` makes the data. `denoising` has the best prediction, the density of x_t and a perfect
network, `elbo` the bound that a chain reaches with that network on Gaussian data.
"""

from ddpm_jax.analytic.denoising import denoise as denoise
from ddpm_jax.analytic.denoising import log_density as log_density
from ddpm_jax.analytic.denoising import predictor as predictor
from ddpm_jax.analytic.elbo import ElboTerms as ElboTerms
from ddpm_jax.analytic.elbo import elbo_terms as elbo_terms
from ddpm_jax.analytic.mixtures import Estimate as Estimate
from ddpm_jax.analytic.mixtures import Mixture as Mixture
from ddpm_jax.analytic.mixtures import covariance as covariance
from ddpm_jax.analytic.mixtures import entropy as entropy
from ddpm_jax.analytic.mixtures import entropy_estimate as entropy_estimate
from ddpm_jax.analytic.mixtures import gaussian as gaussian
from ddpm_jax.analytic.mixtures import mean as mean
from ddpm_jax.analytic.mixtures import mixture as mixture
from ddpm_jax.analytic.mixtures import sample as sample
