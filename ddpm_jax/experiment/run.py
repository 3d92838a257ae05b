"""A trained run as an object: its process, network and parameters, without its data set."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddpm_jax import config as configs
from ddpm_jax.config import Config
from ddpm_jax.data import ImageSpec
from ddpm_jax.errors import UserError
from ddpm_jax.experiment.data_record import check_same_data, read_data_record
from ddpm_jax.experiment.experiment import Experiment, build
from ddpm_jax.experiment.imported import imported_files, read_imported
from ddpm_jax.experiment.post_hoc import post_hoc_params
from ddpm_jax.experiment.run_directory import RunDirectory, RunDirectoryError
from ddpm_jax.experiment.sampler_artifact import SamplerFiles, export_sampler
from ddpm_jax.experiment.sampler_program import PLATFORMS, Placement
from ddpm_jax.experiment.sampling import class_of, sampling_function
from ddpm_jax.parallel import hosts
from ddpm_jax.processes import Modal
from ddpm_jax.training import Checkpoints, newest_sound
from ddpm_jax.training.checkpoints import Restored

__all__ = ["Params", "RestoredRun", "Run", "build_run", "load_run", "restore_run"]

Params = Literal["ema", "raw"] | float
"""The moving average of the parameters, the raw ones, or a post-hoc average of this width."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A trained network with its process, parameters and config; `load_run` makes it."""

    path: Path
    """The run directory."""
    experiment: Experiment
    """The objects that the config declares."""
    params: Any
    """Variables of the network, as `network.apply` takes them."""
    step: int
    """Number of steps for which these parameters were trained."""

    def __repr__(self) -> str:
        network = type(self.experiment.model).__name__
        return f"Run({str(self.path)!r}, step={self.step}, network={network}, {self.images})"

    @property
    def config(self) -> Config:
        """The stored config, except for mesh and hosts."""
        return self.experiment.config

    @property
    def process(self) -> Modal:
        """The forward process, for the functions of the library; a learned one as it is now."""
        return self.experiment.process

    @property
    def network(self) -> Any:
        """The network, a module with `init` and `apply`."""
        return self.experiment.model

    @property
    def images(self) -> ImageSpec:
        """Shape, grey levels and classes of the images."""
        return self.experiment.spec

    @property
    def results(self) -> dict[str, Any] | None:
        """The results at the end of training; None if it has not ended."""
        return RunDirectory(self.path).read_results()

    def predict(
        self,
        x_t: Float[Array, "batch height width channel"],
        t: Int[Array, " batch"] | Float[Array, " batch"],
        labels: Int[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width channel"]:
        """The network's prediction of `config.network.predicts`; a pure function, without dropout.

        Args:
            x_t: noised images; without the noise they are in [-1, 1].
            t: network times, as samplers and likelihoods pass them: `process.network_time`, which
                is int32 in [0, T) unless the schedule is learned.
            labels: class of each example, for a network with classes; -1, or None for all, is "no
                class".

        Returns:
            The prediction, with the shape of `x_t`.
        """
        prediction: Array = self.experiment.bind(self.params, labels=labels)(x_t, t)
        return prediction

    def sample(
        self,
        key: Key[Array, ""],
        num: int,
        *,
        sampler: configs.Sampler | None = None,
        label: int | str | None = None,
        batch_size: int | None = None,
    ) -> Float[Array, "num height width channel"]:
        """Draws images; image i follows from the key and i only.

        Args:
            key: a typed key for all images.
            num: number of images.
            sampler: such as `config.DDIM(steps=50, guidance=2.0)`; by default that of the run.
            label: name or number of the class of all images; by default the classes follow each
                other, for a network with classes.
            batch_size: images drawn at once; by default `config.evaluation.batch_size`. The images
                depend on it only by rounding.

        Returns:
            float32 `[num, height, width, channel]` in [-1, 1].

        Raises:
            UserError: the sampler does not work with this process or network, or the run has no
                such class.
        """
        label = class_of(self.experiment, label)
        sampler = self.config.sampler if sampler is None else sampler
        configs.validate(dataclasses.replace(self.config, sampler=sampler))
        size = min(num, batch_size or self.config.evaluation.batch_size)
        sample = sampling_function(self.experiment, num=size, sampler=sampler, label=label)
        program = jax.jit(lambda params, key, first: sample(params, key, first).x0)
        batches = [
            np.asarray(program(self.params, key, np.int32(first)))[:size]
            for first in range(0, num, size)
        ]
        return jnp.asarray(np.concatenate(batches)[:num])

    def export(
        self,
        out: str | os.PathLike[str],
        *,
        sampler: configs.Sampler | None = None,
        label: int | str | None = None,
        parameters: Placement = "inside",
        platforms: Sequence[str] = PLATFORMS,
    ) -> SamplerFiles:
        """Writes a sampler as one program that needs only JAX, and a README that explains it.

        Args:
            out: path of the program; its name ends in .bin.
            sampler: such as `config.DDIM(steps=50)`; by default that of the run.
            label: name or number of the class of all images; by default the classes are an argument
                of the program, for a network with classes.
            parameters: "inside" the program, or in a file "beside" it.
            platforms: platforms on which the program can run. None of them has to be here.

        Returns:
            The paths of the files.

        Raises:
            UserError: see `export_sampler`.
        """
        return export_sampler(
            self.experiment,
            self.params,
            Path(out),
            sampler=self.config.sampler if sampler is None else sampler,
            label=class_of(self.experiment, label),
            parameters=parameters,
            platforms=platforms,
            origin=f"run {self.path.resolve().name}, step {self.step}",
        )


def load_run(
    path: str | os.PathLike[str],
    *,
    params: Params = "ema",
    devices: Sequence[jax.Device] | None = None,
    mesh: configs.Mesh | None = None,
    report: Callable[[str], None] = warnings.warn,
) -> Run:
    """Loads a finished or running run, without its data set. Nothing is written.

    If a config file of the user defines members of its config, the run's copy of that file is
    executed, and `report` gets a line about it.

    Args:
        path: the run directory; it may have been moved.
        params: "ema", the moving average of the parameters; "raw", the parameters of the last step;
            or a float, the relative width of a post-hoc average.
        devices: the devices that hold the parameters; by default all.
        mesh: how the devices split the parameters, such as `config.Jit(fsdp=4)`; by default each
            device has a copy.
        report: gets a line for each thing that a user should know.

    Returns:
        The run.

    Raises:
        UserError: there is no run or no checkpoint yet, or a file is damaged or of another version.

    Example:
        >>> import ddpm_jax, jax
        >>> run = ddpm_jax.load_run("runs/digits")  # doctest: +SKIP
        >>> images = run.sample(jax.random.key(0), 16)  # doctest: +SKIP
    """
    directory = RunDirectory(path)
    config = alone(directory.read_config(report=report))
    if mesh is not None:
        config = dataclasses.replace(config, mesh=mesh)
    name, width = (params, None) if isinstance(params, str) else ("sigma_rel", params)
    if name not in ("ema", "raw", "sigma_rel"):
        raise UserError(f"params is {params!r}; it has to be 'ema', 'raw' or a width")
    restored = restore_run(
        directory,
        config,
        with_images=False,
        only=None if width is not None else name,
        sigma_rel=width,
        devices=devices,
        report=report,
    )
    values = restored.params[name]
    return Run(directory.path, restored.experiment.at(values), values, restored.step)


class RestoredRun(NamedTuple):
    """An experiment and its newest checkpoint."""

    experiment: Experiment
    """The objects that the config declares."""
    params: dict[str, Any]
    """The moving average of the parameters, "ema", and the raw ones, "raw"; or a post-hoc average,
    "sigma_rel". An imported run may have no raw ones."""
    step: int
    """Number of steps done."""


def alone(config: Config) -> Config:
    """The config of a run for a single process on any devices.

    Args:
        config: of a run, which several processes may have trained.

    Returns:
        The config with the default mesh and hosts.
    """
    default = Config()
    return dataclasses.replace(config, hosts=default.hosts, mesh=default.mesh)


def build_run(
    run: RunDirectory,
    config: Config,
    *,
    with_images: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> Experiment:
    """The experiment of a run.

    Args:
        run: the run directory. Nothing is written to it.
        config: of the run; its `data` says where the data set is now.
        with_images: whether to open the data set. Without it the run's record of it is used.
        devices: the devices to use; by default all.

    Returns:
        The experiment.

    Raises:
        UserError: the data set is missing, or is not the one on which the run was trained.
    """
    record = read_data_record(run.images)
    if record is None:
        return build(config, devices=devices)
    if not with_images:
        return build(config, spec=record.spec, measured=record.measured, devices=devices)
    if record.fingerprint is None and configs.plain(config.data) == run.read_stored().get("data"):
        raise RunDirectoryError(
            f"{str(run.path)!r} was imported without a data set; name the images to compare with,"
            f" {'x'.join(map(str, record.spec.shape))} each, as in --data folder --data.path IMAGES"
        )
    experiment = build(config, measured=record.measured, devices=devices)
    check_same_data(record, experiment.images, run.path)
    return experiment


def restore_run(
    run: RunDirectory,
    config: Config,
    *,
    with_images: bool = True,
    only: str | None = None,
    sigma_rel: float | None = None,
    skip_missing_snapshots: bool = False,
    devices: Sequence[jax.Device] | None = None,
    report: Callable[[str], None],
) -> RestoredRun:
    """Reads the experiment and the parameters of a finished or running run.

    Nothing is written.

    Args:
        run: the run directory.
        config: of the run, see `alone`.
        with_images: see `build_run`.
        only: the parameters that are needed, "ema" or "raw"; an imported run reads no others.
        sigma_rel: relative width of a post-hoc average, in place of these parameters.
        skip_missing_snapshots: make that average of the sound snapshots only.
        devices: the devices to use; by default all.
        report: gets a line for each image or checkpoint that is not used.

    Returns:
        The experiment, the parameters and their step.

    Raises:
        UserError: there is no checkpoint yet, or it cannot be read.
    """
    experiment = build_run(run, config, with_images=with_images, devices=devices)
    if experiment.loaded is not None:
        for source in (experiment.loaded.train, experiment.loaded.held_out):
            for where, why in source.skipped.items():
                report(f"skipped: {where} {why}")
    verify = config.train.verify_checkpoints
    if files := imported_files(run):
        if sigma_rel is not None:
            raise RunDirectoryError(
                f"{str(run.path)!r} was imported, and has no snapshots for an average of another"
                " width"
            )
        params = read_imported(files, experiment, only)
        return RestoredRun(experiment, params, files["ema"].step)
    if sigma_rel is not None:
        averaged, step = post_hoc_params(
            experiment,
            run,
            sigma_rel,
            verify=verify,
            skip_missing=skip_missing_snapshots,
            report=report,
        )
        return RestoredRun(experiment, {"sigma_rel": averaged}, step)
    restored = _newest_checkpoint(run, experiment, verify=verify)
    if restored is None:
        raise RunDirectoryError(f"{str(run.path)!r} has no checkpoint yet; try again later")
    for sentence in restored.refused.values():
        report(f"not read: {sentence}")
    state = restored.state
    return RestoredRun(experiment, {"ema": state.ema_params, "raw": state.params}, restored.step)


def _newest_checkpoint(
    run: RunDirectory, experiment: Experiment, *, verify: bool
) -> Restored | None:
    """The newest sound checkpoint; of several processes, the first one chooses it for all.

    The run may still be training.
    """
    like = experiment.abstract_state
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        if hosts.alone():
            return checkpoints.restore(like, verify=verify)
        step, refused = hosts.by_first(lambda: newest_sound(run.checkpoints, verify=verify))
        if step is None:
            return None
        restored = checkpoints.restore(like, step, verify=False)
    if restored is None:
        return None
    return restored._replace(refused={int(step): why for step, why in refused.items()})
