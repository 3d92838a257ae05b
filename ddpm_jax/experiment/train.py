"""A whole run: train or go on training, then evaluate and draw."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
from rich.console import Console

from ddpm_jax import training
from ddpm_jax.config import (
    Affects,
    Config,
    ConfigError,
    affects,
    differences,
    from_json,
    to_json,
    validate,
)
from ddpm_jax.data import BatchIterator, ImageSet
from ddpm_jax.experiment.averages import MISSED_SNAPSHOTS, missed_snapshots
from ddpm_jax.experiment.build import (
    Experiment,
    build,
    check_batch,
    initial_state,
    lower_step,
    make_batches,
    make_form,
)
from ddpm_jax.experiment.data_record import (
    check_same_data,
    read_data_record,
    record_of,
    write_data_record,
)
from ddpm_jax.experiment.directory import RunDirectory
from ddpm_jax.experiment.draw import make_drawer, sampling_of
from ddpm_jax.experiment.measure import evaluate, held_out_loss
from ddpm_jax.experiment.report import (
    MetricsLog,
    TrainingDisplay,
    missing_metrics,
    save_drawn,
)
from ddpm_jax.parallel import Form, hosts
from ddpm_jax.terminal import say
from ddpm_jax.training.checkpoints import Restored

__all__ = ["train"]


def train(config: Config, console: Console) -> dict[str, Any]:
    """Trains `config` in its workdir, from the last checkpoint if there is one; returns results.

    A run that was killed at any moment and started again ends with the same bits in parameters,
    moving averages, optimizer state and metrics as one that was not: the noise follows from the
    seed and the step, the order of the data is in the checkpoint, and metrics written after the
    last checkpoint are dropped and written again.

    With several processes each calls this with the same config; `hosts.join` comes before. The
    first one writes and speaks for all.

    Raises:
        UserError: something that the caller can mend, before anything is compiled or written.
        training.DivergenceError: the loss turned NaN or Inf; the last checkpoint is sound.
        training.InterruptedTraining: SIGTERM, SIGHUP or SIGINT; the step at hand is saved. Where
            there is nothing to save, the process leaves at once.
        hosts.LostError: another process of the run is gone.
    """
    interrupts = training.Interrupts(functools.partial(say, console))
    with hosts.watched(), interrupts:
        _compare_configs(config)
        run = RunDirectory(config.workdir)
        with hosts.together():
            config = validate(config)
            check_batch(config)
            run.check_owner(config)
            results = run.read_results() if hosts.is_first() else None
            if results is not None:
                _tell_changed_evaluation(run, config, console)
        results = hosts.agreed(results)
        if results is not None:
            say(console, f"{run.path} is finished; nothing left to train")
            return results
        say(console, f"reading the images of {config.data.name}")
        with hosts.together():
            # What is refused here has not claimed the directory.
            record = read_data_record(run.images)
            experiment = build(config, spectrum=None if record is None else record.spectrum)
            if record is not None:
                check_same_data(record, experiment.images, run.path)
            form = make_form(experiment)
        _compare_images(experiment.images)
        if not hosts.is_first():
            console = Console(quiet=True)
        say(console, experiment.images.summary())
        with contextlib.ExitStack() as stack:
            with hosts.together():
                if hosts.is_first():
                    stack.enter_context(run.claim(config))
                    if record is None:
                        write_data_record(run.images, record_of(experiment))
            state = _train(experiment, form, run, console, interrupts)
            interrupts.saved(f"step {int(state.step)} is saved; the same command evaluates it")
            say(console, f"evaluating {len(experiment.images.held_out)} held-out images")
            results = {"step": int(state.step), **evaluate(experiment, state.ema_params)}
            with hosts.together():
                if hosts.is_first():
                    run.write_results(results)
        return results


def _tell_changed_evaluation(run: RunDirectory, config: Config, console: Console) -> None:
    """Says what a finished run was evaluated with, where another value is asked for."""
    changed = [
        f"with {field} {before}, not {now}"
        for field, before, now in differences(run.read_config(), config)
        if field.startswith("evaluation.")
    ]
    if changed:
        say(
            console,
            f"{run.path} was evaluated {', '.join(changed)}; `ddpm-jax evaluate {run.path}`"
            " measures again",
        )


def _compare_configs(config: Config) -> None:
    """Raises a UserError in all processes if one was told something else than the first."""
    first, *others = (from_json(values) for values in hosts.gathered(to_json(config)))
    for index, other in enumerate(others, start=1):
        different = [
            difference
            for difference in differences(first, other)
            if affects(difference) != Affects.PLACE or difference.field == "workdir"
        ]
        if different:
            fields = "; ".join(
                f"{field} is {there} there and {here} in process 0"
                for field, here, there in different
            )
            hosts.leave()
            raise ConfigError(f"process {index} of the run has another config ({fields})")


def _compare_images(images: ImageSet) -> None:
    """Raises a UserError in all processes if one has other images than the first."""
    first, *others = hosts.gathered(images.fingerprint)
    for index, other in enumerate(others, start=1):
        if other != first:
            hosts.leave()
            raise ConfigError(
                f"process {index} of the run has other images in {images.name!r} than process 0"
            )


def _train(
    experiment: Experiment,
    form: Form,
    run: RunDirectory,
    console: Console,
    interrupts: training.Interrupts,
) -> training.TrainState:
    config = experiment.config.train
    data = make_batches(
        experiment, process_index=jax.process_index(), process_count=jax.process_count()
    )
    with training.Checkpoints(
        run.checkpoints,
        keep_latest=config.keep_latest,
        keep_best=config.keep_best,
        config=to_json(experiment.config),
    ) as checkpoints:
        restored = _restored(experiment, checkpoints, console)
        if restored is None:
            start, state = 0, initial_state(experiment)
        else:
            start, state = restored.step, restored.state
            data.set_state(restored.data_state)
            say(console, f"going on from step {start}")
        with hosts.together():
            if hosts.is_first():
                for sentence in (
                    run.update_config(experiment.config, start),  # first: it notes old intervals
                    missing_metrics(run, config, start),
                ):
                    if sentence:
                        say(console, sentence)
        with (
            _metrics_log(run, resumed_at=start) as log,
            TrainingDisplay(
                console, start=start, steps=config.steps, batch_size=config.batch_size
            ) as display,
        ):
            interrupts.say, interrupts.close = display.say, display.stop
            interrupts.steps = config.steps
            if not console.is_terminal:
                say(console, "compiling the train step (this can take a minute)")
            step = lower_step(experiment, form).compile()
            hooks = _Hooks(experiment, run, data, checkpoints, log, display)
            if restored is not None:
                hooks.missed_snapshots = missed_snapshots(restored.notes)
            # Compiling takes each host its own time; in what comes next they wait for each other,
            # and not for long.
            hosts.barrier("the step is compiled")
            state = training.fit(
                step,
                state,
                _placed(data, form),
                hooks,
                start=start,
                steps=config.steps,
                log_every=config.log_every,
                save_every=config.save_every,
                draw_every=config.draw_every,
                keep_every=config.post_hoc_every if config.post_hoc_ema else None,
                interrupted=interrupts.received,
                computed=interrupts.computed,
            )
            checkpoints.wait()  # here, all processes learn of it if one could not save
            return state


def _restored(
    experiment: Experiment, checkpoints: training.Checkpoints, console: Console
) -> Restored | None:
    """The newest sound checkpoint, which the first process looks for, laid out on the mesh."""
    verify = experiment.config.train.verify_checkpoints
    choice: tuple[int | None, list[str]] = (None, [])
    with hosts.together():
        if hosts.is_first():
            found = training.newest_sound(checkpoints.directory, verify=verify)
            checkpoints.move_aside(found.refused)
            choice = found.step, list(found.refused.values())
    step, refused = hosts.agreed(choice)
    for sentence in refused:
        say(
            console,
            f"not going on from {sentence}; it is moved aside (of saves that were"
            " cut off, only the newest is kept)",
        )
    if step is None:
        return None
    return checkpoints.restore(experiment.abstract_state, step, verify=False)


def _metrics_log(
    run: RunDirectory, *, resumed_at: int
) -> contextlib.AbstractContextManager[MetricsLog | None]:
    """The first process's; None for the others."""
    return MetricsLog(run, resumed_at=resumed_at) if hosts.is_first() else contextlib.nullcontext()


def _placed(data: BatchIterator, form: Form) -> Iterator[Any]:
    for batch in data:
        yield form.place(batch)


@dataclasses.dataclass
class _Hooks:
    """Connects the loop with disk and screen."""

    experiment: Experiment
    run: RunDirectory
    data: BatchIterator
    checkpoints: training.Checkpoints
    metrics_log: MetricsLog | None
    """None in all processes but the first."""
    display: TrainingDisplay
    missed_saves: int = 0
    missed_snapshots: set[int] = dataclasses.field(default_factory=set)
    """Steps done whose snapshot the disk refused. A run that goes on does not come by them again,
    and averages are to say that they are missing."""
    refusal: str | None = None
    """Why metrics.jsonl did not take the last line."""
    skipped_images: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        self.held_out_loss = held_out_loss(self.experiment)
        evaluation = self.experiment.config.evaluation
        self.num_samples = evaluation.num_samples
        self.drawer = make_drawer(
            self.experiment, num=evaluation.num_samples, how=sampling_of(evaluation)
        )
        self._tell_skipped_images()

    def advance(self, step: int, waited: float) -> None:
        self.display.advance(step, waited)

    def log(self, step: int, metrics: training.StepMetrics) -> None:
        values = {
            "loss": float(metrics.loss),
            "gradient_norm": float(metrics.gradient_norm),
            "learning_rate": float(self.experiment.learning_rate(step - 1)),
        }
        if skipped := int(metrics.bad.skipped):
            values |= {"skipped_steps": skipped, "last_skipped_step": int(metrics.bad.last)}
        speed = self.display.log(step, values["loss"], skipped=skipped)
        if self.metrics_log is not None:
            self.metrics_log.write(step, values)
            self.metrics_log.scalars(step, speed)
            self._tell_refusal(self.metrics_log)
        self._tell_skipped_images()

    def _tell_refusal(self, log: MetricsLog) -> None:
        """Once when the disk begins to refuse lines, and once when it has them all."""
        if (log.refusal is None) != (self.refusal is None):
            now = (
                "are written now, too" if log.refusal is None else "are written when it takes them"
            )
            why = log.refusal or "it takes lines again"
            self.display.say(f"{self.run.metrics}: {why}; the lines that it did not take {now}")
        self.refusal = log.refusal

    def _tell_skipped_images(self) -> None:
        images, told = self.experiment.images, len(self.skipped_images)
        for source in (images.train, images.held_out):
            for where, why in list(source.skipped.items()):  # threads that read may add to it
                if where not in self.skipped_images:
                    self.skipped_images.add(where)
                    self.display.say(f"skipped: {where} {why}")
        if len(self.skipped_images) > told:
            self.display.say(f"{len(self.skipped_images)} images skipped so far")

    def save(self, step: int, state: training.TrainState, *, due: bool, leaving: bool) -> None:
        loss = math.inf  # of a step that other runs do not save, so that no metrics depend on it
        if due:
            loss = self.held_out_loss(state.ema_params)
            if not math.isfinite(loss):
                raise training.DivergenceError(step)
            # Written before the checkpoint is: a resumed run never misses the line of its own step.
            if self.metrics_log is not None:
                self.metrics_log.write(step, {"held_out_loss": loss})
                self._tell_refusal(self.metrics_log)
        value = f"held-out loss {loss:.4f}, " if due else ""

        def report(what: str) -> None:
            nonlocal value
            self.display.say(f"step {step}: {value}checkpoint {what}")
            value = ""  # said once

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
        config = self.experiment.config.train
        try:
            training.save_snapshot(
                self.run.snapshots,
                step,
                state.averages[len(config.ema_decay) :],
                config.post_hoc_ema,
                config=to_json(self.experiment.config),
            )
        except training.SaveError as error:
            self.missed_snapshots.add(step)
            self._miss(error, may_go_on=True)
        else:
            self.display.say(f"step {step}: snapshot saved")

    def _miss(self, error: training.SaveError, *, may_go_on: bool) -> None:
        """Counts saves that the disk refused, and goes on if there may be more of them."""
        self.missed_saves += len(error.steps)
        allowed = self.experiment.config.train.missed_saves
        if not may_go_on or self.missed_saves > allowed:
            raise error
        self.display.say(
            f"{error}; training goes on ({self.missed_saves} of {allowed} saves missed that may be)"
        )

    def draw(self, step: int, state: training.TrainState) -> None:
        self.display.say(f"step {step}: drawing {self.num_samples} images")
        drawn = self.drawer(state.ema_params, self.experiment.key("samples"))
        if self.metrics_log is not None:
            levels = self.experiment.spec.levels
            told = f"pictures in {self.run.pictures}"
            try:
                pictures = save_drawn(self.run.pictures, f"{step:07d}", drawn, levels=levels)
                for kind, picture in pictures.items():
                    self.metrics_log.picture(step, kind, picture)
            except OSError as error:
                told = f"no {told}: {error.strerror}"
            self.display.say(f"step {step}: {told}")
        self.display.pause()
