"""Writes a sampler's program to a file, with a README that explains how to call it.

`jax.export.deserialize` reads `sampler.bin`. `README.md` (or `sampler.README.md`, if there is a
README already) has the arguments, the results and an example that needs only JAX and FlatBuffers.
Parameters that are not in the program are in `sampler.safetensors`.
"""

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import config as configs
from ddpm_jax.errors import UserError, require
from ddpm_jax.experiment.experiment import Experiment
from ddpm_jax.experiment.sampler_program import (
    PLATFORMS,
    Placement,
    named_params,
    sampler_program,
)
from ddpm_jax.experiment.sampler_readme import sampler_readme
from ddpm_jax.files import file_sha256, whole_file
from ddpm_jax.weights import LazyArray
from ddpm_jax.weights.safetensors_files import write_safetensors

__all__ = ["SamplerFiles", "export_sampler", "sampler_files"]


class SamplerFiles(NamedTuple):
    """The files of an exported sampler."""

    program: Path
    """The program."""
    readme: Path
    """The README."""
    params: Path | None
    """Parameters beside the program; None if they are inside."""


def sampler_files(
    out: Path, parameters: Placement = "inside", argument: str = "out"
) -> SamplerFiles:
    """The files that `export_sampler` will write; checks that none of them exists.

    Args:
        out: path of the program; its name ends in .bin.
        parameters: "inside" the program, or in a file "beside" it.
        argument: name of `out` in the sentence.

    Returns:
        The paths.

    Raises:
        UserError: `out` has another ending, its folder does not exist, or a file exists already.
    """
    name = f"{argument} is {str(out)!r}"
    if out.suffix != ".bin":
        raise UserError(f"{name}; its name has to end in .bin")
    if not out.parent.is_dir():
        raise UserError(f"{name}; there is no folder {out.parent}")
    readme = out.with_name("README.md")
    if _is_there(readme):
        readme = out.with_name(f"{out.stem}.README.md")
    params = out.with_suffix(".safetensors") if parameters == "beside" else None
    files = SamplerFiles(out, readme, params)
    for path in files:
        if path is not None and _is_there(path):
            raise UserError(f"{name}; {str(path)!r} exists already, and is not overwritten")
    return files


def export_sampler(
    experiment: Experiment,
    params: Any,
    out: Path,
    *,
    sampler: configs.Sampler,
    label: int | None = None,
    parameters: Placement = "inside",
    platforms: Sequence[str] = PLATFORMS,
    origin: str,
) -> SamplerFiles:
    """Writes a sampler as a program that needs only JAX: all of its files or none.

    Args:
        experiment: with the process and the network.
        params: variables of the network.
        out: path of the program; its name ends in .bin. The other files are in the same folder.
        sampler: the sampler.
        label: class of all images; by default the classes are an argument of the program, for a
            network with classes.
        parameters: "inside" the program, or "beside" it as the first argument of each call.
        platforms: some of "cpu", "cuda", "rocm" and "tpu". None of them has to be here.
        origin: where the parameters are from, for the README.

    Returns:
        The paths of the files.

    Raises:
        UserError: see `sampler_files` and `sampler_program`; or the files cannot be written.
    """
    require("ddpm-jax export", "train", "flatbuffers")
    files = sampler_files(out, parameters)
    flat = named_params(params)
    arrays = _lazy(flat) if files.params is not None else {}
    program = sampler_program(
        experiment,
        params,
        sampler=sampler,
        label=label,
        parameters=parameters,
        platforms=platforms,
    )
    content = bytes(program.serialize())
    hashes = {files.program.name: hashlib.sha256(content).hexdigest()}
    # The program gets its name last, so that it never exists without its parameters.
    with _all_or_none(files), whole_file(files.program) as file:
        file.write(content)
        if files.params is not None:
            write_safetensors(files.params, arrays, {"format": "ddpm_jax", "origin": origin})
            hashes[files.params.name] = file_sha256(files.params)
        text = sampler_readme(
            experiment,
            program,
            sampler=sampler,
            label=label,
            hashes=hashes,
            origin=origin,
            num_params=sum(leaf.size for leaf in flat.values()),
        )
        with whole_file(files.readme) as page:
            page.write(text.encode())
    return files


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


@contextlib.contextmanager
def _all_or_none(files: SamplerFiles) -> Iterator[None]:
    """Removes the files that were written before an error; none existed at the start."""
    try:
        yield
    except BaseException as error:
        for path in files:
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink()
        if isinstance(error, OSError):
            raise UserError(
                f"{str(files.program)!r} cannot be written: {error.strerror}"
            ) from error
        raise


def _lazy(flat: dict[str, Any]) -> dict[str, LazyArray]:
    other = {name: str(leaf.dtype) for name, leaf in flat.items() if leaf.dtype != np.float32}
    if other:
        name, dtype = next(iter(other.items()))
        raise UserError(
            f"parameters is 'beside', for which all have to be float32; {name} is {dtype}, so take"
            " 'inside'"
        )
    return {
        name: LazyArray(tuple(leaf.shape), functools.partial(np.asarray, leaf))
        for name, leaf in flat.items()
    }
