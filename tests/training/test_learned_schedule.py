"""The gradient of a learned schedule against brute force, on meshes, and what it does to the loss.

The data are Gaussian and the network is linear, so that all terms are known.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import config, losses, parallel, schedules, training
from ddpm_jax.training.learned_schedule import COLLECTION, with_schedule_apart
from ddpm_jax.training.objective import Drawn

STEPS, WIDTH = 8, 8
LEARNED = training.learned_log_snr(STEPS, 6.0, -5.0, width=WIDTH, endpoints="learned")
X0 = jnp.asarray(np.random.default_rng(1).integers(0, 17, (2 * STEPS, 3)) / 8.0 - 1.0, jnp.float32)
DRAWN = Drawn(
    jax.random.split(jax.random.key(0), 2 * STEPS),
    jnp.tile(jnp.arange(STEPS, dtype=jnp.int32), 2),  # each time twice
    jnp.linspace(0.5, 1.5, 2 * STEPS),
)


def linear(params, x_t, t, **_):
    """A network that depends on its time, which a learned schedule moves, too."""
    variables = params["params"]
    return (variables["scale"] + variables["slope"] * t[:, None]) * x_t


def losses_of(schedule):
    return training.make_losses(linear, schedule, config.ELBO().make(), predicts="eps", levels=17)


def random_variables():
    rng = np.random.default_rng(3)
    collection = {
        name: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32)
        for name, leaf in LEARNED.initial().items()
    }
    network = {"scale": jnp.float32(0.5), "slope": jnp.float32(0.04)}
    return {"params": network, COLLECTION: collection}


def plain_losses(params):
    """Without the rule for the backward pass."""
    return DRAWN.weight * losses_of(LEARNED.schedule(params[COLLECTION]))(params, X0, DRAWN)


@functools.cache
def gradients():
    params = random_variables()
    taught = training.learned_schedule_losses(losses_of, LEARNED)
    taught = training.make_gradient(taught)
    of_mean = jax.jit(jax.grad(lambda params: jnp.mean(plain_losses(params))))
    of_square = jax.jit(jax.grad(lambda params: jnp.mean(jnp.square(plain_losses(params)))))
    return jax.jit(taught)(params, X0, DRAWN), of_mean(params), of_square(params)


def test_network_and_ends_get_the_gradient_of_the_bound():
    (values, taught), of_mean, _ = gradients()
    expected = jax.jit(plain_losses)(random_variables())
    np.testing.assert_allclose(DRAWN.weight * values, expected, rtol=1e-5)
    for name in ("scale", "slope"):
        np.testing.assert_allclose(taught["params"][name], of_mean["params"][name], rtol=1e-4)
    for name in ("log_snr_max", "log_range"):
        np.testing.assert_allclose(taught[COLLECTION][name], of_mean[COLLECTION][name], rtol=1e-4)


def test_what_lies_between_gets_the_gradient_of_the_mean_square():
    (_, taught), of_mean, of_square = gradients()
    for name in ("line", "heights", "slopes", "centres"):
        got, expected = taught[COLLECTION][name], of_square[COLLECTION][name]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        assert np.abs(np.asarray(of_mean[COLLECTION][name] - expected)).max() > 0.1


def test_that_gradient_is_that_of_differences():
    (_, taught), *_ = gradients()
    params, h = random_variables(), 0.02
    square = jax.jit(lambda params: jnp.mean(jnp.square(plain_losses(params))))

    def moved(step):
        heights = params[COLLECTION]["heights"].at[2].add(step)
        return {**params, COLLECTION: {**params[COLLECTION], "heights": heights}}

    difference = (square(moved(h)) - square(moved(-h))) / (2.0 * h)
    np.testing.assert_allclose(taught[COLLECTION]["heights"][2], difference, rtol=0.01)


def a_step(name, *, accumulate=1):
    mesh = parallel.make_mesh(2 if name else 1, 1)
    optimizer = with_schedule_apart(optax.adam(1e-2, eps=1e-2))
    objective = training.Objective(
        config.Stratified().make(LEARNED.schedule(LEARNED.initial())),
        training.learned_schedule_losses(losses_of, LEARNED),
    )
    birth = jax.jit(lambda: training.init_state(random_variables(), optimizer, jax.random.key(2)))
    shardings = parallel.shardings(parallel.abstract(jax.eval_shape(birth), mesh))
    member = {"jit": config.Jit, "shard_map": config.ShardMap, "pmap": config.Pmap}
    form = member[name](data=2).make(mesh, shardings, "float32") if name else None
    step = training.make_train_step(
        objective,
        optimizer,
        averages=[lambda step: jnp.float32(0.9)],
        window_steps=1,
        accumulate=accumulate,
        watch=lambda params: LEARNED.metrics(params[COLLECTION]),
        form=form,
    )
    form = parallel.one_device() if form is None else form
    batch = form.place(X0)
    state = jax.jit(birth, out_shardings=shardings)()
    program = form.lower(step, state, batch).compile()
    for _ in range(2):
        state, metrics = program(state, batch)
    return jax.device_get((state.params, metrics.watched))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "accumulate"),
    [("jit", 1), ("shard_map", 1), ("shard_map", 2), ("pmap", 1), (None, 2)],
)
def test_every_form_and_accumulation_moves_the_schedule_alike(name, accumulate):
    alone, other = a_step(None), a_step(name, accumulate=accumulate)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), alone, other)
    assert np.abs(alone[0][COLLECTION]["heights"]).max() > 0.01


def test_a_clip_of_the_network_does_not_depend_on_the_schedule():
    optimizer = with_schedule_apart(optax.clip_by_global_norm(1.0))
    params = random_variables()
    gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3.0), params)
    huge = {**gradient, COLLECTION: jax.tree.map(lambda leaf: 1e6 * leaf, gradient[COLLECTION])}
    state = optimizer.init(params)
    one, other = (optimizer.update(grads, state)[0]["params"] for grads in (gradient, huge))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    np.testing.assert_allclose(one["scale"], 0.5**0.5, rtol=1e-6)


VARIANCES = np.array([0.5, 0.05, 0.002])
"""Of Gaussian data: most of the bound lies at three noise levels."""
CHAIN = training.learned_log_snr(100, 12.0, -9.0, width=24, endpoints="fixed")


def best(params, x_t, t, **_):
    """The best denoiser of these data at any log SNR; it has no parameters."""
    log_snr = (12.0 - 21.0 / 99.0 * t)[:, None]
    a2, b2 = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
    return jnp.sqrt(b2) * x_t / (a2 * VARIANCES.astype(np.float32)[None] + b2)


def continuous_elbo(terms):
    """Of data that are not on a grid."""
    given = (terms.process, terms.prediction, terms.x0, terms.x_t, terms.t)
    return losses.elbo_loss(*given, predicts=terms.predicts, levels=None)


def moments_of(schedule):
    """E[T L_t] and E[(T L_t)^2] in bits/dim for t >= 1: errors of eps are Gaussian."""
    log_snr = schedule.mean_log_snr()
    a2, b2 = (1.0 / (1.0 + np.exp(sign * log_snr[1:, None])) for sign in (-1.0, 1.0))
    v = a2 * VARIANCES / (a2 * VARIANCES + b2)  # their variances
    weight = 99.0 * 0.5 * np.expm1(-np.diff(log_snr)) / (3.0 * np.log(2.0))
    return weight * v.sum(axis=1), weight**2 * (v.sum(axis=1) ** 2 + 2.0 * (v**2).sum(axis=1))


def variance(schedule, probabilities):
    """Of the loss at a time t >= 1 that is drawn by a law and reweighted."""
    mean, square = moments_of(schedule)
    return np.sum(square / probabilities) / 99.0**2 - mean.mean() ** 2


@functools.cache
def learned_chain():
    """Log SNR between fixed ends after 1,000 steps on batches of 64 with the best denoiser."""
    taught = training.learned_schedule_losses(
        lambda schedule: training.make_losses(
            best, schedule, continuous_elbo, predicts="eps", levels=17
        ),
        CHAIN,
    )
    objective = training.Objective(
        config.Stratified().make(CHAIN.schedule(CHAIN.initial())), taught
    )
    optimizer, deviation = optax.adam(3e-3, b2=0.99), jnp.sqrt(VARIANCES.astype(np.float32))

    def descend(carry, key):
        params, state = carry
        data_key, key = jax.random.split(key)
        x0 = jax.random.normal(data_key, (64, 3)) * deviation[None]
        _, gradient = training.make_gradient(taught)(
            params, x0, training.objective.draw(objective, key, 64, ())
        )
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    params = {COLLECTION: CHAIN.initial()}
    keys = jax.random.split(jax.random.key(7), 1000)
    (params, _), _ = jax.jit(functools.partial(jax.lax.scan, descend))(
        (params, optimizer.init(params)), keys
    )
    return CHAIN.schedule(jax.device_get(params[COLLECTION]))


@pytest.mark.thorough
def test_a_learned_schedule_is_importance_sampling_of_a_fixed_one():
    """The least variance of both is that of a law with the density sqrt(E[L^2])."""
    straight, even = schedules.linear_log_snr(100, 12.0, -9.0), np.full(99, 1.0 / 99.0)
    root = np.sqrt(moments_of(straight)[1])
    uniform, by_importance = variance(straight, even), variance(straight, root / root.sum())
    learned = variance(learned_chain(), even)
    assert by_importance < 0.75 * uniform
    assert by_importance * 0.98 < learned < by_importance * 1.1


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ((7.0, -8.0, 0.02), {}),
        ((7.0, -8.0, 0.6), {"collapse": "collapses: one of 99 steps has 60% of the range"}),
        (
            (21.0, -8.0, 0.02),
            {"range": "log SNR now goes from 21.0 to -8.0; learned endpoints should stay"},
        ),
        (
            (0.5, 0.0, 0.02),
            {"range": "log SNR now goes from 0.5 to 0.0; learned endpoints should stay"},
        ),
        ((21.0, -8.0, 0.6), {"collapse": "has 60% of the range", "range": "from 21.0 to -8.0"}),
    ],
)
def test_a_schedule_that_collapses_or_leaves_its_range_is_told(metrics, said):
    names = ("log_snr_max", "log_snr_min", "largest_log_snr_step")
    sentences = CHAIN.warnings(dict(zip(names, metrics, strict=True)))
    assert sentences.keys() == said.keys()
    assert all(said[fault] in sentences[fault] for fault in said)


def test_it_begins_within_a_percent_of_a_straight_line():
    schedule = CHAIN.schedule(CHAIN.initial())
    straight = schedules.linear_log_snr(100, 12.0, -9.0)
    t = jnp.arange(1, 100)
    ratio = schedule.log_snr_difference(t, t - 1) / straight.log_snr_difference(t, t - 1)
    np.testing.assert_allclose(ratio, 1.0, atol=0.01)
    np.testing.assert_allclose(schedule.network_times, np.arange(100), atol=0.1)
