"""Compilers that are installed for `ddpm-jax plan` on machines without their devices."""

import glob
import importlib.util

import jax

__all__ = ["ignore_absent_accelerators"]

_COMPILERS = ("libtpu", "jax_cuda13_plugin", "jax_cuda12_plugin")
_NODES = ("/dev/nvidia*", "/dev/dxg", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")
"""Device files of GPUs and TPUs on Linux."""


def ignore_absent_accelerators() -> None:
    """Keeps JAX from looking for devices of a compiler whose devices are absent.

    The search takes a tenth of a second or more, and prints long logs. A choice by JAX_PLATFORMS
    stays, and so does JAX's own choice if there may be an accelerator.
    """
    if jax.config.values["jax_platforms"] or any(map(glob.glob, _NODES)):
        return
    if any(map(importlib.util.find_spec, _COMPILERS)):
        jax.config.update("jax_platforms", "cpu")
