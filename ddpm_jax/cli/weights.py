"""`ddpm-jax weights import PATH_OR_NAME --workdir RUN`, and `ddpm-jax weights export RUN`."""

import ast
import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from ddpm_jax.cli.arguments import ParamsName, parse_options
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import RunDirectory
from ddpm_jax.experiment.exported import export_diffusers, export_file
from ddpm_jax.experiment.imported import check_new_run, write_imported_run, write_run_of_file
from ddpm_jax.files import JsonFileError, parse_json
from ddpm_jax.terminal import complain, say
from ddpm_jax.weights import Recipe, Weights, from_diffusers, from_openai

__all__ = ["run"]

_USAGE = (
    "ddpm-jax weights import PATH_OR_NAME --workdir RUN | ddpm-jax weights export RUN --format"
    " FORMAT --out PATH"
)
_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclasses.dataclass(frozen=True)
class Import:
    """Makes a run directory from the weights of another program.

    The source is a folder of diffusers, a .pt file of OpenAI's programs, a .safetensors file that
    `weights export` wrote, or the name of a model on the Hugging Face hub.
    """

    source: tyro.conf.Positional[str]
    """Path of the folder or file; or, if that does not exist, a name on the hub, such as
    google/ddpm-cifar10-32."""
    workdir: Path
    """The run directory to create: a new or an empty folder."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    options: str | None = None
    """Settings that the weights do not contain. For a .pt: the flags of its program, such as
    "--num_channels 128 --num_res_blocks 3". For a folder without a scheduler: "chain=linear
    num_steps=1000 predicts=eps", and also variance, image_size and variant."""
    raw: Path | None = None
    """File with the parameters of the last training step, beside a file of averages."""
    classes: str | None = None
    """Names of the classes: a file (JSON, or one name a line), or the names separated by commas."""
    config_file: Path | None = None
    """The config file that defines members of the config in a .safetensors. It is executed."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes the parameters of a run for other programs: for diffusers, or as one file."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    format: Literal["diffusers", "safetensors"]
    """A folder that diffusers' DDPMPipeline loads, or one file for any network, with its config."""
    out: Path
    """The folder or the .safetensors file to write; it may not exist."""
    params: ParamsName = "ema"
    """Which parameters: the moving average, or the raw ones."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Writes a run directory, or a file or folder of weights."""
    match list(arguments):
        case ["-h" | "--help"]:
            say(console, f"usage: {_USAGE}")
        case ["import", *rest]:
            _import(parse_options(Import, "ddpm-jax weights import", _joined(rest)), console)
        case ["export", *rest]:
            _export(parse_options(Export, "ddpm-jax weights export", rest), console)
        case _:
            given = repr(arguments[0]) if arguments else "nothing"
            raise UserError(f"ddpm-jax weights needs import or export, not {given}: {_USAGE}")


def _joined(arguments: Sequence[str]) -> list[str]:
    """Arguments with `--options=VALUE` for `--options VALUE`, whose value may begin with dashes."""
    joined = [*arguments]
    if "--options" in joined[:-1]:
        place = joined.index("--options")
        joined[place : place + 2] = [f"--options={joined[place + 1]}"]
    return joined


def _import(options: Import, console: Console) -> None:
    check_new_run(options.workdir)
    path = Path(options.source)
    if path.suffix == ".safetensors" and path.exists():
        _refuse(options, "a .safetensors file", "revision", "options", "classes")
        write_run_of_file(
            path,
            options.workdir,
            raw=options.raw,
            config_file=options.config_file,
            report=lambda line: say(console, line),
        )
    else:
        weights = _with_classes(_read(options, path, console), options.classes)
        for note in weights.source.get("notes", ()):
            complain(note)
        write_imported_run(weights, options.workdir, lambda line: say(console, line))
    say(console, f"{options.workdir} is a run; `ddpm-jax sample {options.workdir}` draws images")


def _read(options: Import, path: Path, console: Console) -> Weights:
    """The weights of a path, or of a name on the hub."""
    if path.is_dir():
        if RunDirectory(path).images.exists():
            raise UserError(
                f"{str(path)!r} is a run already; `ddpm-jax sample {path}` draws images"
            )
        _refuse(options, "a folder", "revision", "raw", "config_file")
        return from_diffusers(path, **_folder_options(options.options))
    if path.suffix in _TORCH and path.exists():
        _refuse(options, f"a {path.suffix} file", "revision", "config_file")
        return from_openai(path, raw=options.raw, options=options.options)
    if path.exists():
        raise UserError(
            f"{options.source!r} is neither a folder of diffusers nor a file that ends in"
            f" .safetensors or {' or '.join(_TORCH)}"
        )
    if ".." in options.source or not _HUB_NAME.fullmatch(options.source):
        raise UserError(
            f"there is no file or folder {options.source!r}, and it is not a name on the Hugging"
            " Face hub, such as google/ddpm-cifar10-32"
        )
    _refuse(options, "a name on the hub", "raw", "config_file")
    from ddpm_jax.weights.hub import download

    say(console, f"there is no path {options.source}; reading it from the Hugging Face hub")
    kwargs = _folder_options(options.options)
    folder, commit = download(options.source, options.revision, variant=kwargs.get("variant"))
    weights = from_diffusers(folder, **kwargs)
    source = {"kind": "hub", "name": options.source, "revision": options.revision, "commit": commit}
    return dataclasses.replace(weights, source=weights.source | source)


def _refuse(options: Import, what: str, *names: str) -> None:
    """Raises UserError if one of these options was given, which `what` does not take."""
    for name in names:
        if getattr(options, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is {str(getattr(options, name))!r}; {what} does not take it")


def _folder_options(text: str | None) -> dict[str, Any]:
    """Arguments of `from_diffusers` from words like `name=value`; others belong to the chain."""
    values: dict[str, Any] = {}
    for word in (text or "").split():
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--options has {word!r}; it has to be words like predicts=eps")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    own = ("predicts", "variance", "image_size", "variant")
    kwargs = {name: values.pop(name) for name in own if name in values}
    if "chain" in values:
        kwargs["chain"] = Recipe(str(values.pop("chain")), values)
    elif values:
        raise UserError(
            f"--options has {' and '.join(values)} of a chain; name the chain, as in chain=linear"
        )
    return kwargs


def _with_classes(weights: Weights, text: str | None) -> Weights:
    """The weights with the names of their classes."""
    if text is None:
        return weights
    if not weights.classes:
        raise UserError("--classes is for networks with classes; this one has none")
    names = _class_names(text)
    if len(names) != len(weights.classes):
        raise UserError(
            f"--classes has {len(names)} names; the network has {len(weights.classes)} classes"
        )
    return dataclasses.replace(weights, classes=tuple(names))


def _class_names(text: str) -> list[str]:
    path = Path(text)
    if len(text) > 255 or not path.is_file():
        if os.sep in text or path.suffix in (".txt", ".json"):
            raise UserError(f"--classes is {text!r}; there is no such file")
        return [name.strip() for name in text.split(",")]
    content = path.read_bytes()
    try:
        values = parse_json(content, repr(text))
        if isinstance(values, dict):  # {"0": ["n01440764", "tench"], ...}, as public lists have it
            values = [values[key] for key in sorted(values, key=int)]
        return [", ".join(value) if isinstance(value, list) else str(value) for value in values]
    except (JsonFileError, TypeError, ValueError):
        pass
    try:
        return [line.strip() for line in content.decode().splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"--classes is {text!r}, which is not UTF-8") from None


def _export(options: Export, console: Console) -> None:
    if os.path.lexists(options.out):
        raise UserError(f"--out is {str(options.out)!r}, which exists")
    if options.format == "safetensors" and options.out.suffix != ".safetensors":
        raise UserError(f"--out is {str(options.out)!r}; its name has to end in .safetensors")
    write = export_diffusers if options.format == "diffusers" else export_file
    line = write(RunDirectory(options.run), options.out, options.params, report=complain)
    say(console, line)
