"""Settings of JAX that a user's environment may have: what each does to a run."""

import ast
import contextlib
import dataclasses
import functools
import io
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax.core import meta
from rich.console import Console

from ddpm_jax import config, schedules, timesteps
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import (
    abstract_batch,
    build,
    image_spec_of,
    load_run,
    make_drawer,
    make_form,
    make_network,
    make_step,
    train,
)


@contextlib.contextmanager
def setting(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_threefry_partitionable", False),
        ("jax_random_seed_offset", 7),
        ("jax_disable_jit", True),
        ("jax_debug_key_reuse", True),
        ("jax_transfer_guard", "disallow"),
        ("jax_transfer_guard_host_to_device", "disallow_explicit"),
    ],
)
def test_what_changes_random_numbers_or_stops_a_run_is_refused(name, value):
    with setting(name, value), pytest.raises(UserError, match=f"^{name.upper()} is .*{value}"):
        config.validate(config.Config())
    config.validate(config.Config())


@pytest.mark.parametrize("room", ["cli", "experiment"])
def test_no_key_of_a_run_has_the_default_generator(room):
    for path in (pathlib.Path(config.__file__).parents[1] / room).glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "jax.random.key":
                assert "impl='threefry2x32'" in ast.unparse(call), path


def dtypes(tree):
    return [leaf.dtype for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("times", config.members(config.Times))
def test_with_x64_the_state_has_the_dtypes_that_it_has_without(times, accumulate):
    whole = tiny.get_config()
    how = dataclasses.replace(whole.train, accumulate=accumulate)
    whole = dataclasses.replace(whole, train=how, times=times())
    images = build(whole, devices=jax.devices()[:1]).images
    without = dtypes(build(whole, images=images, devices=jax.devices()[:1]).abstract_state)
    with setting("jax_enable_x64", True):
        experiment = build(whole, images=images, devices=jax.devices()[:1])
        before = experiment.abstract_state
        step = make_step(experiment, make_form(experiment))
        after, metrics = jax.eval_shape(step, before, abstract_batch(experiment))
    assert dtypes(before) == without
    assert dtypes(after) == without
    assert metrics.loss.dtype == jnp.float32


def test_with_x64_times_and_schedules_are_those_without():
    def drawn():
        t, weight = timesteps.importance(jax.random.key(0), 8, jnp.ones(5, jnp.float32))
        return t, weight, schedules.cosine(10)

    plain = drawn()
    with setting("jax_enable_x64", True):
        wide = drawn()
    assert dtypes(wide) == dtypes(plain)
    for one, other in zip(jax.tree.leaves(wide), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(one, other)


def small(workdir):
    """A run of four steps that is interrupted after two; its network is a Mixer."""
    whole = tiny.get_config()
    steps = dataclasses.replace(whole.train, steps=4, save_every=2, log_every=1)
    return dataclasses.replace(
        whole,
        workdir=str(workdir),
        mesh=config.Jit(data=1),
        schedule=dataclasses.replace(whole.schedule, num_steps=2),
        train=dataclasses.replace(steps, draw_every=1000),
        evaluation=dataclasses.replace(whole.evaluation, num_samples=2, batch_size=360),
    )


def go(workdir):
    """Trains, resumes from the middle and samples; parameters and images."""
    whole, console = small(workdir), Console(file=io.StringIO())
    train(whole, console=console)
    (workdir / "results.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "4")
    train(whole, console=console)
    run, raw = (load_run(workdir, params=name) for name in ("ema", "raw"))
    drawer = make_drawer(run.experiment, num=2, sampler=whole.sampler)
    images = drawer(run.params, run.experiment.key("samples")).images
    return jax.tree.map(np.asarray, {"ema": run.params, "raw": raw.params}), images


def gradients():
    """Of the network that such a run has, with dropout, at random parameters."""
    whole, rng = tiny.get_config(), np.random.default_rng(0)
    network = make_network(whole, image_spec_of(whole))
    x_t, t = rng.standard_normal((2, 8, 8, 1), np.float32), np.array([0, 7], np.int32)
    params = jax.tree.map(
        lambda leaf: rng.normal(0.0, 0.1, leaf.shape).astype(leaf.dtype),
        meta.unbox(jax.eval_shape(network.init, jax.random.key(0, impl="threefry2x32"), x_t, t)),
    )
    keys = jax.random.split(jax.random.key(1, impl="threefry2x32"), 2)

    def loss(params, x_t, t, keys):
        return jnp.square(network.apply(params, x_t, t, train=True, keys=keys)).mean()

    return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(params, x_t, t, keys))


@pytest.fixture(scope="module")
def plain(tmp_path_factory, mixers):
    return gradients(), *go(tmp_path_factory.mktemp("plain"))


SAME_BITS = {
    "most": {
        "jax_numpy_dtype_promotion": "standard",
        "jax_numpy_rank_promotion": "allow",
        **dict.fromkeys(("jax_debug_nans", "jax_debug_infs", "jax_enable_checks"), True),
        "jax_default_matmul_precision": "highest",
        "jax_default_prng_impl": "rbg",
        "jax_legacy_prng_key": "error",
        "jax_softmax_custom_jvp": False,
        "jax_check_tracer_leaks": True,
        "jax_use_direct_linearize": False,
    },
    "other values": {
        "jax_default_matmul_precision": "bfloat16",
        "jax_default_prng_impl": "unsafe_rbg",
    },
}
"""On a CPU, which multiplies float32 in one way. All at once: each compiles everything anew."""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "kind",
    # Under jax_debug_nans nothing is donated: another program.
    [pytest.param("most", marks=pytest.mark.bits_of_two_programs), "other values"],
)
def test_a_run_has_the_same_bits(tmp_path, plain, kind):
    with contextlib.ExitStack() as stack:
        for name, value in SAME_BITS[kind].items():
            stack.enter_context(setting(name, value))
        found = gradients(), *go(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found, plain)


@pytest.mark.thorough
def test_with_x64_a_run_is_resumed_and_differs_by_rounding(tmp_path, plain):
    with setting("jax_enable_x64", True):
        slopes, (params, images) = gradients(), go(tmp_path)
    # Where a gradient is nearly 0, Adam makes a step of its rounding error: 2e-6 of moves of 1e-5.
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=4e-6)
    jax.tree.map(near, params, plain[1])
    assert np.abs(images.astype(int) - plain[2]).max() <= 1
    assert dtypes(slopes) == dtypes(plain[0])
    for one, other in zip(jax.tree.leaves(slopes), jax.tree.leaves(plain[0]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())
