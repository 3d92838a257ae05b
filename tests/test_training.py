"""One step against arithmetic, the mesh, and the loop."""

import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import losses, parallel, q_sample, schedules, timesteps, training
from ddpm_jax.errors import UserError
from ddpm_jax.models import UNet
from ddpm_jax.schedules import linear_log_snr
from ddpm_jax.training import ema
from ddpm_jax.training.objective import Objective


def pull_to_batch(params, key, batch, memory):
    """1/2 (w - x)^2 for each example: the gradient of its mean is w - mean(x)."""
    return 0.5 * jnp.square(params["w"] - batch), memory


def make_state(w=3.0, optimizer=None):
    return training.init_state(
        {"w": jnp.float32(w)}, optimizer or optax.sgd(0.5), jax.random.key(0)
    )


def make_step(loss_fn=pull_to_batch, optimizer=None, window_steps=3):
    return training.make_train_step(
        loss_fn, optimizer or optax.sgd(0.5), ema_decay=0.99, window_steps=window_steps
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
    assert int(state.first_bad_step) == int(metrics.first_bad_step) == 3


def test_a_bad_gradient_under_a_finite_loss_counts():
    def root(params, key, batch, memory):
        return jnp.sqrt(params["w"] * 0.0) + 0.0 * batch, memory

    state, _ = jax.jit(make_step(root))(make_state(), jnp.zeros(2))
    assert int(state.first_bad_step) == 1


def test_parameters_that_overflow_under_a_finite_gradient_count():
    state, _ = jax.jit(make_step(optimizer=optax.sgd(1e38)))(make_state(1e3), jnp.zeros(2))
    assert int(state.first_bad_step) == 1


def test_ema_decay_warms_up():
    for step, expected in [(0, 0.1), (10, 11 / 20), (10_000, 0.99)]:
        np.testing.assert_allclose(ema.decay_at(jnp.int32(step), 0.99), expected, rtol=1e-6)


def test_learning_rate_warms_up_and_falls():
    rate = training.learning_rate_schedule(1.0, warmup_steps=10, decay="cosine", total_steps=110)
    for step, expected in [(0, 0.0), (5, 0.5), (10, 1.0), (60, 0.5), (110, 0.0)]:
        np.testing.assert_allclose(rate(step), expected, atol=1e-6)
    constant = training.learning_rate_schedule(1.0, warmup_steps=0, decay="constant", total_steps=9)
    np.testing.assert_allclose([constant(0), constant(99)], 1.0)


def test_the_gradient_is_clipped_by_its_global_norm():
    optimizer = training.make_optimizer(lambda step: 1.0, b1=0.0, b2=0.0, clip_norm=1.0)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    gradient = jax.tree.map(lambda leaf: leaf + 30.0, params)
    with jax.numpy_dtype_promotion("standard"):
        _, state = optimizer.update(gradient, optimizer.init(params), params)
    # Adam without memory divides each entry by its own size; its second moment shows the clip.
    second_moment = optax.tree.get(state, "nu")
    np.testing.assert_allclose(second_moment["a"], 0.25, rtol=1e-5)


@pytest.mark.parametrize("objective", typing.get_args(Objective))
def test_every_objective_is_a_loss_of_the_core(objective):
    # A network that answers with its own input, at the times that it is told.
    schedule = schedules.respaced(schedules.cosine(40), range(0, 40, 5))
    learned = objective == "hybrid"
    variance = "learned_range" if learned else "small"
    seen = []

    def apply(params, x_t, t, *, train, rngs):
        seen.append(t)
        return (params * x_t, 0.1 * x_t) if learned else params * x_t

    loss_fn = training.make_loss(
        apply,
        schedule,
        objective=objective,
        predicts="v",
        levels=17,
        times="stratified",
        variance=variance,
    )
    key, x0 = jax.random.key(0), jnp.linspace(-1.0, 1.0, 17)[jnp.arange(32) % 17].reshape(8, 4)
    loss, _ = loss_fn(jnp.float32(0.5), key, x0, ())

    times_key, noise_key, _ = jax.random.split(key, 3)
    t = timesteps.stratified(times_key, 8, 8)
    eps = jax.random.normal(noise_key, x0.shape)
    x_t = q_sample(schedule, x0, t, eps)
    np.testing.assert_array_equal(seen[0], 5 * t)
    weightings = {
        "simple": losses.constant("v"),
        "min_snr": losses.min_snr(5.0),
        "p2": losses.p2(1.0, 1.0),
        "truncated_snr": losses.truncated_snr(1.0),
    }
    told = {"predicts": "v", "levels": 17}
    if objective == "elbo":
        expected = losses.elbo_loss(schedule, 0.5 * x_t, x0, x_t, t, **told)
    elif objective == "hybrid":
        expected = losses.hybrid_loss(schedule, 0.5 * x_t, 0.1 * x_t, x0, x_t, t, eps, **told)
    else:
        weighting = weightings[objective]
        expected = losses.weighted_loss(
            schedule, 0.5 * x_t, x0, t, eps, predicts="v", weighting=weighting
        )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("objective", "variance", "said"),
    [
        ("simple", "learned_range", "objective is 'simple', which teaches no variance"),
        ("hybrid", "small", "objective is 'hybrid' and variance is 'small'"),
    ],
)
def test_a_learned_variance_is_taught(objective, variance, said):
    with pytest.raises(ValueError, match=said):
        training.make_loss(
            lambda *_, **__: None,
            schedules.linear(10),
            objective=objective,
            predicts="v",
            levels=17,
            times="uniform",
            variance=variance,
        )


def test_a_network_that_the_schedule_cannot_have_is_refused_at_once():
    schedule = schedules.zero_terminal_snr(schedules.linear(10))
    with pytest.raises(ValueError, match="predicts is 'eps', and the schedule leaves no signal"):
        training.make_loss(
            lambda *_, **__: None,
            schedule,
            objective="simple",
            predicts="eps",
            levels=17,
            times="uniform",
        )


@pytest.fixture(scope="module")
def small_run():
    """A U-Net's step and state, with dropout and drawn noise, built the same for any mesh."""
    model = UNet(4, (1,), 1, (), 0.1, 2)
    loss_fn = training.make_loss(
        model.apply,
        linear_log_snr(8),
        objective="elbo",
        predicts="eps",
        levels=17,
        times="stratified",
    )
    optimizer = training.make_optimizer(lambda step: 1e-2, b1=0.9, b2=0.99, clip_norm=1.0)
    step = training.make_train_step(loss_fn, optimizer, ema_decay=0.9, window_steps=1)
    params = jax.jit(model.init)(
        jax.random.key(1), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32)
    )

    def born():
        return training.init_state(params, optimizer, jax.random.key(2))

    grid = np.random.default_rng(0).integers(0, 17, (6, 16, 8, 8, 1))
    return step, born, (grid / 8.0 - 1.0).astype(np.float32)


def run_on(small_run, devices):
    step, born, batches = small_run
    mesh = parallel.make_mesh(devices)
    compiled = parallel.compile_step(step, mesh)
    state = jax.jit(born, out_shardings=parallel.replicated(mesh))()
    losses = []
    for batch in batches:
        state, metrics = compiled(state, parallel.shard_batch(mesh, batch))
        losses.append(float(metrics.loss))
    return losses, state, compiled, mesh


@pytest.fixture(scope="module")
def on_eight(small_run):
    return run_on(small_run, 8)


def test_eight_devices_give_the_losses_of_one(small_run, on_eight):
    losses, state, _, _ = run_on(small_run, 1)
    # The sums over the batch are grouped otherwise, and Adam passes the difference on: 1e-5, not 0.
    np.testing.assert_allclose(on_eight[0], losses, rtol=1e-5)
    jax.tree.map(
        lambda one, eight: np.testing.assert_allclose(one, eight, rtol=0, atol=1e-4),
        state.params,
        on_eight[1].params,
    )


def test_times_drawn_by_importance_are_learned_alike_on_any_mesh():
    # A network that says nothing errs by |eps|^2 at every t, more where the weight is larger.
    schedule = linear_log_snr(6, 7.0, -1.0)

    def apply(params, x_t, t, *, train, rngs):
        return params["w"] * x_t

    loss_fn = training.make_loss(
        apply, schedule, objective="elbo", predicts="v", levels=17, times="importance"
    )
    step = training.make_train_step(loss_fn, optax.sgd(0.0), ema_decay=0.9, window_steps=1)
    memory = training.initial_memory("importance", 6)
    batch = np.linspace(-1.0, 1.0, 17, dtype=np.float32)[np.arange(64) % 17].reshape(32, 2)

    def born():
        return training.init_state({"w": jnp.zeros(())}, optax.sgd(0.0), jax.random.key(0), memory)

    states, losses = [], []
    for devices in (1, 8):
        mesh = parallel.make_mesh(devices)
        compiled = parallel.compile_step(step, mesh)
        state = jax.jit(born, out_shardings=parallel.replicated(mesh))()
        for _ in range(40):
            state, metrics = compiled(state, parallel.shard_batch(mesh, batch))
            losses.append(float(metrics.loss))
        states.append(state)
    np.testing.assert_array_equal(states[0].memory.counts, states[1].memory.counts)
    np.testing.assert_allclose(states[0].memory.losses, states[1].memory.losses, rtol=1e-5)
    assert states[0].memory.counts.sum() == 40 * 32
    np.testing.assert_allclose(losses[:40], losses[40:], rtol=1e-5)
    # The mean is that of uniform times; once the history is full, it varies less.
    uniform = jax.jit(
        jax.vmap(
            lambda key: training.make_loss(
                apply, schedule, objective="elbo", predicts="v", levels=17, times="uniform"
            )({"w": jnp.zeros(())}, key, jnp.asarray(batch), ())[0].mean()
        )
    )(jax.random.split(jax.random.key(1), 4000))
    late = np.array(losses[20:40])
    assert abs(late.mean() - uniform.mean()) < 4.5 * late.std() / np.sqrt(20) + 4.5 * (
        uniform.std() / np.sqrt(4000)
    )
    assert late.std() < 0.75 * uniform.std()


def test_the_batch_is_split_and_the_state_is_everywhere(on_eight):
    _, state, _, mesh = on_eight
    leaf = jax.tree.leaves(state.params)[0]
    assert leaf.sharding.is_fully_replicated
    assert len(leaf.sharding.device_set) == mesh.size == 8
    batch = parallel.shard_batch(mesh, np.zeros((16, 8, 8, 1), np.float32))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 8, 8, 1)}


def test_a_run_compiles_one_step_and_moves_nothing_to_the_host(small_run, on_eight, caplog):
    _, born, batches = small_run
    _, _, compiled, mesh = on_eight  # six steps, of which the first compiled
    state = jax.jit(born, out_shardings=parallel.replicated(mesh))()
    placed = parallel.shard_batch(mesh, batches[0])
    with jax.transfer_guard("disallow"), jax.log_compiles():
        new_state, metrics = compiled(state, placed)
    assert not [record for record in caplog.records if "ompil" in record.getMessage()]
    assert np.isfinite(metrics.loss)
    assert jax.tree.leaves(state.params)[0].is_deleted(), "the old state was to be donated"
    assert not jax.tree.leaves(new_state.params)[0].is_deleted()


def test_a_mesh_larger_than_the_machine_is_refused():
    with pytest.raises(UserError, match=r"mesh\.data is 9; of the devices here, 8"):
        parallel.make_mesh(9)


class Recorder:
    """Hooks that write down what they are told."""

    def __init__(self):
        self.told = []

    def advance(self, step):
        pass

    def log(self, step, metrics):
        self.told.append(("log", step, float(metrics.loss)))

    def save(self, step, state):
        assert int(state.step) == step
        self.told.append(("save", step))

    def draw(self, step, state):
        self.told.append(("draw", step))


def run_loop(step, state, *, start=0, steps=7, **every):
    hooks = Recorder()
    every = {"log_every": 2, "save_every": 3, "draw_every": 5, **every}
    try:
        training.fit(
            step, state, iter(lambda: jnp.zeros(2), None), hooks, start=start, steps=steps, **every
        )
    except training.DivergenceError as error:
        return hooks.told, error
    return hooks.told, None


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


def test_state_is_arrays_only():
    state = make_state()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
