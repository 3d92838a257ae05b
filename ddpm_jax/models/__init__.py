"""Networks with one signature, `model.apply(variables, x_t, t) -> prediction`."""

from ddpm_jax.errors import require

require("ddpm_jax.models", "models", "flax")

from ddpm_jax.models.blocks import AttentionKernel as AttentionKernel
from ddpm_jax.models.blocks import InterpolationRange as InterpolationRange
from ddpm_jax.models.blocks import Remat as Remat
from ddpm_jax.models.dit import DiT as DiT
from ddpm_jax.models.dit import TokenRemat as TokenRemat
from ddpm_jax.models.interface import init_params as init_params
from ddpm_jax.models.interface import network_function as network_function
from ddpm_jax.models.preconditioned import NoiseInput as NoiseInput
from ddpm_jax.models.preconditioned import Preconditioned as Preconditioned
from ddpm_jax.models.summary import Layer as Layer
from ddpm_jax.models.summary import layer_table as layer_table
from ddpm_jax.models.unet import Resampling as Resampling
from ddpm_jax.models.unet import UNet as UNet
