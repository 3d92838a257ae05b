"""The measurements on held-out images when training ends."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from ddpm_jax.config.base import COUNT, Affects, Bound, ConfigError, Member, check_made
from ddpm_jax.data import ImageSet
from ddpm_jax.evaluation import likelihood
from ddpm_jax.evaluation.monitor import Monitor, make_monitor
from ddpm_jax.terminal import cell, count_text

__all__ = ["BitsPerDim", "Evaluation", "HeldOutLoss", "Measurements", "measure"]


class Measurements(NamedTuple):
    """The results for one set of parameters."""

    results: dict[str, Any]
    """Numbers, texts and None by name, as results.json holds them."""
    per_time: likelihood.PerTime | None = None
    """The term of the ELBO at each t, or None."""
    per_image: np.ndarray | None = None
    """Bits per dimension of each held-out image, float64 `[images]`, or None."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Member):
    """A measurement of a trained network on held-out images, and its sample grid."""

    affects: ClassVar[Affects] = Affects.REPORTS
    monitor_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of `monitor` alone, on which the results of `make` do not depend."""
    batch_size: Annotated[int, COUNT] = 128
    """Images in one call of the network, over all devices. Lower it if memory runs out."""
    num_samples: Annotated[int, COUNT] = 64
    """Images in a sample grid."""
    held_out_images: Annotated[
        int | None, Bound(lambda value: value is None or value >= 1, "1 or more")
    ] = 10_000
    """Largest number of held-out images that are measured, at the end of training and by
    `evaluate`; of more images as many are taken, spread evenly. None: all of them. The loss that
    ranks checkpoints is always that of the first 1,024 held-out images."""

    @abc.abstractmethod
    def make(self, model: likelihood.TrainedModel) -> Callable[[Any], Measurements]:
        """The measurement of one model.

        Args:
            model: the network as a function of its parameters, and the images.

        Returns:
            A function `params -> Measurements`.
        """

    def monitor(self, model: likelihood.TrainedModel) -> Monitor | None:
        """A quick measurement for `train.eval_every`, of the moving average while training goes on.

        It has to follow from parameters and seed alone, so that a resumed run has the same numbers.
        Floats go to metrics.jsonl and the logger; `NAME_error` is the standard error of `NAME`.
        Whole numbers go to metrics.jsonl alone; they are those of images, times and the like.

        Args:
            model: the network as a function of its parameters, and the images.

        Returns:
            A function `params -> numbers by name`; by default None, for no such measurement.
        """
        return None

    def baselines(self, images: ImageSet) -> dict[str, Any]:
        """Results without a network, which the table shows beside those of the network.

        Args:
            images: the data set.

        Returns:
            Numbers by name; by default none.
        """
        return {}

    def table(self, results: dict[str, Any], *, params: str = "") -> Table:
        """The results as a table; by default one row for each name.

        Args:
            results: those of `Measurements`, and the `step` of the parameters.
            params: name of the parameters, for the title.

        Returns:
            A table of rich.
        """
        table = Table("result", "value", title=cell(f"step {results['step']} {params}".strip()))
        for name, value in results.items():
            table.add_row(cell(name), cell(str(value)))
        return table


def measure(evaluation: Evaluation, model: likelihood.TrainedModel, params: Any) -> Measurements:
    """Measures one set of parameters.

    Args:
        evaluation: the member that measures.
        model: the network as a function of its parameters, and the images.
        params: the parameters.

    Returns:
        The results.

    Raises:
        ConfigError: the member returned something else.
    """
    measurements = evaluation.make(model.at(params))(params)
    check_made("evaluation", evaluation, measurements, Measurements)
    return measurements


@dataclasses.dataclass(frozen=True)
class BitsPerDim(Evaluation):
    """Bits per dimension by the ELBO, and two baselines."""

    monitor_fields: ClassVar[tuple[str, ...]] = ("monitor_images", "monitor_times")
    likelihood_times: Annotated[
        int | None, Bound(lambda value: value is None or value >= 2, "2 or more")
    ] = None
    """Number of terms of the ELBO that are computed for each held-out image, at times spread over
    the chain. None: all T terms. Lower it to save time; the estimate stays unbiased, with a larger
    standard error."""
    monitor_images: Annotated[int, Bound(lambda value: value >= 2, "2 or more")] = 256
    """Number of held-out images, a random choice, for the estimate every `train.eval_every`
    steps."""
    monitor_times: Annotated[int, Bound(lambda value: value >= 2, "2 or more")] = 8
    """Number of terms of the ELBO for each of these images; all T if there are fewer."""

    def check(self, config: Any) -> None:
        """Checks that there are at most T terms."""
        num_steps = config.schedule.num_steps
        if (self.likelihood_times or 1) > num_steps:
            raise ConfigError(
                f"evaluation.likelihood_times is {self.likelihood_times}; it has to be at most"
                f" schedule.num_steps, {num_steps}"
            )

    def make(self, model: likelihood.TrainedModel) -> Callable[[Any], Measurements]:
        """`evaluation.likelihood.bits_per_dim`."""
        return lambda params: Measurements(
            *likelihood.bits_per_dim(
                model, params, num_times=self.likelihood_times, batch_size=self.batch_size
            )
        )

    def monitor(self, model: likelihood.TrainedModel) -> Monitor:
        """`evaluation.monitor.make_monitor`."""
        return make_monitor(
            model,
            num_images=self.monitor_images,
            num_times=self.monitor_times,
            batch_size=self.batch_size,
        )

    def baselines(self, images: ImageSet) -> dict[str, Any]:
        """Uniform grey levels, and a histogram of each pixel; `evaluation.likelihood.baselines`."""
        return likelihood.baselines(images)

    def table(self, results: dict[str, Any], *, params: str = "") -> Table:
        """Bits per dimension, the parts of the ELBO, and the two baselines."""
        images, of_all = results["images"], results.get("held_out_images", results["images"])
        number = count_text(images, of_all)
        title = f"{results['dataset']}, {number} held-out images, step {results['step']}"
        table = Table(title=cell(f"{title}, {params}" if params else title))
        table.add_column("code")
        table.add_column("bits/dim", justify="right")
        table.add_row(f"uniform, log2 {results['levels']}", f"{results['uniform']:.3f}")
        table.add_row(
            f"histogram of each pixel, fitted on {results['histogram_images']:,} training images",
            f"{results['histogram']:.3f}",
            end_section=True,
        )
        table.add_row("  prior", f"{results['prior']:.4f}")
        table.add_row(f"  {results['num_steps'] - 1} KL terms", f"{results['kl']:.3f}")
        table.add_row("  decoder", f"{results['decoder']:.3f}")
        num_steps, num_times = results["num_steps"], results["num_times"]
        elbo = f"full ELBO over T = {num_steps}"
        if num_times < num_steps:
            elbo = f"ELBO over T = {num_steps}, from {num_times} terms of each image"
        error = results["standard_error"]
        spread = "" if error is None else f" +- {error:.3f}"
        given = " given the class" if results.get("given_class") else ""
        bits = Text.assemble((f"{results['bits_per_dim']:.3f}", "bold"), spread)
        table.add_row(f"this model{given}, {elbo}", bits)
        return table


@dataclasses.dataclass(frozen=True)
class HeldOutLoss(Evaluation):
    """The training objective on held-out images, for chains without bits per dimension.

    The same number ranks the checkpoints: that of the first 1,024 held-out images at most.
    """

    def monitor(self, model: likelihood.TrainedModel) -> Monitor:
        """The same number."""
        return lambda params: {"held_out_loss": model.held_out_loss(params)}

    def make(self, model: likelihood.TrainedModel) -> Callable[[Any], Measurements]:
        """Returns a function with one number as its result."""
        return lambda params: Measurements(
            {
                "dataset": model.images.name,
                "images": len(model.images.held_out),
                "held_out_loss": model.held_out_loss(params),
            }
        )
