"""Samplers: from noise to images. One contract, one scan; see `base`."""

from ddpm_jax.samplers.ancestral import ancestral as ancestral
from ddpm_jax.samplers.base import Predict as Predict
from ddpm_jax.samplers.base import Sampler as Sampler
from ddpm_jax.samplers.base import SamplerState as SamplerState
from ddpm_jax.samplers.base import Samples as Samples
from ddpm_jax.samplers.base import StepInfo as StepInfo
from ddpm_jax.samplers.base import sample as sample
from ddpm_jax.samplers.base import time_grid as time_grid
from ddpm_jax.samplers.ddim import ddim as ddim
