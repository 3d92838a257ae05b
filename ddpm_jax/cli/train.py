"""`ddpm-jax train CONFIG [overrides]`."""

from collections.abc import Sequence

from rich.console import Console

from ddpm_jax.cli.arguments import parse_config
from ddpm_jax.cli.results import print_results
from ddpm_jax.experiment import RunDirectory, say, train
from ddpm_jax.training import DivergenceError

__all__ = ["run"]


def run(arguments: Sequence[str], console: Console) -> None:
    """Trains, evaluates, and says where everything is."""
    config = parse_config("train", arguments)
    directory = RunDirectory(config.workdir)
    try:
        results = train(config, console)
    except KeyboardInterrupt:
        say(console, "the same command goes on from the last checkpoint")
        raise
    except DivergenceError as error:
        raise DivergenceError(
            error.step,
            f"; the checkpoints in {directory.checkpoints} are from before it. The same command"
            " would repeat it: lower --optimizer.learning-rate, with another --workdir",
        ) from None
    print_results(console, results)
    say(console, f"pictures   {directory.pictures}")
    say(console, f"metrics    {directory.metrics}")
    say(console, f"curves     tensorboard --logdir {directory.tensorboard}")
