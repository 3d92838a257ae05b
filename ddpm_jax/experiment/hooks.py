"""The work of a run between steps: logs, checkpoints, pictures and progress."""

import contextlib
import dataclasses
import math
import time
from typing import Any

from ddpm_jax import training
from ddpm_jax.config import check_made, to_json
from ddpm_jax.data import BatchIterator
from ddpm_jax.experiment.display import TrainingDisplay
from ddpm_jax.experiment.experiment import Experiment
from ddpm_jax.experiment.logs import RunLog
from ddpm_jax.experiment.metrics_log import MetricsLog
from ddpm_jax.experiment.post_hoc import MISSED_SNAPSHOTS
from ddpm_jax.experiment.run_directory import RunDirectory
from ddpm_jax.experiment.sampling import make_drawer, save_pictures
from ddpm_jax.experiment.step import trained_model
from ddpm_jax.parallel import hosts

__all__ = ["RunHooks"]


@dataclasses.dataclass
class RunHooks:
    """Connects the training loop with the run directory and the display."""

    experiment: Experiment
    run: RunDirectory
    data: BatchIterator
    checkpoints: training.Checkpoints
    metrics_log: MetricsLog | None
    """None in all processes except the first."""
    logger: RunLog
    display: TrainingDisplay
    missed_saves: int = 0
    missed_snapshots: set[int] = dataclasses.field(default_factory=set)
    """Steps whose snapshots could not be saved. A resumed run does not repeat them, and averages
    report that they are missing."""
    schedule_faults: frozenset[str] = frozenset()
    """What was wrong with a learned schedule at the last log."""
    refusal: str | None = None
    """Why the last line of metrics.jsonl could not be written."""
    skipped_images: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        config, model = self.experiment.config, trained_model(self.experiment)
        self.held_out_loss = model.held_out_loss
        eval_every = config.train.eval_every
        self.measure = config.evaluation.monitor(model) if eval_every else None
        self.measured: tuple[int, dict[str, Any], float | None] = (0, {}, None)
        """The last step that was measured, its numbers, and when that ended."""
        self.num_samples = config.evaluation.num_samples
        self.drawer = make_drawer(self.experiment, num=self.num_samples, sampler=config.sampler)
        self._report_skipped_images()

    def advance(self, step: int, waited: float) -> None:
        """Shows that a step is dispatched; the device waited `waited` seconds for its batch."""
        self.display.advance(step, waited)

    def log(self, step: int, metrics: training.StepMetrics) -> None:
        """Writes the numbers of a step to metrics.jsonl, the logger and the display."""
        values = {
            "loss": float(metrics.loss),
            "gradient_norm": float(metrics.gradient_norm),
            "learning_rate": float(self.experiment.learning_rate(step - 1)),
        }
        if skipped := int(metrics.bad.skipped):
            values |= {"skipped_steps": skipped, "last_skipped_step": int(metrics.bad.last)}
        watched = {name: float(value) for name, value in metrics.watched.items()}
        values |= watched
        self._report_schedule(step, watched)
        speed = self.display.log(step, values["loss"], skipped=skipped)
        if self.metrics_log is not None:
            self.metrics_log.write(step, values)
            self.logger.scalars(step, {**values, **speed})
            self._report_refusal(self.metrics_log)
        self._report_skipped_images()

    def _report_schedule(self, step: int, watched: dict[str, float]) -> None:
        """Reports each fault of a learned schedule once, until the schedule has recovered."""
        learned = self.experiment.learned
        sentences = {} if learned is None else learned.warnings(watched)
        for fault, sentence in sentences.items():
            if fault not in self.schedule_faults:
                self.display.say(f"step {step}: {sentence}")
        self.schedule_faults = frozenset(sentences)

    def _write(self, step: int, values: dict[str, Any]) -> None:
        """Writes numbers on held-out images to metrics.jsonl, and the floats to the logger."""
        if self.metrics_log is not None:
            self.metrics_log.write(step, values)
            self.logger.scalars(
                step, {name: value for name, value in values.items() if isinstance(value, float)}
            )
            self._report_refusal(self.metrics_log)

    def _report_refusal(self, log: MetricsLog) -> None:
        """Reports when lines cannot be written to the disk, and when all are written."""
        if (log.refusal is None) != (self.refusal is None):
            now = "are written now" if log.refusal is None else "are written when it is possible"
            why = log.refusal or "it can be written again"
            self.display.say(f"{self.run.metrics}: {why}; the missing lines {now}")
        self.refusal = log.refusal

    def _report_skipped_images(self) -> None:
        images, known = self.experiment.images, len(self.skipped_images)
        for source in (images.train, images.held_out):
            for where, why in list(source.skipped.items()):  # threads that read may add to it
                if where not in self.skipped_images:
                    self.skipped_images.add(where)
                    self.display.say(f"skipped: {where} {why}")
        if len(self.skipped_images) > known:
            self.display.say(f"{len(self.skipped_images)} images skipped so far")

    def save(self, step: int, state: training.TrainState, *, due: bool, leaving: bool) -> None:
        """Saves a checkpoint, with the held-out loss if `due`; waits for it if `leaving`."""
        loss = math.inf  # a step that other runs do not save: no metrics may depend on it
        if due:
            measured, values, _ = self.measured
            known = values.get("held_out_loss") if measured == step else None
            loss = self.held_out_loss(state.ema_params) if known is None else known
            if not math.isfinite(loss):
                raise training.DivergenceError(step)
            if known is None:
                # Before the checkpoint: a resumed run never misses the line of its own step.
                self._write(step, {"held_out_loss": loss})
        value = f"held-out loss {loss:.4f}, " if due else ""

        def report(what: str) -> None:
            nonlocal value
            self.display.say(f"step {step}: {value}checkpoint {what}")
            value = ""  # printed once

        if hosts.is_first():
            with contextlib.suppress(OSError):
                self.run.make(self.experiment.config)  # somebody may have deleted it
        try:
            self.checkpoints.save(
                step,
                state,
                self.data.get_state(),
                held_out_loss=loss,
                notes={MISSED_SNAPSHOTS: sorted(self.missed_snapshots)},
                report=report,
            )
            if leaving:
                self.checkpoints.wait()
        except training.SaveError as error:
            self._miss(error, may_go_on=not leaving)
            if step in error.steps:
                report("not saved")
        else:
            self.missed_saves = 0
        self.display.pause()

    def keep(self, step: int, state: training.TrainState) -> None:
        """Saves a snapshot of the averages for post-hoc EMA."""
        averages = self.experiment.config.averages
        if averages.snapshots is None:
            return
        try:
            training.save_snapshot(
                self.run.snapshots,
                step,
                state.averages[len(averages.decays) :],
                averages.snapshots.widths,
                config=to_json(self.experiment.config),
            )
        except training.SaveError as error:
            self.missed_snapshots.add(step)
            self._miss(error, may_go_on=True)
        else:
            self.display.say(f"step {step}: snapshot saved")

    def _miss(self, error: training.SaveError, *, may_go_on: bool) -> None:
        """Counts failed saves, and continues if more of them are allowed."""
        self.missed_saves += len(error.steps)
        allowed = self.experiment.config.train.missed_saves
        if not may_go_on or self.missed_saves > allowed:
            raise error
        self.display.say(
            f"{error}; training continues ({self.missed_saves} of {allowed} allowed failures)"
        )

    def monitor(self, step: int, state: training.TrainState) -> None:
        """Measures the moving average on some held-out images, for the curves of the run."""
        evaluation, measure = self.experiment.config.evaluation, self.measure
        if measure is None:
            return
        begin = time.perf_counter()
        values = measure(state.ema_params)
        check_made("evaluation", evaluation, values, dict)
        values = {
            name: value if isinstance(value, int) else float(value)
            for name, value in values.items()
        }
        end, (_, _, before) = time.perf_counter(), self.measured
        self.measured = step, values, end
        self._write(step, values)
        cost = "with its compilation"
        if before is not None:
            cost = f"{(end - begin) / (end - before):.1%} of the time"
        self.display.say(f"step {step}: {_in_words(values)} ({end - begin:.1f} s, {cost})")
        self.display.pause()

    def draw(self, step: int, state: training.TrainState) -> None:
        """Draws a grid of samples and a strip, as files and for the logger."""
        self.display.say(f"step {step}: drawing {self.num_samples} images")
        drawn = self.drawer(state.ema_params, self.experiment.key("samples"))
        if self.metrics_log is not None:
            levels = self.experiment.spec.levels
            known = f"pictures in {self.run.pictures}"
            try:
                pictures = save_pictures(self.run.pictures, f"{step:07d}", drawn, levels=levels)
                for kind, picture in pictures.items():
                    self.logger.picture(step, kind, picture)
            except OSError as error:
                known = f"no {known}: {error.strerror}"
            self.display.say(f"step {step}: {known}")
        self.display.pause()


def _in_words(values: dict[str, Any]) -> str:
    """Floats with their errors, and whole numbers."""
    texts = []
    for name, value in values.items():
        words = name.replace("_", " ").replace("held out", "held-out")
        if isinstance(value, int):
            texts.append(f"{words} {value}")
        elif not (name.endswith("_error") and name.removesuffix("_error") in values):
            error = values.get(f"{name}_error")
            texts.append(f"{words} {value:.4f}" + ("" if error is None else f" +- {error:.4f}"))
    return ", ".join(texts)
