"""Samplers, the orders that were published of them, and how an order is measured."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.samplers import (
    ancestral,
    ddim,
    dpm_solver_pp,
    dpm_solver_pp_single,
    heun,
    midpoint,
    probability_flow,
    unipc,
)

T = 3073
STEPS = (96, 384)  # whole blocks of two and of three


@contextlib.contextmanager
def in_float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def even_times(num_steps):
    stride, rest = divmod(T - 1, num_steps)
    assert rest == 0
    return jnp.arange(T - 1, -1, -stride, dtype=jnp.int32)


def slope(errors):
    """Minus the slope of a straight line through log error over log steps."""
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


def bound(function, **options):
    return functools.partial(function, **options)


# Published orders, and the samplers: of the flow, and in law. None is published of 3M with noise:
# it is 2, because the noise between the values of x0_hat is no parabola.
FLOWS = {
    "ddim": (1, ddim),
    "dpm_solver_pp 1": (1, bound(dpm_solver_pp, order=1)),
    "dpm_solver_pp 2M": (2, dpm_solver_pp),
    "dpm_solver_pp 3M": (3, bound(dpm_solver_pp, order=3)),
    "dpm_solver_pp_single 2": (2, dpm_solver_pp_single),
    "dpm_solver_pp_single 3": (3, bound(dpm_solver_pp_single, order=3)),
    **{
        f"unipc {k}, {variant}": (k + 1, bound(unipc, order=k, variant=variant))
        for k in (1, 2, 3)
        for variant in ("bh1", "bh2")
    },
    **{f"unipc {k}, predictor": (k, bound(unipc, order=k, corrector=False)) for k in (1, 2, 3)},
    "midpoint": (2, midpoint),
    "heun": (2, heun),
    **{f"probability_flow {k}": (k, bound(probability_flow, order=k)) for k in (1, 2, 3, 4)},
}
DIFFUSIONS = {
    "ancestral small": (1, bound(ancestral, variance="small")),
    "ancestral large": (1, bound(ancestral, variance="large")),
    "ancestral learned range": (1, bound(ancestral, variance="learned_range")),
    "ddim with noise": (1, bound(ddim, eta=0.5)),
    "dpm_solver_pp 1, stochastic": (1, bound(dpm_solver_pp, order=1, stochastic=True)),
    "dpm_solver_pp 2M, stochastic": (2, bound(dpm_solver_pp, stochastic=True)),
    "dpm_solver_pp 3M, stochastic": (2, bound(dpm_solver_pp, order=3, stochastic=True)),
}
