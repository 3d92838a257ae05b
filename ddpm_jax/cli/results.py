"""The final figures as a table for people."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddpm_jax.terminal import cell

__all__ = ["likelihood_table", "print_results"]


def print_results(console: Console, results: dict[str, Any]) -> None:
    """Bits per dimension beside the two baselines, and the parts of the ELBO."""
    console.print(likelihood_table(results))


def likelihood_table(results: dict[str, Any], *, params: str = "") -> Table:
    """The same as a table, of the parameters of this name."""
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
