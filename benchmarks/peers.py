r"""Compares speed and memory with those of diffusers.

The part "network" gives both the same network (`diffusers.UNet2DModel` with the settings of a
config, and with this library's parameters) and times, by turns in one process:

    train step       draws of t and noise, forward, backward, clip, Adam, average
    forward pass     the prediction, dropout off
    DDIM             as each library's users draw: `samplers.sample`, `DDIMPipeline`
    DPM-Solver++     the same, with `DPMSolverMultistepScheduler`
    bits/dim         the whole ELBO over all T of a chain: `likelihood.bits_per_dim`, and a plain
                     PyTorch loop

PyTorch runs eagerly with as many threads as there are cores, and by `torch.compile` with
that option. On a GPU its arrays are channels_last, bfloat16 is by autocast, and every run ends with
`torch.cuda.synchronize`. Memory at the peak is that of one process for each library and case.

The part "noising" times `q_sample` and `DDPMScheduler.add_noise`, and compares the tables of both
libraries with float64.

What is not measured: reading data, several devices, networks with classes or a learned variance,
and the quality of samples, for which tests compare the samplers step by step. The chain of bits/dim
is shorter than the config's where --chain-steps says so: its time grows as T.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax

from benchmarks import columns, network_cases, peer_network, peer_noising, peer_torch
from benchmarks.network_cases import WHATS
from benchmarks.peer_torch import ENVIRONMENT
from benchmarks.results import Row
from benchmarks.settings import Common, Say, check_values, parse_sizes
from ddpm_jax.config import load
from ddpm_jax.errors import UserError

__all__ = ["ENVIRONMENT", "PACKAGES", "Settings", "notes", "run", "tables"]

PACKAGES = ("torch", "diffusers")
SMALL = 1_000_000
"""Parameters of a network that `torch.compile` is done with in a minute on a CPU."""


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """What `python -m benchmarks peers` takes."""

    parts: tuple[Literal["network", "noising"], ...] = ("network", "noising")
    """See above."""
    networks: tuple[Path, ...] = (Path("configs/digits.py"), Path("configs/cifar10.py"))
    """Configs of the networks; no dataset has to be there."""
    network_batches: tuple[int, ...] = (64, 8)
    """Images of a train step and of a forward pass, one number for each network."""
    sample_batches: tuple[int, ...] = (64, 4)
    """Images that are drawn, and images of bits/dim, one number for each network."""
    sample_steps: int = 10
    """Steps of the samplers; their time grows as these."""
    chain_steps: tuple[int, ...] = (250, 10)
    """T of the chain of bits/dim, one number for each network."""
    network_repeats: int = 20
    """Runs of each case of a network that count, at most."""
    network_seconds: float = 5.0
    """Time for the runs of each case of a network; there are at least three."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the networks' computation; by default bfloat16 on a GPU and float32 elsewhere."""
    compile: Literal["small", "all", "none"] = "small"
    """Networks that `torch.compile` is tried with: those under a million parameters and, on a GPU,
    all of them; on a CPU it takes minutes for large ones."""
    memory: Literal["steps", "all", "none"] = "steps"
    """Cases whose memory at the peak is measured: train step and forward pass, all, or none. Each
    takes two processes, which import and compile."""
    sizes: tuple[str, ...] = ("8x8x1", "32x32x3", "64x64x3")
    """Images of the part "noising", height x width x channels."""
    batches: tuple[int, ...] = (128,)
    """Images at once of the part "noising"."""
    config: Path = Path("configs/digits.py")
    """Of the train step of the part "noising"."""
    batch: int = 64
    """Images of that train step."""


def run(settings: Settings, say: Say) -> Iterator[Row]:
    """Yields the rows of both libraries as they are measured.

    Raises:
        UserError: settings that cannot work, or the libraries are not installed.
    """
    check_values(settings, distinct=("parts", "networks", "sizes", "batches"))
    sizes, config = parse_sizes(settings.sizes), load(settings.config)
    networks = _networks(settings)
    libraries = peer_torch.import_libraries("peers")
    peer_torch.torch_device(libraries.torch)
    if "network" in settings.parts:
        how = dataclasses.replace(
            settings, repeats=settings.network_repeats, seconds=settings.network_seconds
        )
        yield from peer_network.measured(libraries, networks, how, say)
    if "noising" in settings.parts:
        yield from peer_noising.measured(
            libraries, sizes, settings.batches, config, settings.batch, settings, say
        )


def _networks(settings: Settings) -> Sequence[peer_network.Network]:
    for name in ("network_batches", "sample_batches", "chain_steps"):
        count, option = len(getattr(settings, name)), "--" + name.replace("_", "-")
        if count != len(settings.networks):
            raise UserError(
                f"--networks has {len(settings.networks)} entries and {option} {count}; each"
                " network has its own"
            )
    on_gpu = jax.devices()[0].platform == "gpu"
    dtype = settings.dtype or ("bfloat16" if on_gpu else "float32")
    networks = []
    for path, batch, sample_batch, chain_steps in zip(
        settings.networks,
        settings.network_batches,
        settings.sample_batches,
        settings.chain_steps,
        strict=True,
    ):
        config = network_cases.with_dtype(load(path), dtype)
        peer_torch.check_network(config, network_cases.shape_of(config))
        num_steps = config.schedule.num_steps
        if settings.sample_steps > num_steps:
            raise UserError(
                f"--sample-steps is {settings.sample_steps}; the chain of {path} has {num_steps}"
            )
        count = network_cases.count(network_cases.abstract_params(config))
        compiles = settings.compile == "all" or (
            settings.compile == "small" and (on_gpu or count < SMALL)
        )
        networks.append(
            peer_network.Network(
                path.stem,
                config,
                batch,
                sample_batch,
                settings.sample_steps,
                chain_steps,
                compiles,
                {"steps": WHATS[:2], "all": WHATS, "none": ()}[settings.memory],
            )
        )
    return networks


def tables(rows: list[Row]) -> list[tuple[list[Row], columns.Columns]]:
    """One for each part."""
    network, noising = _parts(rows)
    parts = [(network, peer_network.COLUMNS), (noising, peer_noising.COLUMNS)]
    return [(group, headers) for group, headers in parts if group]


def notes(rows: list[Row]) -> list[str]:
    """What the numbers say."""
    network, noising = _parts(rows)
    return [
        *(peer_network.notes(network) if network else []),
        *(peer_noising.notes(noising) if noising else []),
    ]


def _parts(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """What is of a network, and the rest."""
    of_network = [row for row in rows if "network" in row.case]
    return of_network, [row for row in rows if "network" not in row.case]
