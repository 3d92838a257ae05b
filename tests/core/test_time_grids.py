"""Grids of times: what they are by hand, and what every one of them keeps to."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import chain, float64
from hypothesis import given

from ddpm_jax import schedules
from ddpm_jax.samplers import time_grid

SPACINGS = ("linspace", "leading", "trailing", "log_snr")
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
    [  # Lin et al. 2023, table 2, counts from 1
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


@pytest.mark.parametrize("num_steps", [0, -1, 11])
def test_between_one_and_all_times(num_steps):
    for spacing in SPACINGS:
        with pytest.raises(ValueError, match=f"num_steps is {num_steps}; a chain of T = 10"):
            time_grid(schedules.linear(10), num_steps, spacing)


def test_refused(without_annotation_checks):
    with pytest.raises(ValueError, match="spacing is 'karras'; it is one of 'linspace'"):
        time_grid(STRAIGHT, 3, "karras")
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda schedule: time_grid(schedule, 3, "log_snr"))(STRAIGHT)
    for spacing in SPACINGS[:3]:
        jax.jit(lambda schedule, spacing=spacing: time_grid(schedule, 3, spacing))(STRAIGHT)
