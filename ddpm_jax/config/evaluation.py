"""What is measured on held-out images when training ends."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple

from rich.table import Table
from rich.text import Text

from ddpm_jax.config.base import COUNT, Affects, Bound, ConfigError, Member, check_made
from ddpm_jax.data import ImageSet
from ddpm_jax.evaluation import likelihood
from ddpm_jax.terminal import cell

__all__ = ["BitsPerDim", "Evaluation", "HeldOutLoss", "Measurements", "measure"]


class Measurements(NamedTuple):
    """What was measured of one set of parameters."""

    results: dict[str, Any]
    """Numbers, texts and None by name, which results.json holds."""
    per_time: likelihood.PerTime | None = None
    """The term of the ELBO at each t, where there is one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Member):
    """Figures of a trained network on held-out images, and how many images at once."""

    affects: ClassVar[Affects] = Affects.REPORTS
    batch_size: Annotated[int, COUNT] = 128
    """Images in one compiled call, over all devices."""
    num_samples: Annotated[int, COUNT] = 64
    """Images in a sample grid."""

    @abc.abstractmethod
    def make(self, model: likelihood.TrainedModel) -> Callable[[Any], Measurements]:
        """`params -> figures`, of one trained model; what takes long is compiled here or there."""

    def baselines(self, images: ImageSet) -> dict[str, Any]:
        """Figures that stand beside the network's own; by default none."""
        return {}

    def table(self, results: dict[str, Any], *, params: str = "") -> Table:
        """The results for people; by default each by its name.

        Args:
            results: as `make`'s function returns them, with the `step` that they are of.
            params: which parameters they are of, for the title.
        """
        table = Table("result", "value", title=cell(f"step {results['step']} {params}".strip()))
        for name, value in results.items():
            table.add_row(cell(name), cell(str(value)))
        return table


def measure(evaluation: Evaluation, model: likelihood.TrainedModel, params: Any) -> Measurements:
    """What a member measures of one set of parameters.

    Raises:
        ConfigError: it returned something else.
    """
    measurements = evaluation.make(model)(params)
    check_made("evaluation", evaluation, measurements, Measurements)
    return measurements


@dataclasses.dataclass(frozen=True)
class BitsPerDim(Evaluation):
    """Bits per dimension by the ELBO, beside two baselines."""

    likelihood_times: Annotated[
        int | None, Bound(lambda value: value is None or value >= 2, "2 or more")
    ] = None
    """ELBO terms computed of each held-out image, spread over the chain; by default all T."""

    def check(self, config: Any) -> None:
        """There are no more terms than T."""
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

    def baselines(self, images: ImageSet) -> dict[str, Any]:
        """`evaluation.likelihood.baselines`: uniform grey levels, and a histogram of each pixel."""
        return likelihood.baselines(images)

    def table(self, results: dict[str, Any], *, params: str = "") -> Table:
        """Bits per dimension beside the two baselines, and the parts of the ELBO."""
        title = f"{results['dataset']}, {results['images']} held-out images, step {results['step']}"
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
        table.add_row(
            f"this model, {elbo}", Text.assemble((f"{results['bits_per_dim']:.3f}", "bold"), spread)
        )
        return table


@dataclasses.dataclass(frozen=True)
class HeldOutLoss(Evaluation):
    """The objective itself on held-out images; of chains or losses that have no bits per dimension.

    It is the figure that ranks checkpoints.
    """

    def make(self, model: likelihood.TrainedModel) -> Callable[[Any], Measurements]:
        """One number."""
        return lambda params: Measurements(
            {
                "dataset": model.images.name,
                "images": len(model.images.held_out),
                "held_out_loss": model.held_out_loss(params),
            }
        )
