"""A trained run as a value: its process, its network, its parameters, without its data set."""

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
from ddpm_jax.experiment.sampling import sampling_function
from ddpm_jax.processes import Modal
from ddpm_jax.training import Checkpoints

__all__ = ["Params", "RestoredRun", "Run", "build_run", "load_run", "restore_run"]

Params = Literal["ema", "raw"] | float
"""The moving average of the parameters, the raw ones, or a post-hoc average of this width."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained network and what belongs to it; see `load_run`."""

    path: Path
    experiment: Experiment
    params: Any
    """As `network.apply` takes them."""
    step: int
    """Steps that these parameters have been trained for."""

    @property
    def config(self) -> Config:
        """As it was stored, but for mesh and hosts."""
        return self.experiment.config

    @property
    def process(self) -> Modal:
        """The forward process, for all functions of the library."""
        return self.experiment.process

    @property
    def network(self) -> Any:
        """The module, with `init` and `apply`."""
        return self.experiment.model

    @property
    def images(self) -> ImageSpec:
        """Shape, grey levels and classes of the images."""
        return self.experiment.spec

    @property
    def results(self) -> dict[str, Any] | None:
        """The evaluation at the end of training; None if it has not ended."""
        return RunDirectory(self.path).read_results()

    def predict(
        self,
        x_t: Float[Array, "batch height width channel"],
        t: Int[Array, " batch"],
        labels: Int[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width channel"]:
        """The network's prediction of `config.network.predicts`; pure, dropout off.

        Args:
            x_t: noised images, in [-1, 1] without the noise.
            t: network times, as samplers and likelihoods give them: int32 in [0, T).
            labels: class of each example, of a network with classes.
        """
        prediction: Array = self.experiment.bind(self.params, labels=labels)(x_t, t)
        return prediction

    def sample(
        self,
        key: Key[Array, ""],
        num: int,
        *,
        sampler: configs.Sampler | None = None,
        label: int | None = None,
        batch_size: int | None = None,
    ) -> Float[Array, "num height width channel"]:
        """New images, float32 in [-1, 1]; image i follows from the key and i alone.

        Args:
            key: of all images.
            num: how many.
            sampler: `config.DDIM(steps=50)`; by default the run's own.
            label: the class of all; by default one after the other, of a network with classes.
            batch_size: images drawn at once; by default `config.evaluation.batch_size`. The images
                do not depend on it but for rounding.

        Raises:
            UserError: a sampler that this process or network cannot have.
        """
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
        label: int | None = None,
        parameters: Placement = "inside",
        platforms: Sequence[str] = PLATFORMS,
    ) -> SamplerFiles:
        """Writes a sampler as one program that runs on JAX alone, and a README that says how.

        Args:
            out: the program's file; its name ends in .bin.
            sampler: `config.DDIM(steps=50)`; by default the run's own.
            label: the class of all images; by default the program takes the classes, of a network
                with classes.
            parameters: "inside" the program, or in a file "beside" it.
            platforms: that it is lowered for; none of them has to be here.

        Raises:
            UserError: see `export_sampler`.
        """
        return export_sampler(
            self.experiment,
            self.params,
            Path(out),
            sampler=self.config.sampler if sampler is None else sampler,
            label=label,
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
    """A finished or running run, from any directory and without its data set; only reads.

    If members of its config are of a config file of the user's, the run's copy of that file is
    executed, and `report` gets a line that says so.

    Args:
        path: the run directory.
        params: the moving average of the parameters, "ema"; those of the last step, "raw"; or a
            float, the post-hoc average of this relative width.
        devices: that the parameters are put on; by default all.
        mesh: how these split them, as `config.Jit(fsdp=4)`; by default each has a copy.
        report: gets a line of each thing that a user should know.

    Raises:
        UserError: no run there, no checkpoint yet, or a file that is damaged or of another version.

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
    return Run(directory.path, restored.experiment, restored.params[name], restored.step)


class RestoredRun(NamedTuple):
    """An experiment and its newest checkpoint."""

    experiment: Experiment
    params: dict[str, Any]
    """The moving average, "ema", and the raw ones, "raw"; or one of a width, "sigma_rel". An
    imported run may have no raw ones."""
    step: int


def alone(config: Config) -> Config:
    """The config of a run for a process of its own on any devices, wherever it was trained."""
    default = Config()
    return dataclasses.replace(config, hosts=default.hosts, mesh=default.mesh)


def build_run(
    run: RunDirectory,
    config: Config,
    *,
    with_images: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> Experiment:
    """The experiment of `config`, which is the run's or differs in what `run` allows.

    Args:
        run: nothing is written to it.
        config: of the run, with the data set where it is now.
        with_images: False opens no data set where the run has recorded what is needed of it.
        devices: all there are, if not given.

    Raises:
        UserError: the data set is missing, or is not the one that the run was trained on.
    """
    record = read_data_record(run.images)
    if record is None:
        return build(config, devices=devices)
    if not with_images:
        return build(config, spec=record.spec, measured=record.measured, devices=devices)
    if record.fingerprint is None and configs.plain(config.data) == run.read_stored().get("data"):
        raise RunDirectoryError(
            f"{str(run.path)!r} was imported without a data set; say which images it is compared"
            f" with, {'x'.join(map(str, record.spec.shape))} each, as in --data folder --data.path"
            " IMAGES"
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
    """Reads a finished or running run; never writes to it.

    Args:
        run: its directory.
        config: of the run, see `alone`.
        with_images: see `build_run`.
        only: the parameters that are needed, "ema" or "raw"; an imported run reads no others.
        sigma_rel: the parameters are an average of this width, made of the run's snapshots.
        skip_missing_snapshots: make that average of the snapshots that are sound.
        devices: all there are, if not given.
        report: gets a line of each image or checkpoint that is not used.

    Raises:
        UserError: no checkpoint yet, or one that cannot be read.
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
                f"{str(run.path)!r} was imported, without the snapshots that an average of another"
                " width is made of"
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
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        restored = checkpoints.restore(experiment.abstract_state, verify=verify)
    if restored is None:
        raise RunDirectoryError(f"{str(run.path)!r} has no checkpoint yet; try again later")
    for sentence in restored.refused.values():
        report(f"not read: {sentence}")
    state = restored.state
    return RestoredRun(experiment, {"ema": state.ema_params, "raw": state.params}, restored.step)
