"""What the tests beside diffusers share. Importing it skips them where diffusers is missing."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import build

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, of nothing that is used here
    torch = pytest.importorskip("torch", reason="torch comes with the extra 'peers'")
    diffusers = pytest.importorskip("diffusers", reason="diffusers comes with the extra 'peers'")
    from diffusers.utils import import_utils

    import_utils._torchvision_available = False  # one for CUDA does not load beside CPU's PyTorch
    import_utils._transformers_available = False  # which would import it
    from diffusers.guiders.guider_utils import rescale_noise_cfg as rescale_noise_cfg
    from diffusers.schedulers import scheduling_ddpm as scheduling_ddpm

T = 1000
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
NAMES = {
    "linear": {},
    "quadratic": {"beta_schedule": "scaled_linear"},
    "cosine": COSINE,
    "sigmoid_betas": {"beta_schedule": "sigmoid"},
    "zero_terminal_snr": COSINE | {"rescale_betas_zero_snr": True},
}
"""Our schedules, and the arguments that make theirs."""

KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
"""What a network predicts, and what they call it."""

SHAPE = (2, 3, 4)  # batch, channels, pixels
KEY = jax.random.key(0)

schedule_of = functools.cache(build)


def to_torch(array):
    return torch.from_numpy(np.array(array, np.float32))


def judge(ours, theirs, exact, *, ours_within, theirs_within):
    """Both are near to what is exact, relative to it where it is above 1."""
    size = np.maximum(np.abs(exact), 1.0)
    for who, values, within in (("ours", ours, ours_within), ("theirs", theirs, theirs_within)):
        error = np.max(np.abs(np.asarray(values, np.float64) - exact) / size)
        assert error < within, f"{who}: {error}"


def noise_of(key):
    """What a sampler's step draws."""
    return np.asarray(jax.random.normal(key, SHAPE, jnp.float32))
