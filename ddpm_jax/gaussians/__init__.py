"""Arithmetic of Gaussians, in nats: KL, entropy, log density, and likelihoods of grey levels.

There are three kinds of covariance, each in a module of its own:

- `diagonal`: one value per element; the caller sums over dimensions.
- `full`: Cholesky factors `[..., d, d]`; one value per Gaussian.
- `discretized`: a Gaussian cut into the bins of grey levels; one value per element.

Values and gradients are good to a few units in the last place of float32, also where variances
vanish or agree. Where a log density adds terms of both signs, the unit is that of the largest term;
for full covariances the error grows with the factors' condition. bfloat16 and float16 are computed
in float32 and rounded once, at the end. float64 stays float64, though series and quadratures end
where float32 does. Variances, deviations and factors' diagonals are positive and at least 1.2e-38,
below which XLA reads 0.
"""

from ddpm_jax.gaussians.diagonal import entropy_diagonal as entropy_diagonal
from ddpm_jax.gaussians.diagonal import kl_diagonal as kl_diagonal
from ddpm_jax.gaussians.diagonal import kl_shared_variance as kl_shared_variance
from ddpm_jax.gaussians.diagonal import kl_standardized as kl_standardized
from ddpm_jax.gaussians.diagonal import kl_to_standard_normal as kl_to_standard_normal
from ddpm_jax.gaussians.diagonal import log_density_diagonal as log_density_diagonal
from ddpm_jax.gaussians.discretized import discretized_log_likelihood as discretized_log_likelihood
from ddpm_jax.gaussians.full import entropy_full as entropy_full
from ddpm_jax.gaussians.full import kl_full as kl_full
from ddpm_jax.gaussians.full import log_density_full as log_density_full
