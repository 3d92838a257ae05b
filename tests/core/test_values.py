"""Schedules and processes in user code: compared, hashed, static under jit, attributes of nnx."""

import copy
import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import bases, processes, q_sample, schedules

FALL = np.linspace(0.9, 0.1, 5)[:, None] ** np.array([1.0, 2.0])
CASES = {
    "Schedule": lambda k: schedules.linear(10 + k),
    "Spectral": lambda k: processes.spectral(FALL, 1.0 + k - FALL),
    "per_pixel": lambda k: processes.per_pixel(np.log(FALL) - k, variance=1.0),
    "Basis": lambda k: bases.orthonormal((1 - 2 * k) * np.eye(2)),
    "AffineChain": lambda k: processes.affine_chain(
        [0.5 * np.eye(2)] * 3, np.full((3, 2), float(k)), [np.eye(2)] * 3
    ),
    "GammaChain": lambda k: processes.gamma(schedules.linear(10), 0.1 + 0.1 * k),
    "CustomChain": lambda k: processes.custom_chain(halved, 3 + k),
}


@pytest.fixture(scope="module")
def nnx():
    return pytest.importorskip("flax.nnx", reason="the extra `models` is not installed")


def halved(x_prev, eps, t):
    return 0.5 * x_prev + eps


def test_a_process_is_shown_in_one_line_and_without_its_numbers():
    for make in CASES.values():
        text = repr(make(0))
        assert "\n" not in text, text
        assert len(text) < 400, text
    shown = repr(schedules.linear(10))
    assert shown.startswith("Schedule(")
    assert "float32[10]" in shown
    jax.eval_shape(lambda schedule: repr(schedule) and schedule.betas, schedules.linear(10))


@pytest.mark.parametrize("name", CASES)
def test_a_process_is_a_value(name):
    one, same, other = CASES[name](0), CASES[name](0), CASES[name](1)
    assert (one == same) is True
    assert (one != same) is False
    assert (one == other) is False
    assert one != "something else"
    assert hash(one) == hash(same)
    assert {one: 1, other: 2}[same] == 1
    assert copy.deepcopy(one) == one
    assert pickle.loads(pickle.dumps(one)) == one
    assert jax.tree.map(lambda leaf: leaf, one) == one


@pytest.mark.parametrize("name", CASES)
def test_a_process_is_a_static_argument(name):
    traces = []

    @functools.partial(jax.jit, static_argnums=1)
    def f(x, process):
        traces.append(process)
        return 2.0 * x

    one, same, other = CASES[name](0), CASES[name](0), CASES[name](1)
    for process in (one, same, other):
        assert f(1.0, process) == 2.0
    assert traces == [one, other]


def test_a_static_schedule_gives_what_a_traced_one_gives():
    x, t = jnp.ones((2, 3)), jnp.array([0, 9])
    schedule = schedules.cosine(10)
    static = jax.jit(q_sample, static_argnums=0)(schedule, x, t, x)
    np.testing.assert_allclose(static, jax.jit(q_sample)(schedule, x, t, x), rtol=1e-6)


def test_traced_schedules_are_not_compared():
    schedule = schedules.cosine(10)
    assert jax.jit(lambda s: s == s)(schedule)
    for compare in (lambda s: s == schedule, lambda s: schedule == s, hash):
        with pytest.raises(TypeError, match="while it is traced"):
            jax.jit(compare)(schedule)


def test_a_schedule_goes_through_transformations(without_annotation_checks):
    schedule = schedules.cosine(10)
    carried, _ = jax.lax.scan(lambda s, _: (s, None), schedule, None, length=2)
    assert carried == schedule
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), schedule, schedules.linear(10))
    first = jax.vmap(lambda s: s.signal(jnp.array([3])))(stacked)[0]
    np.testing.assert_array_equal(first, schedule.signal(jnp.array([3])))
    shapes = jax.eval_shape(lambda s: s, schedule)
    assert shapes == jax.eval_shape(lambda s: s, schedules.linear(10))
    assert shapes != schedule


def test_schedules_of_one_shape_and_other_values_differ():
    assert schedules.linear(10) != schedules.cosine(10)
    assert dataclasses.replace(schedules.linear(10), network_times=jnp.arange(1, 11)) != (
        schedules.linear(10)
    )


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_a_process_is_an_attribute_of_a_module(name, nnx):
    class Noiser(nnx.Module):
        def __init__(self, process):
            self.process = process
            self.layer = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

    module = Noiser(CASES[name](0))
    merged = nnx.merge(*nnx.split(module))
    assert merged.process == CASES[name](0)
    compiled = nnx.jit(lambda module, x: module.layer(x))
    assert compiled(module, jnp.ones((2, 3))).shape == (2, 3)
    gradient = nnx.grad(lambda module, x: jnp.sum(module.layer(x)))(module, jnp.ones((2, 3)))
    assert jax.tree.leaves(gradient)


@pytest.mark.thorough
def test_a_module_uses_its_schedule_under_jit(nnx):
    class Noiser(nnx.Module):
        def __init__(self):
            self.schedule = schedules.cosine(10)

    x, t = jnp.ones((2, 3)), jnp.array([0, 9])
    noised = nnx.jit(lambda module, x: q_sample(module.schedule, x, t, x))(Noiser(), x)
    np.testing.assert_allclose(noised, q_sample(schedules.cosine(10), x, t, x), rtol=1e-6)


@pytest.mark.thorough
def test_a_schedule_is_a_field_of_a_dataclass():
    @dataclasses.dataclass(frozen=True)
    class Setup:
        schedule: schedules.Schedule
        width: int = 8

    assert Setup(schedules.cosine(10)) == Setup(schedules.cosine(10))
    assert hash(Setup(schedules.cosine(10))) == hash(Setup(schedules.cosine(10)))
    assert Setup(schedules.cosine(10)) != Setup(schedules.linear(10))
