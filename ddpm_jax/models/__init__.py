"""Networks behind one signature, `model.apply(variables, x_t, t) -> prediction`."""

from ddpm_jax.models.summary import Layer as Layer
from ddpm_jax.models.summary import layer_table as layer_table
from ddpm_jax.models.unet import AttentionKernel as AttentionKernel
from ddpm_jax.models.unet import Remat as Remat
from ddpm_jax.models.unet import UNet as UNet
from ddpm_jax.models.unet import init_params as init_params
