"""Grids of times: what they are by hand, and what every one of them keeps to."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import chain, float64
from hypothesis import given

from ddpm_jax import schedules
from ddpm_jax.samplers import density_grid, level_grid, time_grid

SPACINGS = ("linspace", "leading", "trailing", "log_snr", "karras")
STRAIGHT = schedules.linear_log_snr(13)


@pytest.mark.parametrize(
    ("num_steps", "grid"),
    [(10, range(9, -1, -1)), (1, [9]), (2, [9, 0]), (4, [9, 6, 3, 0]), (5, [9, 7, 4, 2, 0])],
)
def test_linspace(num_steps, grid):
    times = time_grid(schedules.linear(10), num_steps)
    assert times.dtype == jnp.int32
    np.testing.assert_array_equal(times, list(grid))


@pytest.mark.parametrize("T", [2, 7, 1000, 100_000])
def test_linspace_falls_evenly_and_never_repeats(T):
    schedule = schedules.linear_log_snr(T)
    for num_steps in {2, T // 3, T - 1, T} - {0, 1}:
        times = np.asarray(time_grid(schedule, num_steps), np.int64)
        assert (times[0], times[-1], len(times)) == (T - 1, 0, num_steps)
        steps = -np.diff(times)
        assert steps.min() >= 1
        assert steps.max() - steps.min() <= 1


@pytest.mark.parametrize(
    ("spacing", "num_steps", "grid"),
    [  # Lin et al. 2024, table 2, counts from 1
        ("linspace", 10, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        ("leading", 10, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        ("trailing", 10, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        ("leading", 3, [666, 333, 0]),
        ("trailing", 3, [999, 666, 332]),
        # Halves are rounded to even, as NumPy does: 937.5 to 938, 812.5 to 812.
        (
            "trailing",
            16,
            [999, 937, 874, 811, 749, 687, 624, 561, 499, 437, 374, 311, 249, 187, 124, 61],
        ),
        ("leading", 1, [0]),
        ("trailing", 1, [999]),
        ("log_snr", 1, [999]),
        ("karras", 1, [999]),
    ],
)
def test_grids_by_hand(spacing, num_steps, grid):
    assert time_grid(schedules.linear(1000), num_steps, spacing).tolist() == grid


def nearest_times(name, T, num_steps):
    log_snr = float64(chain(name, T).log_snr)
    wanted = np.linspace(log_snr[-1], log_snr[0], num_steps)
    return np.abs(log_snr[:, None] - wanted).argmin(axis=0)


def test_even_in_log_snr_is_the_nearest_time():
    times = time_grid(schedules.linear(1000), 20, "log_snr")
    np.testing.assert_array_equal(times, nearest_times("linear", 1000, 20))
    assert time_grid(STRAIGHT, 4, "log_snr").tolist() == [12, 8, 4, 0]


@pytest.mark.thorough
@pytest.mark.parametrize("num_steps", [9, 40, 60, 99])
def test_even_in_log_snr_makes_room_where_times_are_few(num_steps):
    # A cosine chain falls through half of its log SNR in the last few steps before noise. Upwards
    # from the data, each takes its nearest time or the next free one, and leaves room for the rest.
    nearest = nearest_times("cosine", 100, num_steps)[::-1]
    assert len(set(nearest)) < num_steps
    expected = [0]
    for i, time in enumerate(nearest[1:], start=1):
        expected.append(min(max(time, expected[-1] + 1), 100 - num_steps + i))
    times = time_grid(schedules.cosine(100), num_steps, "log_snr")
    assert times.tolist() == expected[::-1]


@pytest.mark.thorough
@given(st.sampled_from(SPACINGS), st.integers(2, 60), st.data(), st.booleans())
def test_every_grid_falls_inside_the_chain(spacing, T, data, silent):
    num_steps = data.draw(st.integers(1, T))
    schedule = schedules.linear(T, 1e-3, 0.5)
    if silent:
        schedule = schedules.zero_terminal_snr(schedule)
    times = np.asarray(time_grid(schedule, num_steps, spacing))
    assert times.shape == (num_steps,)
    assert (np.diff(times) < 0).all()
    assert times.min() >= 0
    assert times.max() < T
    if spacing != "leading":
        assert times[0] == T - 1
    if spacing != "trailing" and num_steps > 2:
        assert times[-1] == 0
    if num_steps == T:
        np.testing.assert_array_equal(times, np.arange(T)[::-1])


def test_even_in_log_snr_with_no_signal_at_the_end():
    log_snr = np.append(np.linspace(6.0, -6.0, 13), -np.inf)
    times = time_grid(schedules.from_log_snr(log_snr), 5, "log_snr")
    assert times.tolist() == [13, 12, 8, 4, 0]
    for num_steps, grid in ((1, [13]), (2, [13, 12])):
        for spacing in ("log_snr", "karras"):
            times = time_grid(schedules.from_log_snr(log_snr), num_steps, spacing)
            assert times.tolist() == grid


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_is_the_nearest_time_to_their_levels(rho):
    # Karras et al. 2022, eq. 5.
    sigma = np.exp(-0.5 * float64(chain("linear", 1000).log_snr))
    share = np.arange(12) / 11
    levels = (
        sigma[-1] ** (1 / rho) + share * (sigma[0] ** (1 / rho) - sigma[-1] ** (1 / rho))
    ) ** rho
    nearest = np.abs(np.log(sigma[:, None] / levels)).argmin(axis=0)
    times = time_grid(schedules.linear(1000), 12, "karras", rho=rho)
    np.testing.assert_array_equal(times, nearest)


def test_karras_ends_in_log_snr_for_a_large_rho_and_at_the_noise_for_a_small_one():
    schedule = schedules.linear(1000)
    even = time_grid(schedule, 20, "log_snr")
    for rho in (1e6, np.inf):
        np.testing.assert_array_equal(time_grid(schedule, 20, "karras", rho=rho), even)
    assert time_grid(schedule, 4, "karras", rho=1e-3).tolist() == [999, 998, 997, 0]


# ---- equal shares of a density, and given levels


def test_equal_shares_of_a_density():
    schedule = schedules.linear(12)
    assert density_grid(schedule, 4, np.ones(12)).tolist() == [11, 8, 5, 2]
    # 12 of 18 parts are in t = 0 to 5, and so are four of the six times. Of two nearest ones it is
    # the lower: the first t + 1 times have 2, 4, 6, ... parts, and 9 and 3 are wanted.
    assert density_grid(schedule, 6, [2] * 6 + [1] * 6).tolist() == [11, 8, 5, 3, 2, 0]
    assert density_grid(schedule, 3, [1] * 6 + [0] * 6).tolist() == [11, 3, 1]
    for T, num_steps in ((1000, 7), (10, 10), (97, 1)):
        trailing = time_grid(schedules.linear(T), num_steps, "trailing")
        np.testing.assert_array_equal(
            density_grid(schedules.linear(T), num_steps, np.ones(T)), trailing
        )


def test_the_root_of_the_cost_is_the_best_density():
    # Of a step's cost c h^2: against the best of all grids, by dynamic programming.
    T, num_steps = 60, 8
    cost = np.exp(np.linspace(4.0, 0.0, T))  # dear near the data
    total = np.append(0.0, np.cumsum(cost))

    def of_step(t, s):
        return (total[t + 1] - total[s + 1]) * (t - s)

    least = {-1: 0.0}  # of all ways from the data up to a time
    for _ in range(num_steps):
        least = {
            t: min(value + of_step(t, s) for s, value in least.items() if s < t)
            for t in range(min(least) + 1, T)
        }

    def of_grid(times):
        times = times.tolist()
        return sum(of_step(t, s) for t, s in zip(times, [*times[1:], -1], strict=True))

    schedule, best = schedules.linear(T), least[T - 1]
    assert of_grid(density_grid(schedule, num_steps, np.sqrt(cost))) < 1.03 * best
    for other in (np.ones(T), cost):
        assert of_grid(density_grid(schedule, num_steps, other)) > 1.15 * best


def test_align_your_steps_on_the_chain_of_stable_diffusion():
    # Levels and times as Sabour et al. 2024 published both, the levels to three decimals: for that
    # at t = 124, 0.399, they are nearer to 125. Its betas are linear in the root.
    schedule = schedules.quadratic(1000, 0.00085, 0.012)
    sigmas = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113]
    times = [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]
    assert level_grid(schedule, 10, sigmas).tolist() == times
    sigmas = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152]
    times = [999, 850, 736, 645, 545, 455, 343, 233, 125, 24]
    assert level_grid(schedule, 10, sigmas).tolist() == times


def test_levels_are_interpolated_in_their_logarithm():
    # log sigma is a straight line from -3.5 to 4 over t = 0 to 12.
    sigma = np.exp(np.linspace(-3.5, 4.0, 13))
    assert level_grid(STRAIGHT, 5, sigma[[12, 6, 4]]).tolist() == [12, 9, 6, 5, 4]
    assert level_grid(STRAIGHT, 2, sigma[[11, 7, 2]]).tolist() == [11, 2]
    assert level_grid(STRAIGHT, 1, sigma[[11, 7, 2]]).tolist() == [11]
    assert level_grid(STRAIGHT, 3, sigma[[8, 0]] * [1.0, 0.995]).tolist() == [8, 4, 0]
    # Close levels do not share a time.
    assert level_grid(STRAIGHT, 3, sigma[5] * np.array([1.02, 1.01, 1.0])).tolist() == [7, 6, 5]


@pytest.mark.parametrize(
    ("grid", "given", "message"),
    [
        (
            density_grid,
            np.ones(12),
            r"density has shape \(12,\); it has to have one value for each",
        ),
        (density_grid, -np.ones(13), "density has to be 0 or more"),
        (density_grid, np.full(13, np.nan), "density has to be 0 or more"),
        (density_grid, np.zeros(13), "and above 0 at some"),
        (level_grid, np.ones(()), r"sigmas has shape \(\)"),
        (level_grid, [], r"sigmas has shape \(0,\)"),
        (level_grid, [5.0, 1.0, 0.0], r"\[5.0, 1.0, 0.0\]; levels have to be positive"),
        (level_grid, [1.0, 5.0], "and to fall"),
        (level_grid, [80.0, 1.0], "sigmas go from 80 to 1; the process has levels from 54.5982 to"),
        (level_grid, [1.0, 0.001], "sigmas go from 1 to 0.001; the process has levels"),
    ],
)
def test_refused_densities_and_levels(grid, given, message):
    with pytest.raises(ValueError, match=message):
        grid(STRAIGHT, 3, given)
    with pytest.raises(ValueError, match="num_steps is 14; a chain of T = 13"):
        grid(STRAIGHT, 14, given)


@pytest.mark.parametrize("num_steps", [0, -1, 11])
def test_between_one_and_all_times(num_steps):
    for spacing in SPACINGS:
        with pytest.raises(ValueError, match=f"num_steps is {num_steps}; a chain of T = 10"):
            time_grid(schedules.linear(10), num_steps, spacing)


def test_refused(without_annotation_checks):
    with pytest.raises(ValueError, match="spacing is 'even'; it is one of 'linspace'"):
        time_grid(STRAIGHT, 3, "even")
    for rho in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"rho is {rho}; it has to be above 0"):
            time_grid(STRAIGHT, 3, "karras", rho=rho)
    for spacing in SPACINGS[3:]:
        with pytest.raises(TypeError, match="outside of jit"):
            jax.jit(lambda schedule, name=spacing: time_grid(schedule, 3, name))(STRAIGHT)
    for spacing in SPACINGS[:3]:
        jax.jit(lambda schedule, spacing=spacing: time_grid(schedule, 3, spacing))(STRAIGHT)
