"""The `ddpm-jax` command."""

from ddpm_jax.cli.main import main as main
