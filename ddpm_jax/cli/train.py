"""`ddpm-jax train CONFIG [overrides]`."""

from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from ddpm_jax import training
from ddpm_jax.cli.arguments import parse_config
from ddpm_jax.cli.main import quiet_interrupts
from ddpm_jax.experiment import RunDirectory, train
from ddpm_jax.parallel import hosts, watchdog
from ddpm_jax.terminal import say

__all__ = ["run"]


def run(arguments: Sequence[str], console: Console) -> None:
    """Trains, evaluates, and prints the paths of the results."""
    with quiet_interrupts():
        config = parse_config("train", arguments)
    if config.hosts.several:
        watchdog.install()
    config.hosts.join()  # before any other use of JAX
    _keep_compiled_programs(config.compilation_cache)
    directory = RunDirectory(config.workdir)
    if not hosts.is_first():
        console = Console(quiet=True)
    try:
        results = train(config, console=console)
    except KeyboardInterrupt:
        say(console, "the same command resumes from the last checkpoint")
        raise
    except training.InterruptedTraining:
        say(console, "the same command resumes from there")
        hosts.leave()
        raise
    except training.SaveError:
        hosts.leave()
        raise
    except training.DivergenceError as error:
        hosts.leave()
        raise training.DivergenceError(
            error.step,
            f"; the checkpoints in {directory.checkpoints} are from before it. `ddpm-jax replay"
            f" {directory.path} --step {error.step}` shows what was bad. The same command would"
            " repeat it: lower --optimizer.learning-rate, and choose another --workdir",
        ) from None
    console.print(config.evaluation.table(results))
    say(console, f"pictures   {directory.pictures}")
    say(console, f"metrics    {directory.metrics}")
    if directory.tensorboard.is_dir():
        say(console, f"curves     tensorboard --logdir {directory.tensorboard}")


def _keep_compiled_programs(directory: str | None) -> None:
    """Lets JAX store compiled programs in this folder, unless a folder is set already."""
    if directory is None or jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(directory).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
