"""Derivatives are finite wherever the mathematics has them, and both modes agree on them.

With respect to everything that may be traced: images, what the network returns, the tables of the
schedule, and the parameters of samplers, guidance and losses.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import thorough_but

from ddpm_jax import losses, reverse, samplers, schedules
from ddpm_jax.forward import convert, q_posterior, q_sample, q_transition
from ddpm_jax.likelihood import bits_per_dim, estimate_bits_per_dim, flow_bits_per_dim
from ddpm_jax.losses import error_weight
from ddpm_jax.samplers import guidance

T = 6
SHAPE = (2, 3)
CHAINS = {
    "eps": schedules.cosine(T),
    "v": schedules.zero_terminal_snr(schedules.linear(T)),
    "flow": schedules.rectified_flow(T),
    "edm": schedules.rectified_flow(T, shift=3.0),
}
X0 = jnp.array([[-0.6, 0.0, 0.4], [1.0, 0.2, -1.0]])
KEY = jax.random.key(0)


def tables(schedule):
    return {
        field.name: getattr(schedule, field.name)
        for field in dataclasses.fields(schedule)
        if getattr(getattr(schedule, field.name), "dtype", None) == jnp.float32
    }


def check(function, arguments):
    """Of the sum of `function`: finite in forward and in reverse mode, which agree."""

    def total(arguments):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(function(arguments)))

    @jax.jit
    def both(arguments, direction):
        value, forward = jax.jvp(total, (arguments,), (direction,))
        return value, forward, jax.grad(total)(arguments)

    leaves, tree = jax.tree.flatten(arguments)
    rng = np.random.default_rng(0)
    # A table that is infinite stays so.
    direction = jax.tree.unflatten(
        tree,
        [
            jnp.where(jnp.isfinite(leaf), jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), 0.0)
            for leaf in leaves
        ],
    )
    value, forward, backward = both(arguments, direction)
    assert np.isfinite(value)
    wrong = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(backward)
        if not np.isfinite(leaf).all()
    ]
    assert not wrong
    assert np.isfinite(forward)
    along = jax.tree.map(lambda d, g: np.sum(np.asarray(d, np.float64) * g), direction, backward)
    parts = np.array(jax.tree.leaves(along))
    np.testing.assert_allclose(parts.sum(), forward, rtol=1e-3, atol=1e-4 * np.abs(parts).max())


def network(arguments):
    return lambda x_t, t: arguments["gain"] * jnp.tanh(x_t) + 0.01 * arguments["shift"]


def arguments_of(predicts):
    return {
        "schedule": tables(CHAINS[predicts]),
        "gain": jnp.float32(0.4),
        "shift": jnp.ones(SHAPE),
    }


def chain_of(predicts, arguments):
    return dataclasses.replace(CHAINS[predicts], **arguments["schedule"])


def learned_range(process, predict, **options):
    def pair(x_t, t):
        return predict(x_t, t), 0.3 * jnp.tanh(predict(x_t, t))

    return samplers.ancestral(process, pair, variance="learned_range", **options)


SAMPLERS = {
    "ancestral small": samplers.ancestral,
    "ancestral large": functools.partial(samplers.ancestral, variance="large"),
    "ancestral learned range": learned_range,
    "ddim": samplers.ddim,
    "dpm_solver_pp 2M": samplers.dpm_solver_pp,
    "dpm_solver_pp 2M, stochastic": functools.partial(samplers.dpm_solver_pp, stochastic=True),
    "dpm_solver_pp 3M": functools.partial(samplers.dpm_solver_pp, order=3),
    "dpm_solver_pp_single 3": functools.partial(samplers.dpm_solver_pp_single, order=3),
    "unipc, bh1": functools.partial(samplers.unipc, variant="bh1"),
    "midpoint": samplers.midpoint,
    "heun": samplers.heun,
    "stochastic_heun": functools.partial(samplers.stochastic_heun, gamma=0.4),
    "probability_flow": samplers.probability_flow,
    "dynamic threshold": functools.partial(
        samplers.ddim, threshold=samplers.dynamic_threshold(0.9)
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", SAMPLERS)
def test_of_every_sampler(name):
    predicts = "v"
    times = samplers.time_grid(CHAINS[predicts], T, "trailing")

    def draw(arguments):
        chain = chain_of(predicts, arguments)
        sampler = SAMPLERS[name](chain, network(arguments), predicts=predicts)
        return samplers.sample(sampler, KEY, SHAPE, times, start=arguments["start"]).x0

    check(draw, arguments_of(predicts) | {"start": 1.3 * X0})


@pytest.mark.thorough
def test_of_the_eta_of_ddim():
    # Against a difference of values, which the step onto the data is part of.
    schedule, times = schedules.linear_log_snr(T, 3.0, -3.0), jnp.array([5, 3, 0])

    def draw(eta):
        sampler = samplers.ddim(schedule, lambda x_t, t: 0.5 * x_t, eta=eta, threshold=None)
        return samplers.sample(sampler, KEY, SHAPE, times).x0

    # One-sided at the ends of [0, 1], of second order.
    h, combinations = 0.002, {0.0: (-3, 4, -1), 0.5: (-3, 4, -1), 1.0: (1, -4, 3)}
    etas = jnp.array([*combinations])
    near = jnp.array([[min(eta, 1 - 2 * h) + i * h for i in range(3)] for eta in combinations])

    @jax.jit
    def both(etas, near):
        forward, backward = (jax.vmap(mode(draw))(etas) for mode in (jax.jacfwd, jax.jacrev))
        return forward, backward, jax.vmap(jax.vmap(draw))(near)

    forward, backward, ends = both(etas, near)
    np.testing.assert_allclose(backward, forward, rtol=1e-5)
    weights = np.array([*combinations.values()]) / (2 * h)
    expected = np.einsum("ej,ej...->e...", weights, np.asarray(ends, np.float64))
    np.testing.assert_allclose(forward, expected, rtol=0.02, atol=0.02)


@pytest.mark.thorough
def test_of_guidance_inversion_and_inpainting():
    predicts, times = "v", jnp.array([5, 3, 0])
    mask = jnp.eye(*SHAPE, dtype=bool)

    def draw(arguments):
        chain = chain_of(predicts, arguments)
        free = guidance.classifier_free(
            network(arguments), lambda x_t, t: 0.1 * x_t, scale=arguments["scale"], rescale=0.5
        )
        guided = guidance.classifier(
            chain,
            free,
            lambda x_t, t: -jnp.sum(jnp.square(x_t - 0.1), axis=1),
            predicts=predicts,
            scale=arguments["classifier"],
        )
        sampler = samplers.inpaint(
            samplers.ddim(chain, guided, predicts=predicts, eta=arguments["eta"]),
            chain,
            arguments["known"],
            mask,
            resamplings=2,
        )
        up = samplers.ddim_inversion(chain, guided, arguments["known"], times, predicts=predicts)
        return samplers.sample(sampler, KEY, SHAPE, times).x0, up

    numbers = {"scale": 2.0, "classifier": 0.5, "eta": 0.5}
    extra = {name: jnp.float32(value) for name, value in numbers.items()} | {"known": 0.8 * X0}
    check(draw, arguments_of(predicts) | extra)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("predicts", "variance", "levels"),
    [("eps", "small", 6), ("v", "small", None), ("v", "large", 6), ("v", "learned_range", 6)],
)
def test_of_every_term_of_the_bound(predicts, variance, levels):
    t = jnp.arange(T)
    x0 = jnp.resize(X0, (T, 3))

    def terms(arguments):
        chain = chain_of(predicts, arguments)
        x_t = q_sample(chain, arguments["x0"], t, arguments["eps"])
        learned = arguments["interpolation"] if variance == "learned_range" else None
        options = {"predicts": predicts, "levels": levels}
        nats = losses.elbo_loss(
            chain,
            arguments["prediction"],
            arguments["x0"],
            x_t,
            t,
            variance=variance,
            interpolation=learned,
            **options,
        )
        if learned is None:
            return nats
        return nats, losses.hybrid_loss(
            chain,
            arguments["prediction"],
            learned,
            arguments["x0"],
            x_t,
            t,
            arguments["eps"],
            **options,
        )

    rng = np.random.default_rng(1)
    values = {
        name: jnp.asarray(rng.normal(size=(T, 3)), jnp.float32)
        for name in ("eps", "prediction", "interpolation")
    }
    check(terms, arguments_of(predicts) | values | {"x0": x0})


@pytest.mark.parametrize("predicts", thorough_but(["eps"], CHAINS))
def test_of_every_weighted_loss(predicts):
    t, chain = jnp.arange(T), CHAINS[predicts]
    weightings = [
        losses.constant("x0"),
        losses.constant("v"),
        losses.min_snr(5.0),
        losses.p2(),
        losses.truncated_snr(),
    ]

    def every(arguments):
        chain = chain_of(predicts, arguments)
        prediction, eps = arguments["prediction"], arguments["eps"]
        x0 = jnp.resize(X0, (T, 3))
        simple = losses.simple_loss(chain, prediction, x0, t, eps, predicts=predicts)
        return simple, [
            losses.weighted_loss(
                chain, prediction, x0, t, eps, predicts=predicts, weighting=weighting
            )
            for weighting in weightings
        ]

    values = {name: jnp.full((T, 3), 0.2) for name in ("eps", "prediction")}
    check(every, arguments_of(predicts) | values)
    weights = [error_weight(chain, t, predicts=predicts, weighting=each) for each in weightings]
    assert all(np.isfinite(weight).all() for weight in weights)


@pytest.mark.thorough
@pytest.mark.parametrize("predicts", CHAINS)
def test_of_every_likelihood(predicts):
    times = jnp.array([5, 3, 0])

    def every(arguments):
        chain, predict = chain_of(predicts, arguments), network({"shift": 0.0} | gain(arguments))
        options = {"predicts": predicts, "levels": 6}
        flow = flow_bits_per_dim(chain, predict, KEY, arguments["x0"], times, **options)
        whole = bits_per_dim(chain, predict, KEY, arguments["x0"], **options)
        if predicts == "eps":  # the terms of an estimate are some of the whole's
            return flow.bits_per_dim, whole.total
        part = estimate_bits_per_dim(chain, predict, KEY, arguments["x0"], num_times=3, **options)
        return flow.bits_per_dim, whole.total, part.total, part.standard_error

    def gain(arguments):
        return {"gain": arguments["gain"]}

    check(every, arguments_of(predicts) | {"x0": X0})


@pytest.mark.parametrize("predicts", thorough_but(["eps"], CHAINS))
def test_of_the_closed_forms(predicts):
    t, s = jnp.array([5, 4, 3, 0, 1]), jnp.array([4, 1, -1, -1, 0])

    def every(arguments):
        chain, x = chain_of(predicts, arguments), arguments["x"]
        return (
            q_posterior(chain, x, 0.5 * x, t, s),
            q_transition(chain, x, t, s, 0.3 * x),
            [reverse.fixed_variance(chain, t, s, variance=kind) for kind in ("small", "large")],
            convert(chain, x, 0.5 * x, t, source=predicts, target="x0"),
            chain.noise(s),
            chain.signal(t),
        )

    check(every, arguments_of(predicts) | {"x": jnp.full((5, 2), 0.7)})
