"""This library's side of a comparison: the cases of one network, compiled.

    train step       forward, backward, clip, Adam, average, as `ddpm-jax train` runs it: the state
                     is donated, so each run goes on from the one before
    forward pass     the prediction at (x_t, t), dropout off
    DDIM             `samplers.sample` over a few times
    DPM-Solver++     the same, of second order
    bits/dim         `likelihood.bits_per_dim` over all T

Compiled programs only: nothing is made that is as large as a batch before its program is known to
fit (`benchmarks.memory`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from benchmarks import train_step
from benchmarks.settings import unet_of
from benchmarks.timing import Program, compiled
from ddpm_jax import likelihood, samplers
from ddpm_jax.config import Config, make_schedule
from ddpm_jax.data import to_model_range
from ddpm_jax.experiment import image_spec_of, make_network
from ddpm_jax.models import init_params
from ddpm_jax.plan.flops import count_flops

__all__ = [
    "WHATS",
    "Case",
    "What",
    "abstract_params",
    "count",
    "make_case",
    "random_params",
    "shape_of",
    "with_chain",
    "with_dtype",
]

What = Literal["train step", "forward pass", "DDIM", "DPM-Solver++", "bits/dim"]
WHATS: tuple[What, ...] = get_args(What)


class Case(NamedTuple):
    """One of `WHATS`, ready to run."""

    run: Callable[[], Any]
    program: Program
    flops: int
    """Of one run: products of matrices and convolutions, as `ddpm_jax.plan.flops` counts them."""


def shape_of(config: Config) -> tuple[int, int, int]:
    """(height, width, channel) of a config's images, which need not be there."""
    return image_spec_of(config).shape


def abstract_params(config: Config) -> Any:
    """Shapes and dtypes of the network's parameters."""
    spec = image_spec_of(config)
    model = make_network(config, spec)
    return jax.eval_shape(lambda: meta.unbox(init_params(model, jax.random.key(0), spec.shape)))


def random_params(config: Config, seed: int) -> Any:
    """Parameters that are normal numbers, none of them zero as an untrained network's are."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.0, 0.05, leaf.shape), leaf.dtype),
        abstract_params(config),
    )


def make_case(
    what: What, config: Config, params: Any, *, batch: int, steps: int, seed: int
) -> Case:
    """Compiles one of `WHATS`.

    Args:
        what: which.
        config: network, chain, optimizer; the chain's T is that of bits/dim, too.
        params: of all but the train step, which begins with parameters of its own.
        batch: images.
        steps: of the samplers.
        seed: of parameters, images and noise.

    Raises:
        UserError: it needs more memory than is free.
    """
    name = f"{what} of a network of {count(params):,} parameters, batch {batch},"
    if what == "train step":
        return _train_step(name, config, batch, seed)
    spec, schedule = image_spec_of(config), make_schedule(config.schedule)
    model: Any = make_network(config, spec)
    shape, key = (batch, *spec.shape), jax.random.key(seed)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)

    def bound(params: Any) -> samplers.Predict:
        return functools.partial(model.apply, params)

    def forward(params: Any, x_t: Any, t: Any) -> Any:
        return model.apply(params, x_t, schedule.network_time(t))

    def draw(params: Any, key: Any, *, make: Any) -> Any:
        sampler = make(schedule, bound(params), predicts=config.network.predicts)
        times = samplers.time_grid(schedule, steps)
        return samplers.sample(sampler, key, shape, times).x0

    def bits(params: Any, key: Any, x0: Any) -> Any:
        options: dict[str, Any] = {
            "predicts": config.network.predicts,
            "levels": 256,
            "variance": config.network.variance,
        }
        return likelihood.bits_per_dim(schedule, bound(params), key, x0, **options).total

    function: Callable[..., Any]
    match what:
        case "forward pass":
            function = forward
            abstract: tuple[Any, ...] = (images, jax.ShapeDtypeStruct((batch,), jnp.int32))
        case "DDIM":
            function, abstract = functools.partial(draw, make=samplers.ddim), (key,)
        case "DPM-Solver++":
            # diffusers' does not clip x0_hat.
            make = functools.partial(samplers.dpm_solver_pp, threshold=None)
            function, abstract = functools.partial(draw, make=make), (key,)
        case _:
            function, abstract = bits, (key, images)
    program = compiled(function, params, *abstract, what=name)
    flops = count_flops(function, params, *abstract)
    arguments = tuple(_made(part, schedule.num_steps, seed) for part in abstract)
    return Case(functools.partial(program.call, params, *arguments), program, flops)


def count(params: Any) -> int:
    """How many numbers there are."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))


def _train_step(name: str, config: Config, batch: int, seed: int) -> Case:
    function = train_step.make_step(config, "closed form")
    abstract = jax.eval_shape(lambda: train_step.state_and_images(config, batch, seed))
    program = compiled(function, *abstract, donate=(0,), what=name)
    flops = count_flops(function, *abstract)
    state, images = train_step.state_and_images(config, batch, seed)

    def run() -> Any:
        nonlocal state
        state, metrics = program.call(state, images)
        return state, metrics

    return Case(run, program, flops)


def _made(part: Any, num_steps: int, seed: int) -> Any:
    """An argument: images on the grid of 256 levels, times, or the key that is there already."""
    rng = np.random.default_rng(seed)
    if not isinstance(part, jax.ShapeDtypeStruct):
        return part
    if part.ndim == 1:
        return jnp.asarray(rng.integers(0, num_steps, part.shape), jnp.int32)
    return to_model_range(jnp.asarray(rng.integers(0, 256, part.shape, np.uint8)), 256)


def with_chain(config: Config, num_steps: int) -> Config:
    """`config` with a chain of T = `num_steps`."""
    return dataclasses.replace(
        config, schedule=dataclasses.replace(config.schedule, num_steps=num_steps)
    )


def with_dtype(config: Config, dtype: Literal["float32", "bfloat16"]) -> Config:
    """`config` with a network that computes in `dtype`."""
    return dataclasses.replace(config, network=dataclasses.replace(unet_of(config), dtype=dtype))
