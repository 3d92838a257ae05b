"""A process that times one train step on a mesh: `python -m benchmarks.machinery`.

`benchmarks.overhead` starts it, not by hand: the number of simulated devices and the processes that
belong together have to be set before JAX starts. Process 0 answers for all.

In each process the forms take turns with the step as it is written, on one device and without a
mesh, for the whole batch: where there are several processes, process 0 takes it while the others
wait.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from benchmarks.settings import Say
from benchmarks.timing import in_turns
from ddpm_jax import experiment as experiments
from ddpm_jax.config import Config, Jit, Mesh, from_message, member_name
from ddpm_jax.data import Examples
from ddpm_jax.experiment import Experiment, image_spec_of
from ddpm_jax.parallel import Form, hosts, one_device
from ddpm_jax.plan.lower import abstract_experiment
from ddpm_jax.plan.subprocesses import serve
from ddpm_jax.training import TrainState

__all__ = ["ALONE", "STEPS", "answer", "main", "measure"]

STEPS = 20
"""After which parameters are compared; they are also what tells how many runs there is time for."""
ALONE = "none"
"""In the place of a form: one device without a mesh."""

Params = Any
Advance = Callable[[], TrainState]
"""Takes a step, from where the one before it ended: a step is given its state for good."""


class _Program(NamedTuple):
    advance: Advance
    compile_seconds: float
    split: float
    """Share of the parameters' numbers that are shared out over "fsdp"."""


def main() -> None:
    """Answers one question."""
    serve(_measure)


def _measure(question: dict[str, Any], say: Say) -> list[dict[str, Any]]:
    jax.config.update("jax_num_cpu_devices", question["devices"])
    if question["count"] > 1:
        hosts.join(**{name: question[name] for name in ("coordinator", "count", "index")})
    return answer(question)


def answer(question: dict[str, Any]) -> list[dict[str, Any]]:
    """What `measure` returns of the meshes of a question, which has a config for each."""
    configs = list(map(from_message, question["configs"]))
    return measure(
        configs[0],
        [config.mesh for config in configs],
        repeats=question["repeats"],
        seconds=question["seconds"],
    )


def measure(
    config: Config, meshes: Sequence[Mesh], *, repeats: int, seconds: float
) -> list[dict[str, Any]]:
    """One device without a mesh, and then each of the meshes; of process 0, what it sees.

    Args:
        config: of the step; its own mesh is not among them.
        meshes: of all devices there are, or of the first.
        repeats: runs that count, at most.
        seconds: for the runs of each; there are at least three.

    Returns:
        For each, form and mesh, seconds of compiling and of all runs, the share of parameters that
        are split, and the largest difference of any parameter from those of one device after 20
        steps, beside how far these have moved.

    Raises:
        UserError: a config that cannot work on one of the meshes.
    """
    cases = [_one_device(config), *meshes]
    names = [ALONE, *(member_name(type(mesh)).replace("-", "_") for mesh in meshes)]
    programs = {
        index: _program(dataclasses.replace(config, mesh=mesh), alone=name == ALONE)
        for index, (name, mesh) in enumerate(zip(names, cases, strict=True))
        if name != ALONE or hosts.is_first()
    }
    numbers = itertools.count()

    def together() -> None:
        # Who is early would do his share of a step while another still runs alone.
        hosts.barrier(f"run {next(numbers)}")

    before = _random_params(_alone(config)[0], config.seed)
    after, slowest = {}, 0.0
    for index in range(len(cases)):
        together()
        if index in programs:
            start = time.perf_counter()
            for _ in range(STEPS):
                state = jax.block_until_ready(programs[index].advance())
            slowest = max(slowest, (time.perf_counter() - start) / STEPS)
            after[index] = jax.tree.map(np.asarray, state.params)

    # All processes take the same runs in the same order, or they would wait for each other forever.
    count = hosts.agreed(min(repeats, max(3, math.ceil(seconds / slowest))))
    variants = {
        index: programs[index].advance if index in programs else lambda: None
        for index in range(len(cases))
    }
    runs = in_turns(variants, repeats=count, seconds=math.inf, ready=together)
    if not hosts.is_first():
        return []
    return [
        {
            "form": name,
            "mesh": "" if name == ALONE else f"{mesh.data}x{mesh.fsdp}",
            "seconds": runs[index],
            "compile_seconds": programs[index].compile_seconds,
            "split": programs[index].split if mesh.fsdp > 1 else None,
            "difference": _largest_difference(after[index], after[0]),
            "moved": _largest_difference(after[0], before),
        }
        for index, (name, mesh) in enumerate(zip(names, cases, strict=True))
    ]


def _program(config: Config, *, alone: bool) -> _Program:
    """The train step with random parameters and a random batch, compiled and not run yet."""
    experiment, form = _alone(config) if alone else _on_mesh(config)
    spec = experiment.spec
    images = np.random.default_rng(config.seed).integers(
        0, spec.levels, (config.train.batch_size, *spec.shape), np.uint8
    )
    own = images if alone else np.split(images, jax.process_count())[jax.process_index()]
    batch = form.place(Examples(own, None))
    born = jax.jit(
        functools.partial(experiments.state_of, experiment),
        out_shardings=None if alone else experiment.state_shardings,
    )
    state: TrainState = born(_random_params(experiment, config.seed))
    start = time.perf_counter()
    step = form.lower(experiments.make_step(experiment, form), state, batch).compile()
    compile_seconds = time.perf_counter() - start

    def advance() -> TrainState:
        nonlocal state
        state, _ = step(state, batch)
        return state

    sizes = [(leaf.size, "fsdp" in _spec(leaf)) for leaf in jax.tree.leaves(state.params)]
    split = sum(size for size, is_split in sizes if is_split) / sum(size for size, _ in sizes)
    return _Program(advance, compile_seconds, split)


def _spec(leaf: jax.Array) -> Any:
    return leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else ()


def _alone(config: Config) -> tuple[Experiment, Form]:
    config = dataclasses.replace(config, mesh=_one_device(config))
    return abstract_experiment(config, jax.local_devices()[:1], image_spec_of(config)), one_device()


def _one_device(config: Config) -> Mesh:
    return Jit(data=1, fsdp=1, reduction=config.mesh.reduction)


def _on_mesh(config: Config) -> tuple[Experiment, Form]:
    experiment = abstract_experiment(config, jax.devices(), image_spec_of(config))
    return experiment, experiments.make_form(experiment)


def _random_params(experiment: Experiment, seed: int) -> Params:
    """Normal numbers in the places of parameters, the same in each form.

    To make them as a run does takes the compiler as long as the step.
    """
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(0.0, 0.1, leaf.shape).astype(leaf.dtype),
        experiment.abstract_state.params,
    )


def _largest_difference(one: Params, other: Params) -> float:
    differences = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), one, other)
    return float(max(jax.tree.leaves(differences)))


if __name__ == "__main__":
    main()
