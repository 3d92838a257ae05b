"""Compilers that are installed for `ddpm-jax plan` and have nothing to run on."""

import glob
import importlib.util

import jax

__all__ = ["ignore_absent_accelerators"]

_COMPILERS = ("libtpu", "jax_cuda13_plugin", "jax_cuda12_plugin")
_NODES = ("/dev/nvidia*", "/dev/dxg", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")
"""Where a Linux machine has its GPUs and TPUs."""


def ignore_absent_accelerators() -> None:
    """Keeps JAX from looking for devices of a compiler that was installed without them.

    The look costs a tenth of a second and more, and says so at length. What the user has chosen, by
    JAX_PLATFORMS, stays; so does JAX's own choice wherever there may be an accelerator.
    """
    if jax.config.values["jax_platforms"] or any(map(glob.glob, _NODES)):
        return
    if any(map(importlib.util.find_spec, _COMPILERS)):
        jax.config.update("jax_platforms", "cpu")
