"""One step against arithmetic, the mesh, and the loop."""

import functools
import math
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import config, losses, q_sample, schedules, timesteps, training
from ddpm_jax.training import ema
from ddpm_jax.training.objective import draw


def pull_to_batch(params, batch, drawn):
    """1/2 (w - x)^2 for each example: the gradient of its mean is w - mean(x)."""
    return 0.5 * jnp.square(params["w"] - batch)


def make_state(w=3.0, optimizer=None):
    return training.init_state(
        {"w": jnp.float32(w)}, optimizer or optax.sgd(0.5), jax.random.key(0)
    )


def slowly(decay):
    return functools.partial(ema.decay_at, decay=decay)


def make_step(losses=pull_to_batch, optimizer=None, window_steps=3, **how):
    return training.make_train_step(
        training.Objective(training.fixed_times(), losses),
        optimizer or optax.sgd(0.5),
        averages=[slowly(0.99)],
        window_steps=window_steps,
        **how,
    )


def test_a_step_is_gradient_descent_and_its_average():
    step = jax.jit(make_step())
    batch = jnp.array([0.0, 2.0])
    w = average = 3.0
    state = make_state(w)
    for done in range(5):
        state, _ = step(state, batch)
        w = w - 0.5 * (w - 1.0)
        decay = min(0.99, (1 + done) / (10 + done))
        average = decay * average + (1 - decay) * w
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-6)
        np.testing.assert_allclose(state.ema_params["w"], average, rtol=1e-6)
        assert int(state.step) == done + 1


def test_metrics_are_means_over_the_window():
    step = jax.jit(make_step(window_steps=3))
    batch, w, losses, norms, state = jnp.array([0.0, 2.0]), 3.0, [], [], make_state(3.0)
    for done in range(7):
        losses.append(0.25 * (w**2 + (w - 2.0) ** 2))
        norms.append(abs(w - 1.0))
        w = w - 0.5 * (w - 1.0)
        state, metrics = step(state, batch)
        first = done // 3 * 3
        np.testing.assert_allclose(metrics.loss, np.mean(losses[first:]), rtol=1e-5)
        np.testing.assert_allclose(metrics.gradient_norm, np.mean(norms[first:]), rtol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_step_is_remembered(bad):
    step = jax.jit(make_step())
    state = make_state()
    for value in (0.0, 0.0, bad, 0.0):
        state, metrics = step(state, jnp.array([value, 0.0]))
    assert int(state.bad.stop) == int(metrics.bad.stop) == 3
    assert int(state.bad.last) == 4  # the parameters never recovered


def test_a_bad_gradient_under_a_finite_loss_counts():
    def root(params, batch, drawn):
        return jnp.sqrt(params["w"] * 0.0) + 0.0 * batch

    state, _ = jax.jit(make_step(root))(make_state(), jnp.zeros(2))
    assert int(state.bad.stop) == 1


def test_parameters_that_overflow_under_a_finite_gradient_count():
    state, _ = jax.jit(make_step(optimizer=optax.sgd(1e38)))(make_state(1e3), jnp.zeros(2))
    assert int(state.bad.stop) == 1


def test_ema_decay_warms_up():
    for step, expected in [(0, 0.1), (10, 11 / 20), (10_000, 0.99)]:
        np.testing.assert_allclose(ema.decay_at(jnp.int32(step), 0.99), expected, rtol=1e-6)


def test_learning_rate_warms_up_and_falls():
    falling = config.Adam(learning_rate=1.0, warmup_steps=10, decay=config.CosineDecay())
    rate = config.make_learning_rate(falling, 110)
    for step, expected in [(0, 0.0), (5, 0.5), (10, 1.0), (60, 0.5), (110, 0.0)]:
        np.testing.assert_allclose(rate(step), expected, atol=1e-6)
    constant = config.make_learning_rate(config.Adam(learning_rate=1.0, warmup_steps=0), 9)
    np.testing.assert_allclose([constant(0), constant(99)], 1.0)


def test_the_gradient_is_clipped_by_its_global_norm():
    optimizer = config.make_optimizer(config.Adam(b1=0.0, b2=0.0, clip_norm=1.0), lambda step: 1.0)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    gradient = jax.tree.map(lambda leaf: leaf + 30.0, params)
    with jax.numpy_dtype_promotion("standard"):
        _, state = optimizer.update(gradient, optimizer.init(params), params)
    # Adam without memory divides each entry by its own size; its second moment shows the clip.
    second_moment = optax.tree.get(state, "nu")
    np.testing.assert_allclose(second_moment["a"], 0.25, rtol=1e-5)


@pytest.mark.parametrize("kind", config.members(config.Objective))
def test_every_objective_is_a_loss_of_the_core(kind):
    # A network that answers with its own input, at the times that it is told.
    schedule = schedules.respaced(schedules.cosine(40), range(0, 40, 5))
    learned = kind.needs_variance
    variance = "learned_range" if learned else "small"
    seen = []

    def apply(params, x_t, t, *, train, keys):
        seen.append(t)
        return (params * x_t, 0.1 * x_t) if learned else params * x_t

    of_images = training.make_losses(
        apply, schedule, kind().make(), predicts="v", levels=17, variance=variance
    )
    made = training.Objective(config.Stratified().make(schedule), of_images)
    key, x0 = jax.random.key(0), jnp.linspace(-1.0, 1.0, 17)[jnp.arange(32) % 17].reshape(8, 4)
    drawn = draw(made, key, 8, ())
    loss = made.losses(jnp.float32(0.5), x0, drawn)

    # What is drawn, one example after the other.
    times_key, examples_key = jax.random.split(key)
    t = timesteps.stratified(times_key, 8, 8)
    eps = jnp.stack(
        [
            jax.random.normal(jax.random.split(jax.random.fold_in(examples_key, i))[0], (4,))
            for i in range(8)
        ]
    )
    x_t = q_sample(schedule, x0, t, eps)
    np.testing.assert_array_equal(seen[0], 5 * t)
    weightings = {
        config.Simple: losses.constant("v"),
        config.MinSNR: losses.min_snr(5.0),
        config.P2: losses.p2(1.0, 1.0),
        config.TruncatedSNR: losses.truncated_snr(1.0),
    }
    told = {"predicts": "v", "levels": 17}
    if kind is config.ELBO:
        expected = losses.elbo_loss(schedule, 0.5 * x_t, x0, x_t, t, **told)
    elif kind is config.Hybrid:
        expected = losses.hybrid_loss(schedule, 0.5 * x_t, 0.1 * x_t, x0, x_t, t, eps, **told)
    else:
        weighting = weightings[kind]
        expected = losses.weighted_loss(
            schedule, 0.5 * x_t, x0, t, eps, predicts="v", weighting=weighting
        )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("objective", "variance", "said"),
    [
        (config.Simple(), "learned_range", "Simple, which does not train the variance"),
        (config.Hybrid(), "small", "objective is Hybrid and network.variance is 'small'"),
    ],
)
def test_a_learned_variance_is_taught(objective, variance, said):
    with pytest.raises(config.ConfigError, match=said):
        config.validate(config.Config(objective=objective, network=config.UNet(variance=variance)))


def test_a_network_that_the_schedule_cannot_have_is_refused_at_once():
    schedule = schedules.zero_terminal_snr(schedules.linear(10))
    with pytest.raises(ValueError, match="predicts is 'eps', and the schedule leaves no signal"):
        training.make_losses(
            lambda *_, **__: None, schedule, config.Simple().make(), predicts="eps", levels=17
        )


class Recorder:
    """Hooks that write down what they are told."""

    def __init__(self):
        self.told = []

    def advance(self, step, waited):
        pass

    def log(self, step, metrics):
        self.told.append(("log", step, float(metrics.loss)))

    def save(self, step, state, *, due, leaving):
        assert int(state.step) == step
        assert due or leaving
        self.told.append(("save" if due else "left", step))

    def keep(self, step, state):
        self.told.append(("keep", step))

    def monitor(self, step, state):
        self.told.append(("monitor", step))

    def draw(self, step, state):
        self.told.append(("draw", step))


def run_loop(step, state, *, start=0, steps=7, **how):
    hooks = Recorder()
    how = {"log_every": 2, "save_every": 3, "draw_every": 5, **how}
    try:
        training.fit(
            step, state, iter(lambda: jnp.zeros(2), None), hooks, start=start, steps=steps, **how
        )
    except (training.DivergenceError, training.InterruptedTraining) as error:
        return hooks.told, error
    return hooks.told, None


def test_a_number_on_held_out_images_is_due_at_multiples_and_before_the_save():
    told, _ = run_loop(jax.jit(make_step()), make_state(), eval_every=3)
    events = [event[:2] for event in told]
    assert [step for what, step in events if what == "monitor"] == [3, 6]
    assert events.index(("log", 6)) < events.index(("monitor", 6)) < events.index(("save", 6))
    told, _ = run_loop(jax.jit(make_step()), make_state())
    assert "monitor" not in {event[0] for event in told}


def test_a_save_comes_last_and_the_last_step_has_all_three():
    told, _ = run_loop(jax.jit(make_step()), make_state())
    events = [event[:2] for event in told]
    assert [step for what, step in events if what == "log"] == [2, 4, 6, 7]
    assert [step for what, step in events if what == "save"] == [3, 6, 7]
    assert [step for what, step in events if what == "draw"] == [5, 7]
    # Whatever is told of a step up to a save is told before it: a resumed run will not tell it.
    for place, (what, saved) in enumerate(events):
        if what == "save":
            assert all(step > saved for _, step in events[place + 1 :])


def test_the_loop_goes_on_where_it_is_told_to():
    step = jax.jit(make_step(window_steps=2))
    whole, _ = run_loop(step, make_state())
    state = make_state()
    for _ in range(3):
        state, _ = step(state, jnp.zeros(2))
    resumed, _ = run_loop(step, state, start=3)
    assert [event for event in whole if event[1] > 3] == resumed


@pytest.mark.parametrize("bad_step", [1, 4, 6, 7])
def test_a_diverged_state_is_never_saved(bad_step):
    plain = jax.jit(make_step())

    def step(state, batch):
        poisoned = jnp.where(state.step + 1 == bad_step, jnp.nan, batch)
        return plain(state, poisoned)

    told, error = run_loop(step, make_state())
    assert error.step == bad_step
    assert f"at step {bad_step}" in str(error)
    assert all(event[1] < bad_step for event in told)


@pytest.mark.parametrize(("asked", "saved_as"), [(4, "left"), (6, "save")])
def test_a_run_that_is_asked_to_stop_saves_the_step_at_hand(asked, saved_as):
    step = jax.jit(make_step(window_steps=2))
    whole, _ = run_loop(step, make_state())
    told, left = run_loop(
        step, make_state(), interrupted=lambda step: signal.SIGTERM if step == asked else None
    )
    assert (left.step, left.signal_number) == (asked, signal.SIGTERM)
    assert str(left) == f"stopped by SIGTERM; step {asked} is saved"
    assert told[-1] == (saved_as, asked)
    kept = [event for event in whole if event[1] <= asked]
    assert [event for event in told if event[0] != "left"] == kept


def test_a_run_that_is_asked_to_stop_after_its_last_step_is_finished():
    told, left = run_loop(
        jax.jit(make_step()), make_state(), interrupted=lambda step: 15 if step == 7 else None
    )
    assert left is None
    assert told[-1] == ("save", 7)


def test_the_loop_runs_three_steps_ahead_of_the_device_and_no_further(monkeypatch):
    plain, dispatched, waited = jax.jit(make_step()), [], []
    monkeypatch.setattr(training.loop.jax, "block_until_ready", waited.append)

    def step(state, batch):
        dispatched.append(len(waited))
        return plain(state, batch)

    run_loop(step, make_state(), steps=9, log_every=100, save_every=100, draw_every=100)
    assert dispatched == [0, 0, 0, 0, 1, 2, 3, 4, 5]


def test_the_wait_for_a_batch_counts_where_the_device_had_nothing_to_do(monkeypatch):
    # A clock that only batches advance, by 1 s each, and a device that is done or is not.
    clock, plain = [0.0], jax.jit(make_step())
    monkeypatch.setattr(training.loop.time, "perf_counter", lambda: clock[0])

    def batches():
        while True:
            clock[0] += 1.0
            yield jnp.zeros(2)

    class Waits(Recorder):
        def advance(self, step, waited):
            self.told.append((step, waited))

    for done, expected in ((True, [0.0, 1.0, 1.0, 1.0, 1.0]), (False, [0.0] * 5)):
        monkeypatch.setattr(training.loop, "_is_ready", lambda metrics, done=done: done)
        hooks = Waits()
        every = {"log_every": 100, "save_every": 100, "draw_every": 100}
        training.fit(plain, make_state(), batches(), hooks, start=0, steps=5, **every)
        waits = [told for told in hooks.told if isinstance(told[0], int)]
        assert waits == list(enumerate(expected, start=1))  # the first step is not counted


class TestBadSteps:
    """A batch of NaN at the steps named."""

    def run(self, bad_steps, *, skips, steps=8):
        plain = jax.jit(make_step(window_steps=4, skips=skips))
        state, told = make_state(), []
        for done in range(1, steps + 1):
            batch = jnp.array([0.0, 2.0]) + (jnp.nan if done in bad_steps else 0.0)
            state, metrics = plain(state, batch)
            told.append(metrics)
        return state, told

    def test_a_skipped_step_changes_nothing_but_the_count(self):
        state, told = self.run({3, 4, 7}, skips=2)
        w, average = 3.0, 3.0
        for done in (0, 1, 4, 5, 7):  # the decay follows the steps done, skipped or not
            w = w - 0.5 * (w - 1.0)
            decay = min(0.99, (1 + done) / (10 + done))
            average = decay * average + (1 - decay) * w
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-6)
        np.testing.assert_allclose(state.ema_params["w"], average, rtol=1e-6)
        assert int(state.step) == 8
        assert jax.tree.map(int, state.bad) == training.state.Bad(0, 3, 0, 7)
        # Means are over the good steps of the window: at step 4 over steps 1 and 2.
        losses = [0.25 * (w**2 + (w - 2.0) ** 2) for w in (3.0, 2.0)]
        np.testing.assert_allclose(told[3].loss, np.mean(losses), rtol=1e-6)

    def test_one_more_in_a_row_stops_the_run_for_good(self):
        state, told = self.run({3, 4, 5}, skips=2)
        assert [int(metrics.bad.stop) for metrics in told] == [0, 0, 0, 0, 5, 5, 5, 5]
        assert np.isfinite(state.params["w"])

    def test_a_good_step_between_starts_the_count_anew(self):
        _, told = self.run({1, 2, 4, 5, 7, 8}, skips=2)
        assert int(told[-1].bad.stop) == 0
        assert int(told[-1].bad.skipped) == 6

    def test_nothing_is_skipped_unless_asked_for(self):
        _, told = self.run({3}, skips=0)
        assert int(told[2].bad.stop) == 3

    def test_parameters_that_overflow_are_never_skipped(self):
        step = jax.jit(make_step(optimizer=optax.sgd(1e38), skips=5))
        state, _ = step(make_state(1e3), jnp.zeros(2))
        assert int(state.bad.stop) == 1


def test_state_is_arrays_only():
    state = make_state()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
