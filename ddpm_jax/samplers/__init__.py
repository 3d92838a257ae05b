"""Samplers, from noise to images: all have one contract, and one scan runs them.

- `ancestral`: the chain run backwards, with its noise.
- `ddim`: fewer steps, with less noise or none;  `ddim_inversion` goes from images to noise.
- `dpm_solver_pp`: second or third order at the cost of first, with noise or without.
- `dpm_solver_pp_single`: the same orders in blocks of two or three steps, without a memory.
- `unipc`: up to third order, and a corrector that adds one more at no call of the network.
- `midpoint`: second order in the time of rectified flow, in blocks of two steps.
- `heun`: second order, two calls of the network a step;  `stochastic_heun` adds noise before each.
- `probability_flow`: up to fourth order, one call a step.

`guidance` makes a guided network from another, `inpaint` a sampler that keeps known pixels from
another. They can be combined freely.
"""

from ddpm_jax.samplers import guidance as guidance
from ddpm_jax.samplers.ancestral import ancestral as ancestral
from ddpm_jax.samplers.base import Predict as Predict
from ddpm_jax.samplers.base import Sampler as Sampler
from ddpm_jax.samplers.base import SamplerState as SamplerState
from ddpm_jax.samplers.base import Samples as Samples
from ddpm_jax.samplers.base import StepInfo as StepInfo
from ddpm_jax.samplers.base import sample as sample
from ddpm_jax.samplers.blocks import dpm_solver_pp_single as dpm_solver_pp_single
from ddpm_jax.samplers.blocks import midpoint as midpoint
from ddpm_jax.samplers.churn import stochastic_heun as stochastic_heun
from ddpm_jax.samplers.ddim import ddim as ddim
from ddpm_jax.samplers.ddim import ddim_inversion as ddim_inversion
from ddpm_jax.samplers.dpm_solver import dpm_solver_pp as dpm_solver_pp
from ddpm_jax.samplers.flow import heun as heun
from ddpm_jax.samplers.flow import probability_flow as probability_flow
from ddpm_jax.samplers.inpainting import inpaint as inpaint
from ddpm_jax.samplers.thresholds import Threshold as Threshold
from ddpm_jax.samplers.thresholds import dynamic_threshold as dynamic_threshold
from ddpm_jax.samplers.thresholds import static_threshold as static_threshold
from ddpm_jax.samplers.time_grids import Spacing as Spacing
from ddpm_jax.samplers.time_grids import density_grid as density_grid
from ddpm_jax.samplers.time_grids import level_grid as level_grid
from ddpm_jax.samplers.time_grids import time_grid as time_grid
from ddpm_jax.samplers.unipc import UniPCVariant as UniPCVariant
from ddpm_jax.samplers.unipc import unipc as unipc
