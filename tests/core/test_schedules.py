"""Tables against 50 digits, look-ups outside the chain, and arguments that cannot be."""

import itertools

import chex
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import build, chain, float64, ulps
from marks import thorough_but

from ddpm_jax import processes, schedules

NAMES = ("linear", "quadratic", "constant", "cosine", "sigmoid", "linear_log_snr")
TRANSFORMED = ("zero_terminal_snr", "shifted", "respaced")
RELATIVES = (
    *("variance_preserving", "sub_variance_preserving", "variance_exploding"),
    *("rectified_flow", "shifted_flow"),
)
CHAINS = [(name, T) for name in NAMES + TRANSFORMED + RELATIVES for T in (2, 10, 1000, 4000)]
every_chain = pytest.mark.parametrize(
    ("name", "num_steps"), thorough_but([chain for chain in CHAINS if chain[1] == 1000], CHAINS)
)


@pytest.mark.parametrize("table", ["betas", "alpha_bar", "noise_power", "log_alpha_bar", "log_snr"])
@every_chain
def test_every_entry_is_the_nearest_float32(name, num_steps, table):
    values, expected = getattr(build(name, num_steps), table), chain(name, num_steps)
    # 0.5 would be perfect; float64 underneath is allowed a thousandth of a float32's last place.
    floor = 1e-6 if table == "log_snr" else 0.0
    assert ulps(values, getattr(expected, table), floor).max() < 0.501


@every_chain
def test_two_float32_parts_hold_a_float64_logarithm(name, num_steps):
    schedule, expected = build(name, num_steps), chain(name, num_steps)
    for parts, table in (
        (schedule.log_alpha_bar_parts, expected.log_alpha_bar),
        (schedule.log_noise_parts, [mp.log(b) for b in expected.noise_power]),
        (schedule.log_snr_parts, expected.log_snr),
    ):
        total = np.asarray(parts, np.float64).sum(axis=0)
        # log SNR crosses zero, hence the absolute part. The cosine's last angles, within 1e-4 of
        # pi / 2, take most of what is allowed; schedules not made of it stay below 1e-14.
        np.testing.assert_allclose(total, float64(table), rtol=1e-13, atol=2e-12)


@pytest.mark.parametrize(
    "name", thorough_but(["cosine", "variance_exploding"], NAMES + TRANSFORMED + RELATIVES)
)
@pytest.mark.parametrize("difference", ["log_snr", "log_alpha_bar"])
def test_differences_of_neighbours_keep_all_digits(name, difference):
    num_steps = 4000
    t = jnp.arange(1, num_steps)
    table = getattr(chain(name, num_steps), difference)
    expected = [later - earlier for earlier, later in itertools.pairwise(table)]
    differences = getattr(build(name, num_steps), f"{difference}_difference")(t, t - 1)
    assert ulps(differences, expected).max() < 1.0


def test_differences_across_the_chain():
    times = [(999, 0), (999, 500), (700, 3), (1, 0), (0, 999)]
    t, s = jnp.array(times).T
    schedule, expected = schedules.linear(1000), chain("linear", 1000)
    for name in ("log_snr", "log_alpha_bar"):
        table = getattr(expected, name)
        differences = getattr(schedule, f"{name}_difference")(t, s)
        assert ulps(differences, [table[i] - table[j] for i, j in times]).max() < 2.0


@pytest.mark.parametrize(
    ("look_up", "limit"),
    [("signal", 1.0), ("noise", 0.0), ("noise_variance", 0.0)],
)
def test_minus_one_is_the_data_and_beyond_is_nan(look_up, limit):
    t = jnp.array([-1, -2, -1000, 10, 11, 2**31 - 1])
    values = np.asarray(getattr(schedules.linear(10), look_up)(t))
    np.testing.assert_array_equal(values, [limit] + [np.nan] * 5)


def test_no_step_leads_to_the_data():
    assert np.isnan(schedules.linear(10).beta(jnp.array([-1, -2, 10]))).all()


def test_differences_reach_the_data_and_are_nan_beyond():
    schedule = schedules.linear(10)
    t, s = jnp.array([3, 3, 10]), jnp.array([-1, -2, 3])
    np.testing.assert_array_equal(schedule.log_snr_difference(t, s), [-np.inf, np.nan, np.nan])
    to_data = schedule.log_alpha_bar_difference(t, s)
    assert ulps(to_data[:1], chain("linear", 10).log_alpha_bar[3:4]).max() <= 0.5
    assert np.isnan(to_data[1:]).all()


def test_look_ups_inside():
    schedule, expected = schedules.cosine(1000), chain("cosine", 1000)
    t = [0, 1, 500, 999]
    a, b = zip(*[expected.signal_and_noise(i) for i in t], strict=True)
    assert ulps(schedule.signal(jnp.array(t)), a).max() < 1.0
    assert ulps(schedule.noise(jnp.array(t)), b).max() < 1.0
    assert ulps(schedule.beta(jnp.array(t)), [expected.betas[i] for i in t]).max() < 1.0


def test_snr_and_signal_variance():
    schedule, expected = schedules.linear(1000), chain("linear", 1000)
    t = [0, 1, 500, 999]
    snr = [expected.alpha_bar[i] / expected.noise_power[i] for i in t]
    assert ulps(schedule.snr(jnp.array(t)), snr).max() < 2.0
    np.testing.assert_array_equal(schedule.snr(jnp.array([-1, 1000])), [np.inf, np.nan])
    np.testing.assert_array_equal(schedule.signal_variance(jnp.array([-1])), [1.0])


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("table", ["betas", "alpha_bar", "log_snr"])
def test_any_one_table_makes_the_schedule(name, table):
    tables = chain(name, 1000)
    made = getattr(schedules, f"from_{table}")(float64(getattr(tables, table)))
    # What float64 itself keeps of alpha_bar near 1, and of log SNR where it is large, is the limit.
    for field in ("betas", "alpha_bar", "noise_power"):
        assert ulps(getattr(made, field), getattr(tables, field)).max() < 0.51


def test_a_chain_that_leaves_no_signal_says_so():
    made = (
        schedules.from_betas(np.array([0.1, 0.5, 1.0])),
        schedules.from_alpha_bar(np.array([0.9, 0.45, 0.0])),
        schedules.from_log_snr(np.array([np.log(9.0), np.log(0.45 / 0.55), -np.inf])),
    )
    for schedule in made:
        assert schedule.zero_terminal_snr
        np.testing.assert_allclose(schedule.alpha_bar, [0.9, 0.45, 0.0], rtol=1e-7)
        np.testing.assert_allclose(schedule.betas, [0.1, 0.5, 1.0], rtol=1e-7)
        np.testing.assert_array_equal(schedule.noise_power[-1], 1.0)
        np.testing.assert_array_equal(schedule.log_snr[-1], -np.inf)
        np.testing.assert_array_equal(
            schedule.log_snr_difference(jnp.array([2]), jnp.array([1])), -np.inf
        )
    assert not any(build(name, 10).zero_terminal_snr for name in NAMES)


def test_rescaling_to_zero_terminal_snr_keeps_the_start_and_is_done_once():
    schedule = schedules.zero_terminal_snr(schedules.linear(1000))
    assert ulps(schedule.betas[:1], chain("linear", 1000).betas[:1]).max() <= 0.5
    assert schedules.zero_terminal_snr(schedule) is schedule
    kept = schedules.respaced(schedule, [0, 500, 999])
    assert kept.zero_terminal_snr
    assert not schedules.respaced(schedule, [0, 500, 998]).zero_terminal_snr
    assert schedules.shifted(schedule, resolution=256).zero_terminal_snr


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES + TRANSFORMED + RELATIVES)
def test_all_times_respace_to_the_same_chain(name):
    schedule = build(name, 100)
    again = schedules.respaced(schedule, np.arange(100))
    for one, other in zip(jax.tree.leaves(schedule), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-12)


def test_respacing_twice_remembers_what_the_network_is_told():
    schedule = schedules.respaced(schedules.linear(1000), range(9, 1000, 10))
    schedule = schedules.respaced(schedule, jnp.array([0, 3, 99]))
    np.testing.assert_array_equal(schedule.network_times, [9, 39, 999])
    np.testing.assert_array_equal(schedule.network_time(jnp.array([2, 0])), [999, 9])
    tables = chain("linear", 1000)
    exact = [1 - tables.alpha_bar[39] / tables.alpha_bar[9]]
    assert ulps(schedule.betas[1:2], exact).max() <= 0.5
    assert ulps(schedule.alpha_bar, [tables.alpha_bar[t] for t in (9, 39, 999)]).max() <= 0.5


def test_shifts_add_up_in_log_snr():
    schedule = schedules.cosine(1000)
    there = schedules.shifted(schedule, resolution=512, reference=32)
    np.testing.assert_allclose(
        there.log_snr, schedule.log_snr - 8 * np.log(2.0), rtol=1e-6, atol=1e-6
    )
    back = schedules.shifted(there, resolution=32, reference=512)
    np.testing.assert_allclose(back.log_snr, schedule.log_snr, rtol=1e-6)


def test_schedules_are_transformed_outside_of_jit():
    for transform in (
        schedules.zero_terminal_snr,
        lambda schedule: schedules.shifted(schedule, resolution=128),
        lambda schedule: schedules.respaced(schedule, [0, 5]),
    ):
        with pytest.raises(TypeError, match="schedule is an argument of the function being traced"):
            jax.jit(transform)(schedules.linear(10))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0, 5, 5], r"times\[2\] is 5 after 5"),
        ([5, 0], r"times\[1\] is 0 after 5"),
        ([0, 10], r"times go from 0 to 10; they lie in \[0, 10\)"),
        ([-1, 3], "times go from -1 to 3"),
        ([4], "num_steps is 1"),
        (np.zeros((2, 2), int), r"times has shape \(2, 2\)"),
        ([0.0, 5.0], "times has dtype float64"),
    ],
)
def test_times_that_make_no_chain(times, message, without_annotation_checks):
    with pytest.raises((ValueError, TypeError), match=message):
        schedules.respaced(schedules.linear(10), times)


def test_a_schedule_is_a_pytree_of_float32():
    schedule = schedules.linear(10)
    leaves, structure = jax.tree.flatten(schedule)
    assert sorted({leaf.dtype.name for leaf in leaves}) == ["float32", "int32"]
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert rebuilt.num_steps == 10
    chex.assert_trees_all_equal(rebuilt, schedule)


def test_a_schedule_is_an_argument_like_any_other():
    traces = []

    @jax.jit
    def noise(schedule, t):
        traces.append(None)
        return schedule.noise(t)

    t = jnp.array([0, 5, 9])
    for schedule in (schedules.linear(10), schedules.cosine(10)):
        np.testing.assert_array_equal(noise(schedule, t), schedule.noise(t))
        np.testing.assert_array_equal(jax.vmap(schedule.noise)(t[:, None])[:, 0], schedule.noise(t))
    assert len(traces) == 1


def test_schedules_stack_under_vmap(without_annotation_checks):
    both = jax.tree.map(lambda *x: jnp.stack(x), schedules.linear(10), schedules.cosine(10))
    t = jnp.array([0, 9])
    stacked = jax.vmap(lambda schedule: schedule.signal(t))(both)
    np.testing.assert_array_equal(stacked[1], schedules.cosine(10).signal(t))


def test_given_betas_are_kept():
    betas = np.array([0.5, 1e-12, 1.0 - 1e-6, 0.25])
    np.testing.assert_array_equal(schedules.from_betas(betas).betas, betas.astype(np.float32))


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.1, 0.2, 0.0, 1.5], r"betas\[2\] is 0;"),
        ([1.0, 0.1], r"betas\[0\] is 1;"),
        ([-0.1, 0.2], r"betas\[0\] is -0.1;"),
        ([0.1, np.nan], r"betas\[1\] is nan;"),
        ([0.1], "num_steps is 1; .* T = 2"),
        ([], "num_steps is 0"),
        (0.1, r"betas has shape \(\)"),
        ([[0.1, 0.2]], r"betas has shape \(1, 2\)"),
    ],
)
def test_betas_that_cannot_be(betas, message):
    with pytest.raises(ValueError, match=message):
        schedules.from_betas(np.array(betas))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("linear", {"num_steps": 1}, "num_steps is 1"),
        ("linear", {"num_steps": 10, "beta_min": 0.0}, "beta_min is 0.0"),
        ("linear", {"num_steps": 10, "beta_max": 1.0}, "beta_max is 1.0"),
        ("linear", {"num_steps": 10, "beta_max": np.nan}, "beta_max is nan"),
        ("cosine", {"num_steps": 0}, "num_steps is 0"),
        ("cosine", {"num_steps": 10, "offset": -0.1}, "offset is -0.1"),
        ("cosine", {"num_steps": 10, "offset": np.nan}, "offset is nan"),
        ("cosine", {"num_steps": 10, "max_beta": 1.0}, "max_beta is 1.0"),
        ("cosine", {"num_steps": 10, "max_beta": 0.0}, "max_beta is 0.0"),
        ("quadratic", {"num_steps": 10, "beta_min": 0.0}, "beta_min is 0.0"),
        ("quadratic", {"num_steps": 10, "beta_max": 1.0}, "beta_max is 1.0"),
        ("constant", {"num_steps": 10, "beta": 0.0}, "beta is 0.0"),
        ("constant", {"num_steps": 1, "beta": 0.1}, "num_steps is 1"),
        ("sigmoid", {"num_steps": 10, "start": 3.0}, "start is 3.0 and end is 3.0"),
        ("sigmoid", {"num_steps": 10, "end": np.inf}, "end is inf"),
        ("sigmoid", {"num_steps": 10, "tau": 0.0}, "tau is 0.0"),
        ("sigmoid", {"num_steps": 10, "tau": 0.002}, "start / tau is -1500 and end / tau is 1500"),
        ("sigmoid", {"num_steps": 10, "max_beta": 1.0}, "max_beta is 1.0"),
        ("from_alpha_bar", {"alpha_bar": np.array([0.9, 0.0, 0.0])}, r"alpha_bar\[1\] is 0;"),
        ("from_alpha_bar", {"alpha_bar": np.array([1.0, 0.5])}, r"alpha_bar\[0\] is 1;"),
        ("from_alpha_bar", {"alpha_bar": np.array([0.5, 0.5])}, r"alpha_bar\[1\] is 0.5 after"),
        ("from_log_snr", {"log_snr": np.array([1.0, 2.0])}, r"log_snr\[1\] is 2 after 1"),
        ("from_log_snr", {"log_snr": np.array([np.inf, 2.0])}, r"log_snr\[0\] is inf"),
        ("from_log_snr", {"log_snr": np.array([1.0, np.nan])}, r"log_snr\[1\] is nan"),
        ("from_log_snr", {"log_snr": np.zeros((2, 2))}, r"log_snr has shape \(2, 2\)"),
        ("shifted", {"schedule": schedules.linear(10), "resolution": 0}, "resolution is 0"),
        (
            "shifted",
            {"schedule": schedules.linear(10), "resolution": 64, "reference": -1},
            "reference is -1",
        ),
        ("linear_log_snr", {"num_steps": -3}, "num_steps is -3"),
        ("linear_log_snr", {"num_steps": 10, "log_snr_max": -8.0}, "log_snr_max is -8.0"),
        ("linear_log_snr", {"num_steps": 10, "log_snr_min": -np.inf}, "log_snr_min is -inf"),
    ],
)
def test_arguments_that_cannot_be(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(schedules, name)(**arguments)


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.linear_log_snr(10, 1000.0, -1000.0),
        lambda: schedules.from_betas(np.array([0.1, 1.0 - 1e-9])),
        lambda: schedules.from_betas(np.array([1e-60, 0.1])),
    ],
)
def test_what_float32_rounds_out_of_range_is_refused(make):
    with pytest.raises(ValueError, match=r"at t = \d beta is .* rounded to float32"):
        make()


def test_a_signal_too_small_for_float32_is_still_a_signal():
    schedule = schedules.constant(1000, 0.1)  # alpha_bar ends at e^-105
    assert not schedule.zero_terminal_snr
    assert 0.0 < schedule.snr(jnp.array([999]))[0] < 1e-37


def test_subnormal_numbers_are_refused():
    with pytest.raises(ValueError, match=r"at t = 0 beta is 9\.99.*e-40"):
        schedules.from_betas(np.array([1e-39 - 1e-44, 0.1]))


@pytest.mark.parametrize(
    "transform",
    [schedules.zero_terminal_snr, lambda schedule: schedules.shifted(schedule, resolution=128)],
    ids=["zero_terminal_snr", "shifted"],
)
def test_a_respaced_schedule_that_is_bent_tells_the_network_the_same_times(transform):
    schedule = transform(schedules.respaced(schedules.linear(100), [9, 49, 98]))
    assert schedule.network_time(jnp.array([0, 1, 2])).tolist() == [9, 49, 98]


def test_signal_and_noise_make_the_named_schedules():
    u = np.arange(1, 101) / 100
    for made, named in (
        (schedules.from_signal_noise(1 - u, u), schedules.rectified_flow(100)),
        (
            schedules.from_signal_noise(np.ones(50), np.geomspace(0.1, 20, 50)),
            schedules.variance_exploding(50, 0.1, 20.0, rho=np.inf),
        ),
    ):
        for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(named), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-7, atol=1e-7)
        assert not made.preserves_variance


def test_the_power_is_that_of_data_of_variance_one():
    t = jnp.array([-1, 0, 500, 999])
    for name in ("variance_exploding", "rectified_flow", "sub_variance_preserving"):
        tables = chain(name, 1000)
        exact = [tables.alpha_bar[i] + tables.noise_power[i] for i in t.tolist()[1:]]
        assert ulps(build(name, 1000).power(t), [1.0, *exact]).max() <= 1.0
    np.testing.assert_array_equal(schedules.variance_preserving(1000).power(t), 1.0)


def test_the_prior_lacks_the_signal_that_is_left():
    for name in ("variance_preserving", "variance_exploding", "rectified_flow"):
        tables, (variance, missing) = chain(name, 1000), build(name, 1000).prior(1)
        power = tables.alpha_bar[-1] + tables.noise_power[-1]
        np.testing.assert_allclose(variance, float(power), rtol=1e-7)
        lacks = 1 - tables.noise_power[-1] / mp.mpf(float(variance[0]))
        np.testing.assert_allclose(missing, float(lacks), rtol=1e-6)


@pytest.mark.parametrize("variance", [0.0, 1e-50, 1e39, np.nan])
def test_a_prior_has_a_variance_that_float32_holds(variance):
    with pytest.raises(ValueError, match=r"prior_variance is .* above 0 and finite in float32"):
        schedules.from_signal_noise(np.ones(2), [1.0, 2.0], prior_variance=variance)


def test_a_prior_of_another_variance_keeps_its_share_when_respaced():
    schedule = schedules.from_signal_noise(np.ones(3), [1.0, 2.0, 4.0], prior_variance=34.0)
    np.testing.assert_allclose(schedule.prior(1)[1], 18 / 34, rtol=1e-6)
    shorter = schedules.respaced(schedule, [0, 1])
    np.testing.assert_allclose(shorter.prior(1)[0], 10.0, rtol=1e-6)  # twice 1 + 2^2, as before


@pytest.mark.parametrize(
    ("signal", "noise", "message"),
    [
        ([1.0, 0.9, 0.95], [0.1, 0.2, 0.2], "signal / noise is 4.75 at t = 2 after 4.5"),
        ([1.0, 0.9, 0.8], [0.1, 0.0, 0.2], r"noise\[1\] is 0; it has to be above 0 and finite$"),
        ([1.0, 0.0, 0.0], [0.1, 0.2, 0.3], r"signal\[1\] is 0; .* only the last may be 0"),
        ([1.0, 0.9], [0.1, np.inf], r"noise\[1\] is inf"),
        ([1e20, 1e19], [1.0, 1.0], r"at t = 0 a\^2 is 1e\+40; it has to be finite in float32"),
        ([1.0, 0.0], [1.0, 1e30], r"at t = 1 beta is .*e\+59 and b\^2 .* above 0 and finite"),
        ([np.nan, 0.9], [0.1, 0.2], r"signal\[0\] is nan"),
        ([-1.0, 0.9], [0.1, 0.2], r"signal\[0\] is -1"),
        ([1.0, 0.9], [0.1, 0.2, 0.3], r"signal has shape \(2,\) and noise \(3,\)"),
        ([1.0], [0.1], "num_steps is 1"),
        ([1.0, 1.0], [1e-30, 1.0], r"at t = 0 beta is 1\.0*48e-60 and b\^2 .* above 0 and finite"),
    ],
)
def test_signal_and_noise_that_make_no_chain(signal, noise, message):
    with pytest.raises(ValueError, match=message):
        schedules.from_signal_noise(signal, noise)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("variance_exploding", {"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min is 2.0"),
        ("variance_exploding", {"sigma_min": 0.0}, "sigma_min is 0.0"),
        ("variance_exploding", {"rho": 0.0}, "rho is 0.0"),
        ("rectified_flow", {"shift": 0.0}, "shift is 0.0"),
        ("variance_preserving", {"beta_min": 0.0}, "beta_min is 0.0"),
        ("sub_variance_preserving", {"beta_max": 0.05}, "beta_max is 0.05"),
    ],
)
def test_relatives_that_cannot_be(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(schedules, name)(10, **arguments)


@pytest.mark.parametrize(
    "transform",
    [
        schedules.zero_terminal_snr,
        lambda schedule: schedules.shifted(schedule, resolution=128),
        lambda schedule: processes.gamma(schedule, 0.1),
    ],
)
def test_what_needs_a_preserved_variance_says_so(transform):
    with pytest.raises(ValueError, match="schedule does not preserve variance"):
        transform(schedules.variance_exploding(10))


def test_a_traced_log_snr_makes_the_same_chain_and_passes_gradients():
    log_snr = np.linspace(7.0, -8.0, 100)
    expected = schedules.from_log_snr(log_snr)
    made = jax.jit(schedules.from_log_snr)(jnp.asarray(log_snr, jnp.float32))
    assert made.preserves_variance
    for name in ("alpha_bar", "noise_power"):
        np.testing.assert_allclose(getattr(made, name), getattr(expected, name), rtol=1e-6)
    # Neighbours 0.15 apart, of values up to 8 that float32 holds to 5e-7.
    np.testing.assert_allclose(made.betas, expected.betas, rtol=1e-5)

    @jax.jit
    @jax.grad
    def slope(log_snr):
        return jnp.sum(schedules.from_log_snr(log_snr).signal(jnp.array([3, 3, 50])))

    a, b2 = np.asarray(expected.alpha_bar) ** 0.5, np.asarray(expected.noise_power)
    slopes = np.zeros(100)
    slopes[3], slopes[50] = a[3] * b2[3], a[50] * b2[50] / 2  # da / d log SNR = a b^2 / 2
    np.testing.assert_allclose(slope(jnp.asarray(log_snr, jnp.float32)), slopes, rtol=1e-5)


def test_network_times_of_ones_own():
    times = np.array([0.0, 0.5, 2.0])
    schedule = schedules.from_log_snr([3.0, 2.0, -1.0], network_times=times)
    np.testing.assert_array_equal(schedule.network_time(jnp.array([2, 1])), times[[2, 1]])
    with pytest.raises(ValueError, match=r"network_times has shape \(2,\)"):
        schedules.from_log_snr([3.0, 2.0, -1.0], network_times=[0.0, 1.0])
    with pytest.raises(ValueError, match=r"network_times has shape \(2,\)"):
        jax.eval_shape(
            lambda x: schedules.from_log_snr(x, network_times=jnp.arange(2)), jnp.ones(3)
        )


def test_traced_tables_are_float32_whatever_log_snr_is():
    made = jax.jit(schedules.from_log_snr)(jnp.array([3.0, 2.0, -1.0], jnp.bfloat16))
    assert {table.dtype.name for table in jax.tree.leaves(made)} == {"float32", "int32"}
