"""Training losses and the terms of the evidence lower bound, one value per example.

`weighted` has squared errors and published weights of them, `elbo` the bound, `distillation` the
target of a student with half the steps.
"""

from ddpm_jax.losses.distillation import distillation_target as distillation_target
from ddpm_jax.losses.elbo import elbo_loss as elbo_loss
from ddpm_jax.losses.elbo import hybrid_loss as hybrid_loss
from ddpm_jax.losses.elbo import kl_weight as kl_weight
from ddpm_jax.losses.elbo import prior_term as prior_term
from ddpm_jax.losses.elbo import vlb_terms as vlb_terms
from ddpm_jax.losses.weighted import Weighting as Weighting
from ddpm_jax.losses.weighted import constant as constant
from ddpm_jax.losses.weighted import error_weight as error_weight
from ddpm_jax.losses.weighted import min_snr as min_snr
from ddpm_jax.losses.weighted import p2 as p2
from ddpm_jax.losses.weighted import simple_loss as simple_loss
from ddpm_jax.losses.weighted import target as target
from ddpm_jax.losses.weighted import truncated_snr as truncated_snr
from ddpm_jax.losses.weighted import weighted_loss as weighted_loss
