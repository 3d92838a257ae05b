"""Progressive distillation: two steps of the teacher in one, and what repeated halving keeps."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import chain, float64, gaussian_denoiser

from ddpm_jax import convert, losses, processes, samplers, schedules

KINDS = ("eps", "x0", "v")
SHAPE = (3, 4, 2)
X = jax.random.normal(jax.random.key(0), SHAPE)
SCHEDULE = schedules.cosine(24)
PROCESSES = {
    "schedule": SCHEDULE,
    "no signal at T - 1": schedules.zero_terminal_snr(SCHEDULE),
    "blurring": processes.blurring(SCHEDULE, SHAPE[1:], max_blur=0.4),
}


def bent(x_t, t):
    """A teacher that is no straight line, and sees the time."""
    return 0.6 * jnp.tanh(x_t) + 0.01 * t.astype(jnp.float32)[:, None, None]


def step(process, predict, x_t, t, s, predicts):
    """One step of deterministic DDIM."""
    sampler = samplers.ddim(process, predict, predicts=predicts, threshold=None)
    return sampler.step(jax.random.key(1), samplers.SamplerState(x_t), t, s)[0].x_t


@pytest.mark.parametrize(
    ("name", "predicts"),
    [
        (name, kind)
        for name, process in PROCESSES.items()
        for kind in KINDS
        if kind != "eps" or not process.zero_terminal_snr
    ],
)
def test_one_step_to_the_target_is_two_steps_of_the_teacher(name, predicts):
    process = PROCESSES[name]

    @jax.jit
    def both(t, m, s):
        of_each = (jnp.full(len(X), time) for time in (t, m, s))
        target = losses.distillation_target(process, bent, X, *of_each, predicts=predicts)
        one = step(process, lambda x_t, t: target, X, t, s, "x0")
        x_m = step(process, bent, X, t, m, predicts)
        return one, step(process, bent, x_m, m, s, predicts)

    for times in ((23, 15, 7), (9, 8, 6), (5, 2, -1)):
        one, two = both(*map(jnp.int32, times))
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_between_neighbouring_times_it_has_all_digits_of_the_formula_of_the_paper():
    """Of a linear teacher, with 50 digits: both differences of the paper's fraction are tiny."""
    schedule, tables = schedules.linear(1000), chain("linear", 1000)
    x_t, gains = 0.75, {t: mp.mpf(0.9) - t / mp.mpf(2000) for t in range(1000)}
    times = np.array([(3, 2, 1), (500, 499, 498), (999, 998, 997), (40, 20, 0)], np.int32)

    def by_the_paper(t, m, s):
        (a_t, b_t), (a_m, b_m), (a_s, b_s) = (tables.signal_and_noise(i) for i in (t, m, s))
        x = mp.mpf(x_t)
        x_m = a_m * gains[t] * x + b_m * (x - a_t * gains[t] * x) / b_t
        x_s = a_s * gains[m] * x_m + b_s * (x_m - a_m * gains[m] * x_m) / b_m
        return float((x_s - b_s / b_t * x) / (a_s - b_s / b_t * a_t))

    found = losses.distillation_target(
        schedule,
        lambda x_t, t: x_t * (0.9 - t.astype(jnp.float32) / 2000.0)[:, None],
        jnp.full((len(times), 1), x_t),
        *map(jnp.asarray, times.T),
        predicts="x0",
    )
    expected = [[by_the_paper(*map(int, row))] for row in times]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("times", [(5, 5, 2), (5, 2, 2), (2, 5, 1)])
def test_times_that_do_not_fall_give_nan(times):
    of_each = (jnp.full(len(X), time) for time in times)
    assert np.isnan(losses.distillation_target(SCHEDULE, bent, X, *of_each, predicts="v")).all()


def test_with_the_noise_that_agrees_it_is_what_every_loss_wants():
    """The student's losses in eps, x0 and v, of the same estimate, are one loss."""
    t = jnp.array([4, 12, 23])
    target = losses.distillation_target(SCHEDULE, bent, X, t, t - 1, t - 3, predicts="v")
    eps = convert(SCHEDULE, target, X, t, source="x0", target="eps")
    x0_hat = jnp.sin(X)
    found = [
        losses.weighted_loss(
            SCHEDULE,
            convert(SCHEDULE, x0_hat, X, t, source="x0", target=kind),
            target,
            t,
            eps,
            predicts=kind,
            weighting=losses.truncated_snr(),
        )
        for kind in KINDS
    ]
    snr = np.asarray(SCHEDULE.snr(t), np.float64)
    expected = np.maximum(snr, 1.0) * np.square(np.asarray(x0_hat - target)).mean((1, 2))
    np.testing.assert_allclose(found, np.tile(expected, (3, 1)), rtol=1e-4)


class TestGaussianData:
    """N(mean, deviation^2): the best denoiser is a line in x_t at each time, and so is each target.

    A student that is a line at each time can therefore reach loss zero, and its chain is the
    teacher's but for rounding: a step's target is rounded to a few ulps, and what a step adds is
    not increased later, because the flow of this data contracts.
    """

    MEAN, DEVIATION = 0.3, 0.5
    STEPS = 32
    SCHEDULE = schedules.linear(1000)
    GRID = np.asarray(samplers.time_grid(SCHEDULE, STEPS, "trailing"))
    STARTS = np.linspace(-3.0, 3.0, 13, dtype=np.float32)[:, None]
    ROUNDING = STEPS * 8 * 2.0**-24 * 3.0
    """Steps, ulps in each, half an ulp of 1, the largest |x|."""

    @property
    def teacher(self):
        alpha_bar = float64(chain("linear", 1000).alpha_bar)
        return gaussian_denoiser(alpha_bar, self.MEAN, self.DEVIATION, "v")

    def drawn(self, predict, times, predicts):
        sampler = samplers.ddim(self.SCHEDULE, predict, predicts=predicts, threshold=None)
        start, key = jnp.asarray(self.STARTS), jax.random.key(0)
        drawn = samplers.sample(sampler, key, start.shape, jnp.asarray(times), start=start)
        return np.asarray(drawn.x0)

    def student(self, predict, times, predicts):
        """The line at each second time that minimizes the squared error, and those times."""
        t, m = times[::2], times[1::2]
        of_each = (np.repeat(one, len(self.STARTS)) for one in (t, m, np.append(t[1:], -1)))
        x_t = np.tile(self.STARTS, (len(t), 1))
        targets = losses.distillation_target(
            self.SCHEDULE, predict, jnp.asarray(x_t), *map(jnp.asarray, of_each), predicts=predicts
        )
        lines = np.full((1000, 2), np.nan)
        for time, target in zip(t, np.asarray(targets).reshape(len(t), -1), strict=True):
            lines[time] = np.polyfit(self.STARTS[:, 0], target, 1)
        table = jnp.asarray(lines, jnp.float32)
        return (lambda x_t, t: table[t][:, :1] * x_t + table[t][:, 1:]), t

    def map_of(self, times):
        """The teacher's chain on the starts, in float64: each step of DDIM written out."""
        alpha_bar, x = float64(chain("linear", 1000).alpha_bar), self.STARTS.astype(np.float64)
        a = np.append(np.sqrt(alpha_bar), 1.0)  # the last, index -1, is the data
        b = np.append(np.sqrt(1.0 - alpha_bar), 0.0)
        for t, s in zip(times, np.append(times[1:], -1), strict=True):
            gain = a[t] * self.DEVIATION**2 / (a[t] ** 2 * self.DEVIATION**2 + b[t] ** 2)
            x0_hat = self.MEAN + gain * (x - a[t] * self.MEAN)
            x = a[s] * x0_hat + b[s] / b[t] * (x - a[t] * x0_hat)
        return x

    def test_halving_twice_keeps_the_map_of_the_teacher(self):
        expected = self.map_of(self.GRID)
        half, times = self.student(self.teacher, self.GRID, "v")
        quarter, times = self.student(half, times, "x0")
        assert len(times) == self.STEPS // 4
        drawn = self.drawn(quarter, times, "x0")
        np.testing.assert_allclose(drawn, expected, rtol=0.0, atol=self.ROUNDING)
        # The teacher itself in so few steps goes somewhere else.
        assert np.abs(self.map_of(times) - expected).max() > 1000 * self.ROUNDING
