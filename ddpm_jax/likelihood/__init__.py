"""Bits per dimension: the whole chain, chosen times, continuous time, and the probability flow.

- `bits_per_dim`: every term of the ELBO; `bits_at_times` those at chosen times, which
  `spread_times` spreads over the chain.
- `estimate_bits_per_dim`: few random times of each example, with the standard error.
- `continuous_bits_per_dim`: the limit of infinitely many steps, at few random noise levels.
- `flow_bits_per_dim`: the exact likelihood of the probability flow, for grey levels with
  `dequantize`.
"""

from ddpm_jax.likelihood.continuous import ContinuousBits as ContinuousBits
from ddpm_jax.likelihood.continuous import continuous_bits_per_dim as continuous_bits_per_dim
from ddpm_jax.likelihood.estimate import BitsEstimate as BitsEstimate
from ddpm_jax.likelihood.estimate import estimate_bits_per_dim as estimate_bits_per_dim
from ddpm_jax.likelihood.exact import BitsAtTimes as BitsAtTimes
from ddpm_jax.likelihood.exact import BitsPerDim as BitsPerDim
from ddpm_jax.likelihood.exact import bits_at_times as bits_at_times
from ddpm_jax.likelihood.exact import bits_per_dim as bits_per_dim
from ddpm_jax.likelihood.exact import spread_times as spread_times
from ddpm_jax.likelihood.flow import FlowLikelihood as FlowLikelihood
from ddpm_jax.likelihood.flow import dequantize as dequantize
from ddpm_jax.likelihood.flow import flow_bits_per_dim as flow_bits_per_dim
