r"""How much of a training day does the isotropic shortcut save?

The whole train step (`training.make_train_step`: draws of t and noise, network, gradient, Adam with
clipping, moving average), for the networks of some configs, with x_t made in three ways:

    closed form   one expression, as `ddpm-jax train` does
    loop          T steps of the chain, of which each example keeps those up to its t: a batch has
                  times all over the chain, so a compiled loop walks to the end of it
    none          nothing is drawn and nothing added: x_t is the data

and apart, where a step of seconds would hide it, the time of the first two by themselves: draw t,
draw noise, make x_t and the eps that the network is to predict.

The loss is the simple one, with uniform times and the isotropic chain of the config's schedule,
whatever the config trains on; images are random bytes. It runs on one device, parameters and
optimizer state whole, and does not donate its state, so that each run has the same one.

What it does not measure: reading data, several devices (`ddpm-jax train` uses all there are),
evaluation and checkpoints, and other batch sizes than those given: the network's share grows
with the network, the noising's does not.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from benchmarks import columns
from benchmarks.columns import duration, number
from benchmarks.memory import check_fits
from benchmarks.results import Row, find, overlap
from benchmarks.settings import Common, Say, check_values
from benchmarks.timing import Program, compiled, in_turns, spread
from ddpm_jax import convert, q_sample, q_step, simple_loss, timesteps, training
from ddpm_jax.config import Config, Uniform, load, make_learning_rate, make_optimizer, make_schedule
from ddpm_jax.data import to_model_range
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import image_spec_of, make_network
from ddpm_jax.models import init_params
from ddpm_jax.reverse import split_output
from ddpm_jax.schedules import Schedule

__all__ = [
    "COLUMNS",
    "NOISINGS",
    "PACKAGES",
    "Settings",
    "make_objective",
    "make_step",
    "notes",
    "run",
    "state_and_images",
]

PACKAGES: tuple[str, ...] = ()
NOISINGS = ("closed form", "loop", "none")
Noising = Callable[[Any, Any, Any], tuple[Any, Any]]
"""`(keys [batch], x0, t) -> x_t, eps`."""


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """What `python -m benchmarks train_step` takes."""

    configs: tuple[Path, ...] = (Path("configs/digits.py"), Path("configs/cifar10.py"))
    """Networks, chains and image sizes; no dataset has to be there."""
    batches: tuple[int, ...] = (64, 4)
    """Images in a step, one number for each config."""
    repeats: int = 20
    """Runs of each row that count, at most."""
    seconds: float = 12.0
    """Time for the runs of each row; there are at least three."""


def run(settings: Settings, say: Say) -> Iterator[Row]:
    """Yields the rows of each config as they are measured.

    Raises:
        UserError: settings that cannot work.
    """
    check_values(settings)
    if len(settings.configs) != len(settings.batches):
        raise UserError(
            f"--configs has {len(settings.configs)} entries and --batches {len(settings.batches)};"
            " each config has a batch size of its own"
        )
    configs = [load(path) for path in settings.configs]
    for path, config, batch in zip(settings.configs, configs, settings.batches, strict=True):
        say(f"{path.stem}, batch {batch}")
        yield from _measured(settings, path.stem, config, batch, say)


def make_step(config: Config, noising: str) -> Callable[[Any, Any], Any]:
    """The pure train step, x_t made as `noising` says."""
    return training.make_train_step(
        make_objective(config, noising),
        _optimizer(config),
        averages=config.averages.make()[:1],
        window_steps=config.train.log_every,
    )


def make_objective(config: Config, noising: str) -> training.Objective:
    """The simple loss at uniform times, x_t made as `noising` says."""
    schedule = make_schedule(config.schedule)
    model = make_network(config, image_spec_of(config))
    noise = _noisings(schedule)[noising]

    def losses(params: Any, images: Any, drawn: training.Drawn) -> Any:
        x0, t = to_model_range(images, 256), drawn.t
        noise_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(drawn.key)
        x_t, eps = noise(noise_keys, x0, t)
        output = model.apply(params, x_t, schedule.network_time(t), train=True, keys=dropout_keys)
        prediction, _ = split_output(output, variance=config.network.variance)
        predicts = config.network.predicts
        return simple_loss(schedule, prediction, x0, t, eps, predicts=predicts)

    return training.Objective(Uniform().make(schedule), losses)


def _noisings(schedule: Schedule) -> dict[str, Noising]:
    def normals(keys: Any, like: Any) -> Any:
        return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(keys)

    def closed(keys: Any, x0: Any, t: Any) -> tuple[Any, Any]:
        eps = normals(keys, x0)
        return q_sample(schedule, x0, t, eps), eps

    def loop(keys: Any, x0: Any, t: Any) -> tuple[Any, Any]:
        def step(x: Any, i: Any) -> tuple[Any, None]:
            eps = normals(jax.vmap(jax.random.fold_in, (0, None))(keys, i), x)
            moved = q_step(schedule, x, jnp.broadcast_to(i, t.shape), eps)
            arrived = (i > t).reshape(-1, *(1,) * (x.ndim - 1))
            return jnp.where(arrived, x, moved), None

        x_t, _ = jax.lax.scan(step, x0, jnp.arange(schedule.num_steps, dtype=jnp.int32))
        return x_t, convert(schedule, x0, x_t, t, source="x0", target="eps")

    def none(keys: Any, x0: Any, t: Any) -> tuple[Any, Any]:
        return x0, x0

    return dict(zip(NOISINGS, (closed, loop, none), strict=True))


def _optimizer(config: Config) -> Any:
    optimizer = config.optimizer
    return make_optimizer(optimizer, make_learning_rate(optimizer, config.train.steps))


def state_and_images(config: Config, batch: int, seed: int) -> tuple[training.TrainState, Any]:
    """The state before the first step, and random bytes as images."""
    spec = image_spec_of(config)
    model, shape = make_network(config, spec), spec.shape
    size = "x".join(map(str, shape))
    check_fits(f"a batch of {batch} of {size}", batch * math.prod(shape), then="take a smaller one")

    @jax.jit
    def born(key: Any) -> training.TrainState:
        params = meta.unbox(init_params(model, key, shape))
        return training.init_state(params, _optimizer(config), key)

    images = np.random.default_rng(seed).integers(0, 256, (batch, *shape), np.uint8)
    return born(jax.random.key(seed)), jnp.asarray(images)


def _measured(settings: Settings, network: str, config: Config, batch: int, say: Say) -> list[Row]:
    state, images = state_and_images(config, batch, settings.seed)
    schedule = make_schedule(config.schedule)
    numbers = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "num_steps": schedule.num_steps,
    }
    steps: dict[str, Program] = {}
    for noising in NOISINGS:
        say(f"{network}, batch {batch}: compiling the step, {noising}")
        what = f"the train step of {network}, --batches {batch},"
        steps[noising] = compiled(make_step(config, noising), state, images, what=what)
    say(f"{network}, batch {batch}: steps by turns")
    options: dict[str, Any] = {"repeats": settings.repeats, "seconds": settings.seconds}
    runs = in_turns(
        {name: functools.partial(step.call, state, images) for name, step in steps.items()},
        **options,
    )

    alone: dict[str, Program] = {}
    for noising, noise in _noisings(schedule).items():
        if noising == "none":
            continue

        def draw(key: Any, images: Any, noise: Noising = noise) -> Any:
            x0, (times_key, noise_key) = to_model_range(images, 256), jax.random.split(key)
            t = timesteps.uniform(times_key, x0.shape[0], schedule.num_steps)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(noise_key, jnp.arange(x0.shape[0]))
            return noise(keys, x0, t)

        alone[f"{noising}, alone"] = compiled(draw, state.key, images)
    runs |= in_turns(
        {name: functools.partial(draw.call, state.key, images) for name, draw in alone.items()},
        **options,
    )
    return [
        Row(
            {"network": network, "batch": batch, "noising": name},
            runs[name],
            program.compile_seconds,
            {
                **numbers,
                "images_per_second": batch / spread(runs[name]).median,
                "peak_bytes": program.peak_bytes,
            },
        )
        for name, program in {**steps, **alone}.items()
    ]


COLUMNS: columns.Columns = {
    "noising": columns.case("noising"),
    "network": columns.case("network"),
    "parameters": lambda row: f"{row.numbers['parameters']:,}",
    "T": lambda row: str(row.numbers["num_steps"]),
    "batch": columns.case("batch"),
    "time": columns.time,
    "quartiles": columns.quartiles,
    "images/s": columns.figure("images_per_second"),
    "peak MB": columns.figure("peak_bytes", unit=1e6),
    "compile": columns.compiling,
}
"""Headers of the table, and what stands under them."""


def notes(rows: list[Row]) -> list[str]:
    """What the numbers say."""
    sentences = []
    for network, batch in dict.fromkeys((r.case["network"], r.case["batch"]) for r in rows):
        row_of = {row.case["noising"]: row for row in find(rows, network=network, batch=batch)}
        times = {name: row.median for name, row in row_of.items()}
        closed, loop, none = (times[name] for name in NOISINGS)
        alone, loop_alone = times["closed form, alone"], times["loop, alone"]
        where = f"{network}, batch {batch}"
        difference = loop_alone - alone
        sentences.append(
            f"{where}: by themselves, the loop takes {duration(loop_alone)} and the closed form"
            f" {duration(alone)}, {alone / closed:.2%} of its step of {duration(closed)}. Of a day"
            f" of training with the loop that is {_hours(difference, closed + difference)} saved."
        )
        sentences.append(
            f"{where}: whole steps say {_hours(loop - closed, loop)}: {duration(loop)} with the"
            " loop"
            + _within(row_of["loop"], row_of["closed form"])
            + f". A step without noising takes {none / closed:.3f} of one with the closed form"
            + _within(row_of["none"], row_of["closed form"])
            + "."
        )
    return sentences


def _hours(saved: float, whole: float) -> str:
    return f"{number(24.0 * saved / whole)} hours"


def _within(one: Row, other: Row) -> str:
    """A warning where two rows' times overlap."""
    return ", which is within the spread of the runs" if overlap(one, other) else ""
