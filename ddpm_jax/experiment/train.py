"""A whole run: train or go on training, then evaluate and draw."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from rich.console import Console

from ddpm_jax import parallel, training
from ddpm_jax.config import Config, validate
from ddpm_jax.data import make_iterator
from ddpm_jax.experiment.build import (
    Experiment,
    abstract_state,
    build,
    check_batch,
    initial_state,
    make_loss,
)
from ddpm_jax.experiment.directory import RunDirectory
from ddpm_jax.experiment.measure import evaluate, held_out_loss, make_drawer
from ddpm_jax.experiment.report import MetricsLog, TrainingDisplay, save_drawn, say

__all__ = ["train"]


def train(config: Config, console: Console) -> dict[str, Any]:
    """Trains `config` in its workdir, from the last checkpoint if there is one; returns results.

    A run that was killed at any moment and started again ends with the same bits in parameters,
    moving average, optimizer state and metrics as one that was not: the noise follows from the
    seed and the step, the order of the data is in the checkpoint, and metrics written after the
    last checkpoint are dropped and written again.

    Raises:
        UserError: something that the caller can mend, before anything is compiled or written.
        training.DivergenceError: the loss turned NaN or Inf; the last checkpoint is sound.
    """
    run = RunDirectory(config.workdir)
    validate(config)
    check_batch(config)
    run.check_owner(config)
    results = run.read_results()
    if results is not None:
        say(console, f"{run.path} is finished; nothing left to train")
        return results
    experiment = build(config)  # what it refuses has not claimed the directory
    with run.claim(config):
        state = _train(experiment, run, console)
        say(console, "evaluating")
        results = {"step": int(state.step), **evaluate(experiment, state.ema_params)}
        run.write_results(results)
        return results


def _train(experiment: Experiment, run: RunDirectory, console: Console) -> training.TrainState:
    config = experiment.config.train
    data = make_iterator(
        experiment.images.train,
        batch_size=config.batch_size,
        seed=experiment.config.seed,
        flip=experiment.config.data.flip,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with training.Checkpoints(
        run.checkpoints, keep_latest=config.keep_latest, keep_best=config.keep_best
    ) as checkpoints:
        restored = checkpoints.restore(abstract_state(experiment))
        if restored is None:
            start, state = 0, initial_state(experiment)
        else:
            start, state = restored.step, restored.state
            data.set_state(restored.data_state)
            say(console, f"going on from step {start}")
        with (
            MetricsLog(run, resumed_at=start) as log,
            TrainingDisplay(
                console, start=start, steps=config.steps, batch_size=config.batch_size
            ) as display,
        ):
            return training.fit(
                _compiled_step(experiment),
                state,
                _on_mesh(experiment, data),
                _Hooks(experiment, run, data, checkpoints, log, display),
                start=start,
                steps=config.steps,
                log_every=config.log_every,
                save_every=config.save_every,
                draw_every=config.draw_every,
            )


def _compiled_step(experiment: Experiment) -> Any:
    step = training.make_train_step(
        make_loss(experiment, train=True),
        experiment.optimizer,
        ema_decay=experiment.config.train.ema_decay,
        window_steps=experiment.config.train.log_every,
    )
    return parallel.compile_step(step, experiment.mesh)


def _on_mesh(experiment: Experiment, data: Any) -> Iterator[jax.Array]:
    for batch in data:
        yield parallel.shard_batch(experiment.mesh, batch)


@dataclasses.dataclass
class _Hooks:
    """Connects the loop with disk and screen."""

    experiment: Experiment
    run: RunDirectory
    data: Any
    checkpoints: training.Checkpoints
    metrics_log: MetricsLog
    display: TrainingDisplay

    def __post_init__(self) -> None:
        evaluation = self.experiment.config.evaluation
        self.held_out_loss = held_out_loss(self.experiment)
        self.drawer = make_drawer(
            self.experiment,
            num=evaluation.num_samples,
            sampler=evaluation.sampler,
            steps=evaluation.sampler_steps,
            spacing=evaluation.spacing,
        )

    def advance(self, step: int) -> None:
        self.display.advance(step)

    def log(self, step: int, metrics: training.StepMetrics) -> None:
        values = {
            "loss": float(metrics.loss),
            "gradient_norm": float(metrics.gradient_norm),
            "learning_rate": float(self.experiment.learning_rate(step - 1)),
        }
        self.metrics_log.write(step, values)
        self.metrics_log.scalars(step, self.display.log(step, values["loss"]))

    def save(self, step: int, state: training.TrainState) -> None:
        loss = self.held_out_loss(state.ema_params)
        if not math.isfinite(loss):
            raise training.DivergenceError(step)
        # Written before the checkpoint is: a resumed run never misses the line of its own step.
        self.metrics_log.write(step, {"held_out_loss": loss})
        self.checkpoints.save(step, state, self.data.get_state(), held_out_loss=loss)
        self.display.say(f"step {step}: held-out loss {loss:.4f}, checkpoint saved")
        self.display.pause()

    def draw(self, step: int, state: training.TrainState) -> None:
        drawn = self.drawer(state.ema_params, self.experiment.key("samples"))
        name = f"{step:07d}"
        levels = self.experiment.images.levels
        pictures = save_drawn(self.run.pictures, name, drawn, levels=levels)
        for kind, picture in pictures.items():
            self.metrics_log.picture(step, kind, picture)
        self.display.say(f"step {step}: pictures in {self.run.pictures}")
        self.display.pause()
