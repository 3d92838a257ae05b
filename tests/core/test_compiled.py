"""What scans is compiled once outside of jit, never stale, and no program outlives its network."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import thorough_but

from ddpm_jax import compiled, likelihood, samplers, schedules
from ddpm_jax.compiled import call_compiled
from ddpm_jax.forward import q_chain
from ddpm_jax.samplers import guidance

SCHEDULE = schedules.cosine(8)
TIMES = samplers.time_grid(SCHEDULE, 3)
KEY = jax.random.key(0)
SHAPE = (2, 3)
X0 = jnp.linspace(-1.0, 1.0, 6).reshape(SHAPE)
BITS = {"predicts": "eps", "levels": 6}


@pytest.fixture(autouse=True)
def _empty():
    compiled._programs.clear()


def draw(sampler, **options):
    return samplers.sample(sampler, KEY, SHAPE, TIMES, **options).x0


# Each as it is called in a script, everything made anew but `predict`.
CALLS = {
    "ancestral": lambda predict: draw(samplers.ancestral(SCHEDULE, predict)),
    "ddim": lambda predict: draw(samplers.ddim(SCHEDULE, predict, eta=jnp.float32(0.3))),
    "another schedule alike": lambda predict: draw(samplers.ddim(schedules.cosine(8), predict)),
    "dpm_solver_pp": lambda predict: draw(samplers.dpm_solver_pp(SCHEDULE, predict)),
    "dpm_solver_pp_single": lambda predict: draw(samplers.dpm_solver_pp_single(SCHEDULE, predict)),
    "unipc": lambda predict: draw(samplers.unipc(SCHEDULE, predict)),
    "midpoint": lambda predict: draw(samplers.midpoint(SCHEDULE, predict)),
    "heun": lambda predict: draw(samplers.heun(SCHEDULE, predict)),
    "stochastic_heun": lambda predict: draw(samplers.stochastic_heun(SCHEDULE, predict, gamma=0.4)),
    "probability_flow": lambda predict: draw(samplers.probability_flow(SCHEDULE, predict)),
    "threshold": lambda predict: draw(
        samplers.ddim(SCHEDULE, predict, threshold=samplers.dynamic_threshold(0.9))
    ),
    "keep": lambda predict: draw(samplers.ddim(SCHEDULE, predict), keep=lambda info: info.x_s),
    "start": lambda predict: draw(samplers.ddim(SCHEDULE, predict), start=X0 + 1.0),
    "guidance": lambda predict: draw(
        samplers.ddim(SCHEDULE, guidance.classifier_free(predict, predict, scale=2.0))
    ),
    "classifier": lambda predict: draw(
        samplers.ddim(
            SCHEDULE, guidance.classifier(SCHEDULE, predict, lambda x_t, t: jnp.sum(x_t, axis=1))
        )
    ),
    "inpaint": lambda predict: draw(
        samplers.inpaint(
            samplers.ddim(SCHEDULE, predict),
            SCHEDULE,
            X0,
            jnp.eye(*SHAPE, dtype=bool),
            resamplings=2,
        )
    ),
    "inversion": lambda predict: samplers.ddim_inversion(SCHEDULE, predict, X0, TIMES),
    "bits_per_dim": lambda predict: likelihood.bits_per_dim(SCHEDULE, predict, KEY, X0, **BITS),
    "estimate": lambda predict: likelihood.estimate_bits_per_dim(
        SCHEDULE, predict, KEY, X0, num_times=2, **BITS
    ),
    "bits_at_times": lambda predict: likelihood.bits_at_times(
        SCHEDULE, predict, KEY, X0, jnp.zeros((2, 2), jnp.int32), **BITS
    ),
    "flow": lambda predict: likelihood.flow_bits_per_dim(SCHEDULE, predict, KEY, X0, TIMES, **BITS),
}


@pytest.mark.parametrize("name", thorough_but(["ddim", "heun", "bits_per_dim", "flow"], CALLS))
def test_the_second_call_traces_nothing(name):
    traces = []

    def predict(x_t, t):
        traces.append(t.shape)
        return 0.1 * x_t

    first = CALLS[name](predict)
    count = len(traces)
    for _ in range(3):
        again = CALLS[name](predict)
    assert 0 < len(traces) == count
    jax.tree.map(np.testing.assert_array_equal, again, first)


def test_the_chain_is_compiled_once():
    with jax.log_compiles(False):
        q_chain(SCHEDULE, KEY, X0, 5)
        assert len(compiled._programs) == 1
        (program,) = compiled._programs.values()
        q_chain(SCHEDULE, jax.random.key(1), X0 + 1.0, 5)
        assert program.call._cache_size() == 1
        q_chain(SCHEDULE, KEY, X0, 6)
        assert len(compiled._programs) == 2


def test_another_shape_is_traced_and_a_traced_call_is_a_part_of_its_caller():
    def predict(x_t, t):
        return 0.1 * x_t

    def of(shape):
        return samplers.sample(samplers.ddim(SCHEDULE, predict), KEY, shape, TIMES).x0

    assert of((2, 3)).shape == (2, 3)
    assert of((4, 3)).shape == (4, 3)
    assert len(compiled._programs) == 2
    compiled._programs.clear()

    def loss(gain):
        sampler = samplers.ddim(SCHEDULE, lambda x_t, t: gain * x_t)
        return jnp.sum(samplers.sample(sampler, KEY, SHAPE, TIMES).x0)

    assert np.isfinite(jax.grad(loss)(0.1))
    assert not compiled._programs


class Network:
    def __init__(self, gain):
        self.params = {"gain": gain}

    def predict(self, x_t, t):
        return jnp.max(self.params["gain"]) * x_t

    def __call__(self, x_t, t):
        return self.predict(x_t, t)


GLOBAL = 0.1


class Shared:
    gain = 0.1

    def __call__(self, x_t, t):
        return self.gain * x_t


class OfTheGlobal:
    def __call__(self, x_t, t):
        return GLOBAL * x_t


def of_the_global(x_t, t):
    return GLOBAL * x_t


LARGE = (300, 300)


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(), LARGE], ids=["small", "large"])
def test_what_a_network_holds_may_change(shape, monkeypatch):
    # Every way to hold parameters, and every way to change them, against a function made anew.
    def result(predict):
        return np.asarray(draw(samplers.ddim(SCHEDULE, predict, threshold=None)))

    def gain(value):
        return jnp.full(shape, value)

    def used(gain, x_t):
        return jnp.max(gain) * x_t

    expected = {value: result(lambda x_t, t, v=value: v * x_t) for value in (0.1, 0.2)}
    assert not np.allclose(expected[0.1], expected[0.2])

    network, cell = Network(gain(0.1)), gain(0.1)

    def closure(x_t, t):
        return used(cell, x_t)

    def apply(params, x_t, t):
        return used(params["gain"], x_t)

    params = {"gain": gain(0.1)}
    partial = functools.partial(apply, params)
    monkeypatch.setitem(globals(), "GLOBAL", 0.1)
    for value in (0.1, 0.1, 0.2, 0.2, 0.1):
        network.params = {"gain": gain(value)}
        cell = gain(value)
        params["gain"] = gain(value)
        monkeypatch.setitem(globals(), "GLOBAL", value)
        monkeypatch.setattr(Shared, "gain", value)
        by_name = of_the_global, OfTheGlobal(), Shared()
        for holder in (network, network.predict, closure, partial, *by_name):
            for _ in range(2):
                np.testing.assert_allclose(result(holder), expected[value], atol=1e-6)
    np.testing.assert_allclose(
        result(functools.partial(apply, {"gain": gain(0.2)})), expected[0.2], atol=1e-6
    )


@pytest.mark.thorough
def test_a_flax_network_is_found_again_and_other_parameters_are_another():
    nn = pytest.importorskip("flax.linen", reason="the extra `models` is not installed")
    calls = []

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x_t, t):
            calls.append(t.shape)
            return nn.silu(nn.Dense(3)(nn.Dense(300)(nn.Dense(300)(x_t))))

    model = Model()
    one, two = (model.init(jax.random.key(i), X0, jnp.zeros(2, jnp.int32)) for i in range(2))
    calls.clear()
    predict = functools.partial(model.apply, one)
    first = draw(samplers.ddim(SCHEDULE, predict))
    count = len(calls)
    np.testing.assert_array_equal(draw(samplers.ddim(SCHEDULE, predict)), first)
    assert len(calls) == count
    other = draw(samplers.ddim(SCHEDULE, functools.partial(model.apply, two)))
    assert (np.asarray(other) != np.asarray(first)).any()


@pytest.mark.thorough
def test_a_network_is_freed_with_its_program():
    network = Network(jnp.ones(LARGE))
    draw(samplers.ddim(SCHEDULE, network))
    assert len(compiled._programs) == 1
    # Of one network with other parameters only the latest program stays.
    network.params = {"gain": jnp.zeros(LARGE)}
    draw(samplers.ddim(SCHEDULE, network))
    assert len(compiled._programs) == 1
    array = weakref.ref(network.params["gain"])
    del network
    gc.collect()
    assert not compiled._programs
    gc.collect()
    assert array() is None


@pytest.mark.thorough
def test_programs_are_a_few():
    for value in range(compiled._MOST_PROGRAMS + 3):
        call_compiled(lambda x, value=value: x + value, jnp.float32(0.0))
    assert len(compiled._programs) == compiled._MOST_PROGRAMS
