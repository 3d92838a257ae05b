"""Chains told by their step: they walk, they refuse to skip, and impure steps are found."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from marks import thorough_but

from ddpm_jax import forward, losses, schedules
from ddpm_jax.processes import NoClosedForm, affine_chain, check_step, custom_chain, gamma

T, BATCH, SHAPE = 30, 8, (3, 2)
SCHEDULE = schedules.cosine(T)
BETAS = np.asarray(SCHEDULE.betas)


def gaussian(x_prev, eps, t):
    """The isotropic chain's step, of one sample."""
    beta = jnp.asarray(BETAS)[t]
    return jnp.sqrt(1.0 - beta) * x_prev + jnp.sqrt(beta) * eps


def bent(x_prev, eps, t):
    return jnp.where(t > 20, jnp.sin(x_prev), jnp.tanh(x_prev)) + 0.3 * eps * jnp.cos(x_prev)


def image(seed):
    return jax.random.normal(jax.random.key(seed), (BATCH, *SHAPE))


t = jnp.arange(BATCH, dtype=jnp.int32) + 18
CHAIN = custom_chain(bent, T, shape=SHAPE)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


def test_a_step_is_that_of_each_sample():
    expected = [bent(*each) for each in zip(image(0), image(1), t, strict=True)]
    assert_close(CHAIN.q_step(image(0), t, image(1)), jnp.stack(expected))


def test_the_isotropic_step_is_one_of_them():
    chain = custom_chain(gaussian, T, shape=SHAPE)
    expected = forward.q_step(SCHEDULE, image(0), t, image(1))
    assert_close(chain.q_step(image(0), t, image(1)), expected)


@pytest.mark.thorough
def test_the_chain_walked_has_the_moments_of_the_shortcut():
    # 100,000 chains of 20 steps: mean and variance within 4.5 standard errors of
    # N(sqrt(alpha_bar) x_0, 1 - alpha_bar) in float64, at a fixed seed; p < 1e-5 for each.
    count, walked, x0 = 100_000, 20, 0.7
    chain = custom_chain(gaussian, T)

    walk = jax.jit(forward.q_chain, static_argnums=3)
    x = np.asarray(walk(chain, jax.random.key(0), jnp.full((count, 1), x0), walked), np.float64)
    alpha_bar = np.prod(1.0 - BETAS[:walked].astype(np.float64))
    assert abs(x.mean() - np.sqrt(alpha_bar) * x0) < 4.5 * np.sqrt((1 - alpha_bar) / count)
    assert abs(x.var() - (1 - alpha_bar)) < 4.5 * (1 - alpha_bar) * np.sqrt(2 / count)


def test_what_it_cannot_do_says_why_and_names_the_loop():
    x = image(0)
    asked = {
        "q_sample": lambda: forward.q_sample(CHAIN, x, t, x),
        "q_transition": lambda: forward.q_transition(CHAIN, x, t, t - 1, x),
        "q_posterior": lambda: forward.q_posterior(CHAIN, x, x, t, t - 1),
        "draw_noise": lambda: CHAIN.draw_noise(jax.random.key(0), x.shape, t),
    }
    for name, ask in asked.items():
        with pytest.raises(NoClosedForm, match=rf"\({name}\): .* its step alone; q_chain walks"):
            ask()
    assert issubclass(NoClosedForm, TypeError)


@pytest.mark.parametrize(
    "chain",
    [
        CHAIN,
        gamma(SCHEDULE, 0.1),
        affine_chain(np.zeros((2, 6, 6)), np.zeros((2, 6)), np.zeros((2, 6, 6))),
    ],
    ids=lambda chain: type(chain).__name__,
)
def test_what_needs_modes_says_that_there_are_none(without_annotation_checks, chain):
    x, name = image(0), type(chain).__name__
    with pytest.raises(NoClosedForm, match=f"process is a {name}, which has no modes; this"):
        losses.vlb_terms(chain, x, x, x, t, predicts="eps", levels=None)


@pytest.mark.thorough
def test_jit_traces_once_and_the_chain_is_static():
    traces = []

    def step(x_prev, eps, t):
        traces.append(t)
        return bent(x_prev, eps, t)

    chain = custom_chain(step, T)
    assert traces == []
    q_step = jax.jit(lambda chain, x, t, eps: chain.q_step(x, t, eps))
    assert_close(q_step(chain, image(0), t, image(1)), CHAIN.q_step(image(0), t, image(1)))
    q_step(chain, image(2), t - 3, image(3))
    assert len(traces) == 1
    assert jax.tree.leaves(chain) == []


@pytest.mark.thorough
def test_vmap_and_grad():
    x, eps = jnp.stack([image(0), image(1)]), jnp.stack([image(2), image(3)])
    mapped = jax.vmap(CHAIN.q_step)(x, jnp.stack([t, t[::-1]]), eps)
    assert_close(mapped[1], CHAIN.q_step(image(1), t[::-1], image(3)))
    late = t > 20
    slope = jax.grad(lambda x: jnp.sum(CHAIN.q_step(x, t, image(2))))(image(0))
    x, noise = np.asarray(image(0), np.float64), np.asarray(image(2), np.float64)
    drift = np.where(late[:, None, None], np.cos(x), 1.0 / np.cosh(x) ** 2)
    assert_close(slope, drift - 0.3 * noise * np.sin(x))


@pytest.mark.thorough
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_over_eight_devices(axis_type):
    mesh = jax.make_mesh((BATCH,), ("data",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(array, split) for array in (image(0), t)]
        noise = jax.random.normal(jax.random.key(1), (BATCH, *SHAPE))  # whole on every device
        result = jax.jit(CHAIN.q_step, out_shardings=split)(*placed, noise)
    assert result.addressable_shards[0].data.shape[0] == 1
    assert_close(result, CHAIN.q_step(image(0), t, image(1)))


@pytest.mark.thorough
def test_times_outside_give_nan():
    x = CHAIN.q_step(image(0), jnp.array([-1, T, 0, T - 1, -7, T + 9, 1, 2]), image(1))
    np.testing.assert_array_equal(
        np.isnan(x).all(axis=(1, 2)), [True, True, False, False, True, True, False, False]
    )


@pytest.mark.thorough
def test_narrow_images_stay_narrow():
    def halved(x_prev, eps, t):
        return x_prev / 2 + eps

    x, eps = image(0).astype(jnp.bfloat16), image(1)
    assert custom_chain(halved, T).q_step(x, t, eps).dtype == jnp.bfloat16


PURE = {
    "own key": lambda x, eps, t: x + eps * jax.random.uniform(jax.random.key(3), x.shape),
    "jitted": jax.jit(bent),
    "custom derivative": lambda x, eps, t: jax.nn.relu(x) + jax.nn.silu(eps),
    "partial": functools.partial(lambda a, x, eps, t: a * x + eps, 0.5),
    "a table": lambda x, eps, t: x * jnp.asarray(BETAS)[t] + eps,
    "loop": lambda x, eps, t: jax.lax.fori_loop(0, t, lambda i, y: 0.9 * y, x) + eps,
    "nan": lambda x, eps, t: jnp.log(x) + eps,
    "ignores its noise": lambda x, eps, t: x,
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", PURE)
def test_pure_steps_pass(name):
    check_step(PURE[name], SHAPE)
    jax.eval_shape(lambda: check_step(PURE[name], SHAPE))  # inside of a trace, too


GENERATOR = np.random.default_rng(0)
CALLS, KEPT = [], []


def counts(x, eps, t):
    CALLS.append(t)
    return x * len(CALLS) + eps


def keeps_the_last(x, eps, t):
    KEPT.append(x)
    return eps + KEPT[max(0, len(KEPT) - 2)]


def calls_out(x, eps, t):
    def draw():
        return GENERATOR.normal(size=SHAPE).astype(np.float32)

    return x + jax.pure_callback(draw, jax.ShapeDtypeStruct(SHAPE, jnp.float32))


def draws(x, eps, t):
    return x + jnp.asarray(GENERATOR.normal(size=SHAPE), jnp.float32)


def draws_little(x, eps, t):
    return x + 1e-6 * jnp.asarray(GENERATOR.normal(size=SHAPE), jnp.float32) + eps


def counting(x, eps, t, calls=[0]):  # noqa: B006
    calls[0] += 1
    return x + eps * calls[0]


IMPURE = {
    "NumPy's noise": (draws, "step gave two results, .* all its noise has to come from eps"),
    "a little of it": (draws_little, "step gave two results"),
    "inside of jit": (jax.jit(draws), "step gave two results"),
    "noise of the host": (calls_out, "step gave two results"),
    "counts": (counts, "step gave two results"),
    "counts in a default": (counting, "step gave two results"),
    "keeps arrays": (keeps_the_last, "step uses an array of an earlier call"),
}


@pytest.mark.parametrize("name", IMPURE)
def test_impure_steps_are_refused(name):
    step, message = IMPURE[name]
    with pytest.raises(ValueError, match=message):
        custom_chain(step, T, shape=SHAPE)


UNTRACEABLE = {
    "float": lambda x, eps, t: x * float(t),
    "if on t": lambda x, eps, t: x if t < 3 else eps,
    "if on x": lambda x, eps, t: x if x.sum() > 0 else eps,
    "range": lambda x, eps, t: sum([x for _ in range(t)], eps),
    "a list's entry": lambda x, eps, t: x * [0.1, 0.2][t],
    "NumPy": lambda x, eps, t: x + np.sin(np.asarray(eps)),
    "NumPy's table": lambda x, eps, t: x * BETAS[t],
    "mask": lambda x, eps, t: x.at[0].set(jnp.sum(eps[eps > 0])),
}


@pytest.mark.parametrize("name", thorough_but(["float", "if on x"], UNTRACEABLE))
def test_steps_that_cannot_be_traced_are_refused(name):
    with pytest.raises(TypeError, match=r"step cannot be traced: .* jnp.where"):
        check_step(UNTRACEABLE[name], SHAPE)
    with pytest.raises(TypeError, match="step cannot be traced"):  # at first use
        jax.eval_shape(custom_chain(UNTRACEABLE[name], T).q_step, image(0), t, image(1))


WRONG = {
    "shape": (lambda x, eps, t: x[0], ValueError, r"shape \(2,\) for a sample of shape \(3, 2\)"),
    "a batch of one": (lambda x, eps, t: x[None], ValueError, r"returned the shape \(1, 3, 2\)"),
    "dtype": (lambda x, eps, t: x.astype(jnp.bfloat16), TypeError, "returned bfloat16 for .*32"),
    "pair": (lambda x, eps, t: (x, eps), TypeError, "step returned a tuple"),
    "nothing": (lambda x, eps, t: None, TypeError, "step returned a NoneType"),
}


@pytest.mark.parametrize("name", WRONG)
def test_steps_that_return_something_else_are_refused(name):
    step, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        check_step(step, SHAPE)
    with pytest.raises(error, match=message):
        custom_chain(step, T).q_step(image(0), t, image(1))


def test_what_is_no_step_is_refused(without_annotation_checks):
    with pytest.raises(TypeError, match="step is a int; it has to be a function"):
        custom_chain(3, T)
    with pytest.raises(TypeError, match=r"step\(x_prev, eps, t\), with three arguments"):
        custom_chain(lambda x, eps: x, T)
    with pytest.raises(ValueError, match="num_steps is 0"):
        custom_chain(bent, 0)


def test_a_step_may_raise_what_it_likes():
    def step(x_prev, eps, t):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        custom_chain(step, T, shape=SHAPE)


@pytest.mark.parametrize("wrong", ["x_prev", "t", "eps"])
def test_wrong_arguments_are_named(without_annotation_checks, wrong):
    arrays = {"x_prev": image(0), "t": t, "eps": image(1)}
    with pytest.raises(TypeError, match=rf"\b{wrong} has dtype"):
        CHAIN.q_step(**(arrays | {wrong: jnp.zeros(arrays[wrong].shape, jnp.uint8)}))
    if wrong != "x_prev":
        with pytest.raises(ValueError, match=rf"\b{wrong} has shape"):
            CHAIN.q_step(**(arrays | {wrong: arrays[wrong][:-1]}))
