"""Prints how far each quantity is from 50-digit arithmetic, beside diffusers where installed.

    .venv/bin/python tests/support/precision.py

Largest error over every time of each schedule that `exact.chain` knows, at T = 10, 1000 and 4000,
in float32's last places (ulp) and relative to the exact value. The columns of diffusers are its
own float32 tables, and what its DDPM step computes from them, for the same linear and cosine chain
at T = 1000, where it has the quantity at all.
"""

import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from exact import Chain, build, chain, float64, log_probability_and_slope, ulps

from ddpm_jax import kl_weight, q_posterior
from ddpm_jax.forward import q_posterior_variance
from ddpm_jax.gaussians import discretized_log_likelihood
from ddpm_jax.schedules import Schedule

SCHEDULES = (
    *("linear", "quadratic", "constant", "cosine", "sigmoid", "linear_log_snr"),
    *("zero_terminal_snr", "shifted", "respaced"),
)
LENGTHS = (10, 1000, 4000)


class Error(NamedTuple):
    """The largest over some times: last places of float32, and relative."""

    ulp: float
    relative: float


def error(found, expected: list) -> Error:
    """Of a float32 array against mpmath numbers; where both are infinite or 0, none."""
    found, exact = np.asarray(found, np.float32), float64(expected)
    # log SNR crosses zero, where a relative error means nothing: it counts as 1e-6 there.
    floor = 1e-6 if exact.min() < 0.0 < exact.max() else 0.0
    apart = found != exact
    difference = np.subtract(found, exact, out=np.zeros_like(exact), where=apart)
    relative = np.divide(
        np.abs(difference), np.maximum(np.abs(exact), floor), out=np.zeros_like(exact), where=apart
    )
    return Error(float(ulps(found, expected, floor).max()), float(relative.max()))


def exact_quantities(tables: Chain) -> dict[str, list]:
    """What the two libraries compute, in 50 digits; index t, steps from t = 1."""
    steps = range(1, len(tables.betas))
    snr = [a / b for a, b in zip(tables.alpha_bar, tables.noise_power, strict=True)]
    posteriors = [tables.posterior(t, t - 1) for t in steps]
    weight_x0, weight_x_t, variance = zip(*posteriors, strict=True)
    kl_x0 = [(snr[t - 1] - snr[t]) / 2 for t in steps]
    return {
        "beta": tables.betas,
        "alpha_bar": tables.alpha_bar,
        "1 - alpha_bar": tables.noise_power,
        "log SNR": tables.log_snr,
        "log SNR(t) - log SNR(t-1)": [tables.log_snr[t] - tables.log_snr[t - 1] for t in steps],
        "posterior variance": variance,
        "posterior mean, weight of x_0": weight_x0,
        "posterior mean, weight of x_t": weight_x_t,
        "KL weight of eps": [(snr[t - 1] / snr[t] - 1) / 2 for t in steps if snr[t] > 0],
        "KL weight of x0": kl_x0,
        "KL weight of v": [w * tables.noise_power[t] for w, t in zip(kl_x0, steps, strict=True)],
    }


def our_quantities(schedule: Schedule) -> dict[str, jnp.ndarray]:
    """The same from ddpm_jax."""
    t = jnp.arange(1, schedule.num_steps, dtype=jnp.int32)
    one, zero = jnp.ones((len(t), 1)), jnp.zeros((len(t), 1))
    weight_x0, _ = q_posterior(schedule, one, zero, t, t - 1)
    weight_x_t, _ = q_posterior(schedule, zero, one, t, t - 1)
    found = {
        "beta": schedule.betas,
        "alpha_bar": schedule.alpha_bar,
        "1 - alpha_bar": schedule.noise_power,
        "log SNR": schedule.log_snr,
        "log SNR(t) - log SNR(t-1)": schedule.log_snr_difference(t, t - 1),
        "posterior variance": q_posterior_variance(schedule, t, t - 1),
        "posterior mean, weight of x_0": weight_x0[:, 0],
        "posterior mean, weight of x_t": weight_x_t[:, 0],
        "KL weight of x0": kl_weight(schedule, t, predicts="x0"),
        "KL weight of v": kl_weight(schedule, t, predicts="v"),
    }
    if not schedule.zero_terminal_snr:
        found["KL weight of eps"] = kl_weight(schedule, t, predicts="eps")
    return found


def diffusers_quantities(beta_schedule: str) -> dict[str, np.ndarray]:
    """The same from diffusers, by the lines of its DDPMScheduler.step."""
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

    scheduler = DDPMScheduler(1000, beta_schedule=beta_schedule)
    alpha_bar, betas = scheduler.alphas_cumprod, scheduler.betas
    before, after = alpha_bar[:-1], alpha_bar[1:]
    beta = 1 - after / before
    solver = DPMSolverMultistepScheduler(1000, beta_schedule=beta_schedule)
    log_snr = 2 * solver.lambda_t
    found = {
        "beta": betas,
        "alpha_bar": alpha_bar,
        "1 - alpha_bar": 1 - alpha_bar,
        "log SNR": log_snr,
        "log SNR(t) - log SNR(t-1)": log_snr[1:] - log_snr[:-1],
        "posterior variance": (1 - before) / (1 - after) * beta,
        "posterior mean, weight of x_0": before**0.5 * beta / (1 - after),
        "posterior mean, weight of x_t": (after / before) ** 0.5 * (1 - before) / (1 - after),
    }
    return {name: np.asarray(table) for name, table in found.items()}


def our_errors() -> dict[str, Error]:
    """The largest over all schedules and lengths."""
    worst: dict[str, Error] = {}
    for name in SCHEDULES:
        for num_steps in LENGTHS:
            exact = exact_quantities(chain(name, num_steps))
            for quantity, found in our_quantities(build(name, num_steps)).items():
                _keep_worst(worst, quantity, error(found, exact[quantity]))
    return worst


def diffusers_errors() -> dict[str, Error] | None:
    """The largest over the linear and the cosine chain; None where diffusers is not installed."""
    worst: dict[str, Error] = {}
    try:
        for name, theirs in (("linear", "linear"), ("cosine", "squaredcos_cap_v2")):
            exact = exact_quantities(chain(name, 1000))
            for quantity, found in diffusers_quantities(theirs).items():
                _keep_worst(worst, quantity, error(found, exact[quantity]))
    except ImportError:
        return None
    return worst


def grey_level_errors() -> Iterator[tuple[str, float]]:
    """The discretized log likelihood: error over max(1, |log p|), where float32 has digits."""
    for levels in (2, 17, 256, 65536):
        grid = np.linspace(-1, 1, levels).astype(np.float32)[[0, levels // 3, -1]]
        means = np.float32([-3, -1, -0.3, 0, 1e-3, 0.5, 1, 7])
        worst = 0.0
        for deviation in np.float32([1e-4, 1e-2, 0.1, 1.0, 10.0]):
            x, mean = (side.ravel() for side in np.meshgrid(grid, means))
            found = discretized_log_likelihood(
                jnp.asarray(x), jnp.asarray(mean), jnp.full(x.shape, deviation), levels=levels
            )
            exact = float64(
                [
                    log_probability_and_slope(*p, deviation, levels)[0]
                    for p in zip(x, mean, strict=True)
                ]
            )
            worst = max(worst, float(np.max(np.abs(found - exact) / np.maximum(1, np.abs(exact)))))
        yield f"log p of a grey level of {levels}", worst


def main() -> None:
    """The table, as markdown."""
    ours, theirs = our_errors(), diffusers_errors()
    print("| quantity | ddpm_jax, ulp | relative | diffusers, ulp | relative |")
    print("| --- | --- | --- | --- | --- |")
    for quantity, found in ours.items():
        other = (theirs or {}).get(quantity)
        beside = f"{other.ulp:,.0f} | {other.relative:.1e}" if other else " | "
        print(f"| {quantity} | {found.ulp:.2f} | {found.relative:.1e} | {beside} |")
    for quantity, relative in grey_level_errors():
        print(f"| {quantity} | | {relative:.1e} | | |")
    if theirs is None:
        print("diffusers is not installed (pip install -e '.[test,peers]')", file=sys.stderr)


def _keep_worst(worst: dict[str, Error], quantity: str, found: Error) -> None:
    worst[quantity] = Error(*map(max, found, worst.get(quantity, Error(0.0, 0.0))))


if __name__ == "__main__":
    main()
