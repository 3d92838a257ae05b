"""Networks behind one signature, `model.apply(variables, x_t, t) -> prediction`."""

from ddpm_jax.models.unet import UNet as UNet
