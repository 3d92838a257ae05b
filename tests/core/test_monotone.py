"""A monotone log SNR: its tables against mpmath, on the host and traced, and its other lengths."""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from ddpm_jax import analytic, schedules

ENDS = schedules.Endpoints(13.3, -7.0)
WIDTH = 8


def random_params(seed):
    """Far from a straight line: weights and slopes over three orders of magnitude."""
    rng = np.random.default_rng(seed)
    offsets = (rng.normal(size=leaf.shape) * 1.5 for leaf in schedules.monotone(WIDTH))
    pairs = zip(schedules.monotone(WIDTH), offsets, strict=True)
    return schedules.Monotone(*(np.float32(leaf + offset) for leaf, offset in pairs))


@functools.cache
def exact_log_snr(seed, num_steps):
    """Equation (1) of the module, as it stands there, in 50 digits."""
    params = random_params(seed)
    with mpmath.workdps(50):
        line, heights, slopes, centres = (
            [mpmath.mpf(float(value)) for value in np.atleast_1d(leaf)] for leaf in params
        )

        def g(u):
            return mpmath.exp(line[0]) * u + sum(
                mpmath.exp(h) / (1 + mpmath.exp(-mpmath.exp(s) * (u - c)))
                for h, s, c in zip(heights, slopes, centres, strict=True)
            )

        high, low = (mpmath.mpf(end) for end in ENDS)
        values = [g(mpmath.mpf(t) / (num_steps - 1)) for t in range(num_steps)]
        rise = values[-1] - values[0]
        return [high - (high - low) * (value - values[0]) / rise for value in values]


def traced(seed, num_steps):
    make = functools.partial(schedules.from_monotone, endpoints=ENDS, num_steps=num_steps)
    return jax.jit(make)(random_params(seed))


@pytest.mark.parametrize("seed", range(3))
def test_tables_of_the_host_are_those_of_50_digits(seed):
    schedule = schedules.from_monotone(random_params(seed), ENDS, 40)
    exact = exact_log_snr(seed, 40)
    np.testing.assert_allclose(schedule.mean_log_snr(), np.float64(exact), atol=2e-13)
    with mpmath.workdps(50):
        steps = np.float64([after - before for before, after in itertools.pairwise(exact)])
    t = jnp.arange(1, 40)
    np.testing.assert_allclose(schedule.log_snr_difference(t, t - 1), steps, rtol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_traced_tables_keep_the_digits_of_neighbouring_differences(seed):
    """In steps a thousandth of log SNR itself, whose float32 alone would keep four digits."""
    schedule, exact = traced(seed, 1000), exact_log_snr(seed, 1000)
    with mpmath.workdps(50):
        steps = np.float64([after - before for before, after in itertools.pairwise(exact)])
    t = jnp.arange(1, 1000)
    np.testing.assert_allclose(schedule.log_snr_difference(t, t - 1), steps, rtol=1e-5)
    np.testing.assert_allclose(schedule.log_snr, np.float64(exact), atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_log_snr_falls_between_exact_ends(seed):
    for schedule in (
        schedules.from_monotone(random_params(seed), ENDS, 250),
        traced(seed, 250),
    ):
        t = jnp.arange(1, 250)
        assert np.all(np.asarray(schedule.log_snr_difference(t, t - 1)) < 0.0)
        assert (schedule.log_snr[0], schedule.log_snr[-1]) == tuple(np.float32(ENDS))


def test_the_gradient_of_traced_tables_is_that_of_differences_in_float64():
    params, direction = random_params(0), random_params(1)

    def moved(step):
        pairs = zip(params, direction, strict=True)
        return schedules.Monotone(*(np.float64(a) + step * np.float64(b) for a, b in pairs))

    def of_host(step, end):
        ends = schedules.Endpoints(ENDS.log_snr_max + end, ENDS.log_snr_min - 2.0 * end)
        return np.sin(schedules.from_monotone(moved(step), ends, 50).mean_log_snr()).sum()

    def of_jax(step, end):
        pairs = zip(params, direction, strict=True)
        along = schedules.Monotone(*(a + step * b for a, b in pairs))
        ends = schedules.Endpoints(ENDS.log_snr_max + end, ENDS.log_snr_min - 2.0 * end)
        return jnp.sum(jnp.sin(schedules.from_monotone(along, ends, 50).log_snr))

    h = 1e-5
    expected = (
        (of_host(h, 0.0) - of_host(-h, 0.0)) / (2.0 * h),
        (of_host(0.0, h) - of_host(0.0, -h)) / (2.0 * h),
    )
    got = jax.jit(jax.grad(of_jax, argnums=(0, 1)))(0.0, 0.0)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_networks_see_the_same_number_at_the_same_noise_with_any_number_of_steps():
    positions = (schedules.Endpoints(7.0, -8.0), 250)
    moved = schedules.Endpoints(6.0, -9.0)
    for num_steps in (250, 1000):
        schedule = schedules.from_monotone(
            random_params(0), moved, num_steps, network_positions=positions
        )
        straight = (7.0 - schedule.mean_log_snr()) / 15.0 * 249.0
        np.testing.assert_allclose(schedule.network_times, straight, rtol=1e-6)


@pytest.mark.thorough
def test_the_bound_of_more_steps_falls_to_that_of_infinitely_many():
    """For Gaussian data, whose entropy is the limit but for the prior's and the decoder's share."""
    data = analytic.gaussian([0.3, -0.1], [[1.0, 0.5], [0.5, 0.4]])
    totals = []
    for num_steps in (100, 200, 400):
        schedule = schedules.from_monotone(random_params(2), ENDS, num_steps)
        totals.append(float(analytic.elbo_terms(data, schedule).total))
    gains = -np.diff(totals)
    np.testing.assert_allclose(gains[:-1] / gains[1:], 2.0, rtol=0.1)  # 1 / T
    assert totals[-1] > float(analytic.entropy(data))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: schedules.monotone(0), "width is 0; it has to be at least 8"),
        (
            lambda: schedules.from_monotone(random_params(0), schedules.Endpoints(1.0, 2.0), 9),
            r"endpoints is \(1.0, 2.0\); the first has to be the larger",
        ),
        (
            lambda: schedules.from_monotone(random_params(0), schedules.Endpoints(5.0, 5.0), 9),
            r"endpoints is \(5.0, 5.0\); the first has to be the larger",
        ),
        (
            lambda: schedules.from_monotone(
                random_params(0), ENDS, 9, network_positions=(schedules.Endpoints(5.0, 5.0), 9)
            ),
            r"network_positions is \(5.0, 5.0\); the first has to be the larger",
        ),
        (lambda: schedules.monotone_steps(random_params(0), 1), "num_steps is 1"),
    ],
)
def test_what_makes_no_schedule_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
