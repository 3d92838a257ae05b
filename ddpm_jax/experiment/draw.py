"""Images drawn from a network: over the mesh, in batches, each a matter of its own number.

Image i of a key has the key fold_in(key, i) for all that is random about it. Of a network with
classes it has class i mod their number, unless one is asked for; classes without training images do
not count. So it is the same image in whatever batch and on whatever mesh it is drawn, but for
rounding: sums inside the network may be taken in another order.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import parallel, samplers
from ddpm_jax.config import EvaluationConfig, SamplerName
from ddpm_jax.data import to_levels
from ddpm_jax.evaluation import strip_times
from ddpm_jax.experiment.build import Experiment

__all__ = ["Drawer", "Drawn", "Sampling", "make_drawer", "sampling_of"]

_STRIP_ROWS, _STRIP_COLUMNS = 8, 12
"""A denoising strip shows so many images at so many times."""


class Sampling(NamedTuple):
    """How images are drawn."""

    sampler: SamplerName = "ancestral"
    steps: int | None = None
    """None takes all T."""
    spacing: samplers.Spacing = "linspace"
    guidance: float = 1.0
    label: int | None = None
    """The class of all images; None takes one after the other of those with training images."""


class Drawn(NamedTuple):
    """Samples as grey levels, uint8."""

    images: np.ndarray
    """`[num, height, width, channel]`."""
    strip: np.ndarray
    """The way of the first few of them, `[few, times, height, width, channel]`, noise first."""


Drawer = Callable[..., Drawn]
"""`(params, key, first=0) -> Drawn`, of the images first, first + 1, ... of this key."""


def sampling_of(config: EvaluationConfig) -> Sampling:
    """What a config says of it."""
    return Sampling(config.sampler, config.sampler_steps, config.spacing, config.guidance)


def make_drawer(experiment: Experiment, *, num: int, how: Sampling) -> Drawer:
    """Draws `num` images at once; compiled when it is first called."""
    process, spec, mesh = experiment.process, experiment.spec, experiment.mesh
    times = samplers.time_grid(process, how.steps or process.num_steps, how.spacing)
    size = math.ceil(num / mesh.size) * mesh.size  # the surplus is cut off below
    few = min(num, _STRIP_ROWS)

    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def draw(params: Any, key: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        index = first + jnp.arange(size, dtype=jnp.int32)
        index = jax.lax.with_sharding_constraint(index, parallel.split_by_batch(mesh))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        chain = _make_sampler(experiment, how, params, _labels(experiment, how, index))
        drawn = samplers.sample(
            chain, keys, (size, *spec.shape), times, keep=lambda info: info.x_s[:few]
        )
        shown = drawn.trajectory[strip_times(len(times), _STRIP_COLUMNS)]
        return to_levels(drawn.x0, spec.levels), to_levels(shown, spec.levels)

    def drawer(params: Any, key: jax.Array, first: int = 0) -> Drawn:
        finished, shown = draw(params, key, jnp.int32(first))
        return Drawn(np.asarray(finished)[:num], np.asarray(shown).swapaxes(0, 1))

    return drawer


def _labels(experiment: Experiment, how: Sampling, index: jax.Array) -> jax.Array | None:
    if not experiment.config.model.classes:
        return None
    if how.label is not None:
        return jnp.full_like(index, how.label)
    classes = jnp.asarray(experiment.spec.trained_classes, jnp.int32)
    return classes[index % len(classes)]


def _make_sampler(
    experiment: Experiment, how: Sampling, params: Any, labels: jax.Array | None
) -> samplers.Sampler:
    """The one of this name; ancestral sampling alone has a use for the network's variance."""
    model = experiment.config.model
    told: dict[str, Any] = {"predicts": model.predicts}
    ancestral = how.sampler == "ancestral"
    if ancestral:
        told["variance"] = model.variance
    predict = experiment.bind(params, labels=labels, guidance=how.guidance, with_variance=ancestral)
    make: Callable[..., samplers.Sampler] = getattr(samplers, how.sampler)
    return make(experiment.process, predict, **told)
