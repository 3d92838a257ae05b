"""What the benchmarks measure with: clocks, counts in compiled programs, moments of samples."""

import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import forward, moments, timing
from benchmarks.kernels import count_kernels
from ddpm_jax import schedules


def test_times_are_those_of_the_clock():
    slept = {"short": 0.01, "long": 0.04}
    variants = {name: functools.partial(time.sleep, seconds) for name, seconds in slept.items()}
    runs = timing.in_turns(variants, repeats=5, seconds=1.0)
    for name, seconds in slept.items():
        assert len(runs[name]) == 5
        assert seconds <= min(runs[name]) < 1.9 * seconds


def test_runs_take_turns_in_orders_of_their_own_and_stop_at_the_budget():
    order = []

    def variant(name, slept):
        return lambda: (order.append(name), time.sleep(slept))

    variants = {"a": variant("a", 0.0), "b": variant("b", 0.11), "c": variant("c", 0.0)}
    runs = timing.in_turns(variants, repeats=20, seconds=0.3)
    assert {name: len(taken) for name, taken in runs.items()} == {"a": 20, "b": 3, "c": 20}
    rounds = [order[i : i + 3] for i in range(0, 12, 3)]  # the first is no run
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    without_b = ["".join(order[i : i + 2]) for i in range(12, len(order), 2)]
    assert set(without_b) == {"ac", "ca"}


def test_what_makes_ready_comes_before_each_run_and_does_not_count():
    said = []

    def ready():
        said.append("ready")
        time.sleep(0.05)

    runs = timing.in_turns(
        {"": lambda: said.append("run")}, repeats=3, seconds=math.inf, ready=ready
    )
    assert said == ["ready", "run"] * 4
    assert max(runs[""]) < 0.05


def test_the_work_is_waited_for():
    """A product of matrices that takes milliseconds is not done when its call returns."""
    x = jnp.ones((1000, 1000))
    program = timing.compiled(lambda x: x @ x @ x @ x, x)
    (runs,) = timing.in_turns({"": lambda: program.call(x)}, repeats=5, seconds=1.0).values()
    flops = 3 * 2 * 1000**3
    assert flops / min(runs) < 1e13  # nor is any core that fast
    assert program.compile_seconds > 0.0


def test_median_and_quartiles():
    assert timing.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == timing.Spread(3.0, 2.0, 4.0)


def test_peak_memory_holds_arguments_results_and_what_is_between():
    x = jnp.ones((256, 256))
    add = timing.compiled(lambda x, y: x + y, x, x)
    assert add.peak_bytes >= 3 * x.nbytes
    sort = timing.compiled(lambda x: jnp.sort(x, axis=0) + jnp.sort(x, axis=1), x)
    assert sort.peak_bytes >= 3 * x.nbytes


# Kernels.


def test_kernels_of_known_programs():
    x = jnp.ones((8, 64))
    one = count_kernels(timing.compiled(lambda x, y: 2.0 * x + y, x, x).hlo, x.shape)
    assert (one.kernels, one.image_kernels, one.launches, one.loops_known) == (1, 1, 1, True)
    # A product of matrices is no part of a fusion; a row is not as large as the images.
    two = count_kernels(timing.compiled(lambda x: jnp.sin(x @ x.T)[0], x).hlo, x.shape)
    assert two.kernels >= 2
    assert two.image_kernels < two.kernels


def test_launches_follow_loops():
    x = jnp.ones((8, 64))

    def loop(steps):
        def step(x, _):
            return jnp.cumsum(jnp.sin(x), axis=1), None

        return timing.compiled(lambda x: jax.lax.scan(step, x, None, length=steps)[0], x)

    few, many = (count_kernels(loop(steps).hlo, x.shape) for steps in (10, 1010))
    assert few.kernels == many.kernels
    a_step, rest = divmod(many.launches - few.launches, 1000)
    assert rest == 0
    assert a_step >= 1


def test_tables_are_no_images():
    table, t = jnp.ones((100, 4)), jnp.arange(2)
    found = count_kernels(timing.compiled(lambda table, t: 2.0 * table[t], table, t).hlo, (2, 8, 4))
    assert found.kernels >= 1
    assert found.image_kernels == 0


HLO = """HloModule m, entry_computation_layout={()->f32[4,4]{1,0}}

%body (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %p = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%p), index=1
  %next = s32[] fusion(%i), kind=kLoop, calls=%f
  %y = f32[4,4]{1,0} custom-call(%x), custom_call_target="g"
  ROOT %out = (s32[], f32[4,4]{1,0}) tuple(%next, %y)
}

%cond (p: (s32[], f32[4,4])) -> pred[] {
  %p = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] fusion(%i), kind=kLoop, calls=%h
}

ENTRY %main (a: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %scale = f32[4]{0} fusion(%zero), kind=kLoop, calls=%k
  %t = (s32[], /*index=1*/f32[4,4]{1,0}) tuple(%zero, %a)
  %w = (s32[], f32[4,4]{1,0}) while(%t), condition=%cond, body=%body, KNOWN
  %got = f32[4,4]{1,0} get-tuple-element(%w), index=1
  %moved = (f32[4,4]{1,0:T(8,128)}, f32[4,4]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%got)
  %there = f32[4,4]{1,0:T(8,128)} copy-done(%moved)
  ROOT %r = f32[4]{0} reduce(%there, %scale), dimensions={0}, to_apply=%sum
}
"""


def test_a_text_is_counted_by_hand():
    known = HLO.replace("KNOWN", 'backend_config={"known_trip_count":{"n":"7"}}')
    # scale, the loop, the copy and the reduction; all but scale have the images on one side.
    assert count_kernels(known, (4, 4)) == (4, 3, 3 + 7 * 3, True)
    assert count_kernels(HLO.replace(", KNOWN", ""), (4, 4)) == (4, 3, 3 + 3, False)


# Moments.


def noised(mean_scale=1.0, noise_scale=1.0, smooth=0.0, shift=0.0, shape=(16, 8, 8, 1)):
    rng = np.random.default_rng(3)
    x0, eps = rng.uniform(-1.0, 1.0, shape), rng.standard_normal(shape)
    eps = math.sqrt(1.0 - smooth**2) * eps + smooth * np.roll(eps, 1, axis=2)
    return x0, mean_scale * 0.8 * x0 + noise_scale * 0.6 * eps + shift


def test_right_samples_are_near():
    found = moments.distance(*moments.white_isotropic(0.64, *noised()))
    assert found.values == 1024
    assert not found.far
    assert max(found.mean_errors, found.variance_errors) < 3.0
    assert found.variance_distance < 3.0 * math.sqrt(2.0 / 1024)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean_scale": 0.5},
        {"mean_scale": -1.0},
        {"shift": 0.2},
        {"noise_scale": 0.8},
        {"noise_scale": 1.3},
        {"smooth": 0.5},  # the variance of each pixel is right
        {"mean_scale": math.nan},
    ],
)
def test_wrong_samples_are_far(wrong):
    assert moments.distance(*moments.white_isotropic(0.64, *noised(**wrong))).far


def test_a_wrong_noising_is_flagged_in_table_and_notes(monkeypatch):
    """1 - alpha_bar in the place of its root."""

    def wrong(schedule, x0, t, eps):
        a, b = schedule.signal(t), schedule.noise_variance(t)
        return a.reshape(-1, 1, 1, 1) * x0 + b.reshape(-1, 1, 1, 1) * eps

    schedule = schedules.cosine(50)
    settings = forward.Settings(times=(5,), num_steps=50, repeats=3)
    chains = forward.Chains(schedule, schedule, None, {})
    x0, eps = jnp.zeros((8, 8, 8, 1)) + 0.5, jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
    monkeypatch.setattr(forward, "q_sample", wrong)
    variants = forward._closed_forms(settings, chains, x0, eps, jax.random.key(1))
    rows = forward._measured(variants[:3], settings, "8x8x1", x0.shape, 0.0)
    assert [row.numbers.get("far") for row in rows] == [None, True, True]
    assert any("WRONG MOMENTS: closed form, 8x8x1, 8, 5." in said for said in forward.notes(rows))


def test_blurred_and_affine_marginals_are_those_of_their_chains():
    """One step of a chain of two pixels, by hand."""
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    A, b, Q = (
        np.stack([turn, 2.0 * turn]),
        np.array([[1.0, 0.0], [0.0, 3.0]]),
        np.stack([np.eye(2)] * 2),
    )
    found = moments.affine_marginal(A, b, Q)
    np.testing.assert_allclose(found.matrix, -2.0 * np.eye(2))
    np.testing.assert_allclose(found.offset, [0.0, 5.0])
    np.testing.assert_allclose(found.covariance, 5.0 * np.eye(2))
    # A constant image has one frequency, which blur leaves alone.
    x0 = np.full((3, 4, 6, 1), 0.7)
    z, u = moments.white_blurred(0.64, 0.9, x0, 0.8 * x0)
    np.testing.assert_allclose(z, 0.0, atol=1e-12)
    np.testing.assert_allclose(u[:, 0], 0.8 * 0.7 * math.sqrt(24) / 0.6)
    np.testing.assert_allclose(u[:, 1:], 0.0, atol=1e-12)


def test_the_cosine_chain_in_float64_is_the_schedule():
    exact = moments.cosine_alpha_bar(40)
    np.testing.assert_allclose(np.asarray(schedules.cosine(40).alpha_bar), exact, rtol=1e-6)


# What the suites say.
