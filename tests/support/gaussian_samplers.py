"""Every sampler, and the best denoiser of Gaussian data for it."""

import jax.numpy as jnp
from exact import chain, float64, gaussian_denoiser

from ddpm_jax.samplers import (
    ancestral,
    ddim,
    dpm_solver_pp,
    dpm_solver_pp_single,
    heun,
    midpoint,
    probability_flow,
    stochastic_heun,
    unipc,
)

MEAN, DEVIATION = 0.3, 0.5


def denoiser(name, num_steps, predicts="eps"):
    return gaussian_denoiser(float64(chain(name, num_steps).alpha_bar), MEAN, DEVIATION, predicts)


def learned_range(schedule, predict, **options):
    """Ancestral sampling with a network that says half way between the two variances."""
    return ancestral(
        schedule,
        lambda x_t, t: (predict(x_t, t), jnp.full_like(x_t, 0.5)),
        variance="learned_range",
        **options,
    )


SAMPLERS = {
    "ancestral small": lambda *args, **kw: ancestral(*args, variance="small", **kw),
    "ancestral large": lambda *args, **kw: ancestral(*args, variance="large", **kw),
    "ancestral learned range": learned_range,
    "ddim": ddim,
    "ddim with noise": lambda *args, **kw: ddim(*args, eta=0.7, **kw),
    "dpm_solver_pp 1": lambda *args, **kw: dpm_solver_pp(*args, order=1, **kw),
    "dpm_solver_pp 2M": dpm_solver_pp,
    "dpm_solver_pp 2M, stochastic": lambda *args, **kw: dpm_solver_pp(*args, stochastic=True, **kw),
    "dpm_solver_pp 3M": lambda *args, **kw: dpm_solver_pp(*args, order=3, **kw),
    "dpm_solver_pp_single 2": dpm_solver_pp_single,
    "dpm_solver_pp_single 3": lambda *args, **kw: dpm_solver_pp_single(*args, order=3, **kw),
    "unipc 2, bh1": lambda *args, **kw: unipc(*args, order=2, variant="bh1", **kw),
    "unipc 3": unipc,
    "midpoint": midpoint,
    "heun": heun,
    "stochastic_heun": lambda *args, **kw: stochastic_heun(*args, gamma=0.2, **kw),
    "probability_flow 2": lambda *args, **kw: probability_flow(*args, order=2, **kw),
    "probability_flow 4": probability_flow,
}
