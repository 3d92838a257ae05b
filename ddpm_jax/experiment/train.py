"""A whole run: training, from the last checkpoint if there is one, evaluation and pictures."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from ddpm_jax import training
from ddpm_jax.config import (
    Affects,
    Config,
    ConfigError,
    differences,
    measure,
    to_json,
    validate,
)
from ddpm_jax.data import BatchIterator, ImageSet
from ddpm_jax.experiment.data_record import (
    check_same_data,
    read_data_record,
    record_of,
    write_data_record,
)
from ddpm_jax.experiment.display import TrainingDisplay
from ddpm_jax.experiment.experiment import (
    Experiment,
    build,
    check_batch,
    initial_state,
)
from ddpm_jax.experiment.hooks import RunHooks
from ddpm_jax.experiment.initial import InitialParams, read_initial_params
from ddpm_jax.experiment.logs import RunLog, open_log
from ddpm_jax.experiment.metrics_log import MetricsLog, missing_metrics
from ddpm_jax.experiment.post_hoc import missed_snapshots
from ddpm_jax.experiment.run_directory import RunDirectory
from ddpm_jax.experiment.step import lower_step, make_batches, make_form, trained_model
from ddpm_jax.files import write_json
from ddpm_jax.parallel import Form, hosts
from ddpm_jax.terminal import count_text, make_console, say
from ddpm_jax.training.checkpoints import Restored

__all__ = ["train"]


def train(
    config: Config, *, images: ImageSet | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Trains a config in its workdir, from the last checkpoint if there is one, and evaluates it.

    A run that was killed at any moment and started again ends with the same bits in parameters,
    moving averages, optimizer state and metrics as an uninterrupted run: the noise follows from the
    seed and the step, the order of the data is in the checkpoint, and metrics written after the
    last checkpoint are dropped and written again.

    With several processes each one calls this function with the same config, after
    `config.hosts.join()`. The first one writes and prints for all.

    Args:
        config: of the experiment.
        images: the data set, in place of that of `config.data`, which is usually `InMemory` then.
        console: where to print; by default standard output.

    Returns:
        The results of the evaluation by name, as in results.json.

    Raises:
        UserError: an error that the user can fix, before anything is compiled or written.
        training.DivergenceError: the loss became NaN or Inf; the last checkpoint is sound.
        training.InterruptedTraining: SIGTERM, SIGHUP or SIGINT; the last step is saved. If there is
            nothing to save, the process exits at once.
        hosts.HostLossError: another process of the run is lost.
    """
    console = make_console() if console is None else console
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
                _report_changed_evaluation(run, config, console)
        results = hosts.agreed(results)
        if results is not None and results["step"] >= config.train.steps:
            say(console, f"{run.path} is finished; nothing left to train")
            return results
        say(console, f"reading the images of {config.data.title}")
        with hosts.together():
            # Errors are raised here before the directory is claimed.
            record = read_data_record(run.images)
            measured = None if record is None else record.measured
            experiment = build(config, images=images, measured=measured)
            if record is not None:
                check_same_data(record, experiment.images, run.path)
            form = make_form(experiment)
            lowered = lower_step(experiment, form)
            initial = read_initial_params(experiment, run, functools.partial(say, console))
        _compare_images(experiment.images)
        if not hosts.is_first():
            console = Console(quiet=True)
        say(console, experiment.images.summary())
        say(console, _summary(experiment.mesh))
        if experiment.sharding_note is not None:
            say(console, experiment.sharding_note)
        with contextlib.ExitStack() as stack:
            with hosts.together():
                if hosts.is_first():
                    stack.enter_context(run.claim(config))
                    if results is not None:
                        run.set_results_aside(results["step"])
                    if record is None:
                        write_data_record(run.images, record_of(experiment))
                    if initial is not None:
                        write_json(run.initial, initial.record)
            state, log = _train(experiment, form, lowered, initial, run, console, interrupts, stack)
            interrupts.saved(f"step {int(state.step)} is saved; the same command evaluates it")
            model, held_out = trained_model(experiment), len(experiment.images.held_out)
            number = count_text(len(model.images.held_out), held_out)
            say(console, f"evaluating {number} held-out images")
            evaluated = measure(config.evaluation, model, state.ema_params)
            baselines = config.evaluation.baselines(model.images)
            results = {
                "step": int(state.step),
                "held_out_images": held_out,
                **evaluated.results,
                **baselines,
            }
            with hosts.together():
                if hosts.is_first():
                    run.write_results(results)
            log.scalars(int(state.step), _final(results))
        return results


def _final(results: dict[str, Any]) -> dict[str, float]:
    """The numbers among the results, for the logger."""
    return {
        f"final_{name}": float(value)
        for name, value in results.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _report_changed_evaluation(run: RunDirectory, config: Config, console: Console) -> None:
    """Says what a finished run was evaluated with, where the config has another value."""
    during_training = {f"evaluation.{name}" for name in config.evaluation.monitor_fields}
    changed = [
        f"with {change.field} {change.first}, not {change.second}"
        for change in differences(run.read_stored(), to_json(config), config)
        if change.field.split(".")[0] == "evaluation" and change.field not in during_training
    ]
    if changed:
        say(
            console,
            f"{run.path} was evaluated {', '.join(changed)}; run `ddpm-jax evaluate {run.path}` to"
            " measure it again",
        )


def _compare_configs(config: Config) -> None:
    """Raises a UserError in all processes if one has another config than the first."""
    first, *others = hosts.gathered(to_json(config))
    for index, other in enumerate(others, start=1):
        if _sha256_of(first) != _sha256_of(other):
            hosts.leave()
            raise ConfigError(
                f"process {index} of the run has another config file than process 0, and the file"
                " defines members of the config"
            )
        different = [
            difference
            for difference in differences(first, other, config)
            if difference.affects != Affects.PLACE or difference.field == "workdir"
        ]
        if different:
            fields = "; ".join(
                f"{change.field} is {change.second} there and {change.first} in process 0"
                for change in different
            )
            hosts.leave()
            raise ConfigError(f"process {index} of the run has another config ({fields})")


def _sha256_of(stored: dict[str, Any]) -> str | None:
    """Of the config file, if the config has members of it."""
    return stored["source"] and stored["source"]["sha256"]


def _compare_images(images: ImageSet) -> None:
    """Raises a UserError in all processes if one has other images than the first."""
    first, *others = hosts.gathered(images.fingerprint)
    for index, other in enumerate(others, start=1):
        if other != first:
            hosts.leave()
            raise ConfigError(
                f"process {index} of the run has other images in {images.name!r} than process 0"
            )


def _summary(mesh: Mesh) -> str:
    """Axes and devices of the mesh, and how many devices have nothing to do."""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    platform, idle = mesh.devices.flat[0].platform, jax.device_count() - mesh.size
    devices = f"{mesh.size} {platform} device{'s' if mesh.size > 1 else ''}"
    return f"mesh: {axes}, {devices}{f'; {idle} more stay idle' if idle else ''}"


def _train(
    experiment: Experiment,
    form: Form,
    lowered: jax.stages.Lowered,
    initial: InitialParams | None,
    run: RunDirectory,
    console: Console,
    interrupts: training.Interrupts,
    stack: contextlib.ExitStack,
) -> tuple[training.TrainState, RunLog]:
    """Returns the last state, and the log, which ends with the stack."""
    config, snapshots = experiment.config.train, experiment.config.averages.snapshots
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
            start, state = 0, initial_state(experiment, initial and initial.params)
        else:
            start, state = restored.step, restored.state
            data.set_state(restored.data_state)
            say(console, f"resuming from step {start}")
        with hosts.together():
            if hosts.is_first():
                for sentence in (
                    run.update_config(experiment.config, start),  # first: it notes old intervals
                    missing_metrics(run, config, start),
                ):
                    if sentence:
                        say(console, sentence)
        logger = stack.enter_context(
            open_log(
                experiment.config.logger,
                run.path,
                resumed_at=start,
                say=functools.partial(say, console),
            )
        )
        with (
            _metrics_log(run, resumed_at=start) as log,
            TrainingDisplay(
                console, start=start, steps=config.steps, batch_size=config.batch_size
            ) as display,
        ):
            interrupts.say, interrupts.close = display.say, display.stop
            interrupts.steps = config.steps
            if not console.is_interactive:
                say(console, "compiling the train step (this can take a minute)")
            step = lowered.compile()
            hooks = RunHooks(experiment, run, data, checkpoints, log, logger, display)
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
                keep_every=None if snapshots is None else snapshots.every,
                eval_every=config.eval_every,
                interrupted=interrupts.received,
                computed=interrupts.computed,
            )
            checkpoints.wait()  # here, all processes learn of it if one could not save
            return state, logger


def _restored(
    experiment: Experiment, checkpoints: training.Checkpoints, console: Console
) -> Restored | None:
    """The newest sound checkpoint, which the first process looks for, laid out on the mesh."""
    verify = experiment.config.train.verify_checkpoints
    choice: tuple[int | None, list[str]] = (None, [])
    with hosts.together():
        if hosts.is_first():
            newest = training.newest_sound(checkpoints.directory, verify=verify)
            checkpoints.move_aside(newest.refused)
            choice = newest.step, list(newest.refused.values())
    step, refused = hosts.agreed(choice)
    for sentence in refused:
        say(
            console,
            f"not resuming from {sentence}; its folder is renamed (of interrupted saves, only the"
            " newest is kept)",
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
