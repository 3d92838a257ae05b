"""The page beside a sampler's program: what it takes, what it gives, and an example that runs."""

import json
from collections.abc import Mapping

import jax
import jax.export

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax.data import ImageSpec
from ddpm_jax.experiment.experiment import Experiment
from ddpm_jax.terminal import escape

__all__ = ["sampler_readme"]

_MOST_CLASSES = 20
"""The page lists at most so many classes."""

_COMPATIBILITY = "https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees"


def sampler_readme(
    experiment: Experiment,
    program: jax.export.Exported,
    *,
    sampler: configs.Sampler,
    label: int | None,
    hashes: Mapping[str, str],
    origin: str,
    num_params: int,
) -> str:
    """The text, in Markdown.

    Args:
        experiment: that the program is of.
        program: see `sampler_program`.
        sampler: in the program.
        label: the class of all images, if there is one.
        hashes: the SHA-256 of the program's file and, if parameters are beside it, of theirs.
        origin: where the parameters are from.
        num_params: how many they are.
    """
    file, *beside = hashes
    spec = experiment.spec
    height, width, channels = spec.shape
    takes_labels = bool(experiment.config.network.classes) and label is None
    call = ", ".join(
        [*(["params"] if beside else []), "key", "index", *(["labels"] if takes_labels else [])]
    )
    rows = {
        "From": origin,
        "Network": f"{type(experiment.config.network).__name__} with {num_params:,} parameters,"
        f" {f'in {beside[0]}' if beside else f'inside {file}'}",
        "Sampler": f"{sampler}",
        "Steps": f"{len(sampler.times(experiment.process))}, of a chain of"
        f" {experiment.process.num_steps}",
        "Images": f"{height} x {width}, {channels} channel{'s' if channels > 1 else ''}, grey"
        f" levels 0 to {spec.levels - 1}",
        "Platforms": ", ".join(program.platforms),
    }
    if label is not None:
        rows["Class"] = _class(spec, label)
    elif takes_labels:
        rows["Classes"] = _classes(spec)
    shape = f"[b, {height}, {width}, {channels}]"
    follows = "key, its number and its class" if takes_labels else "key and its number"
    sums = "".join(f"    {digest}  {escape(name)}\n" for name, digest in hashes.items())
    return f"""# {escape(file)}

The sampler of a trained diffusion model as one program, which draws images. It was written by
ddpm_jax {ddpm_jax.__version__} (`ddpm-jax export`). It runs without ddpm_jax, on what
`pip install jax flatbuffers` installs.

{_table(rows)}

## Arguments

`call({call})`, in this order:

{_arguments(beside, takes_labels)}

## Result

Grey levels from 0 to {spec.levels - 1}, `uint8 {shape}`.

An image follows from its {follows}.
With the key of a seed S it is the image that `ddpm-jax sample RUN --seed S` draws with this sampler
on the same platform. Another batch size or compilation may round in another way.

## Example

```python
{_example(file, beside, spec, takes_labels, call)}```

JAX compiles the program once for each batch size.

## Versions of JAX

Written by JAX {jax.__version__}, calling convention {program.calling_convention_version}.
JAX promises that its later versions read it for six months, and those of the three weeks before:
{_COMPATIBILITY}.
After that, use JAX {jax.__version__}, or export the run again.

## SHA-256

{sums}"""


def _table(rows: Mapping[str, str]) -> str:
    lines = [
        f"| {name} | {escape(value).replace('|', chr(92) + '|')} |" for name, value in rows.items()
    ]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _class(spec: ImageSpec, label: int) -> str:
    names = spec.classes or ()
    return f"{label} ({names[label]})"


def _classes(spec: ImageSpec) -> str:
    trained = spec.trained_classes
    if len(trained) <= _MOST_CLASSES:
        return ", ".join(_class(spec, label) for label in trained)
    return f"{_class(spec, trained[0])} to {_class(spec, trained[-1])}, {len(trained)} of them"


def _arguments(beside: list[str], takes_labels: bool) -> str:
    lines = []
    if beside:
        lines.append(f"- `params`: the arrays of `{escape(beside[0])}`, a dict of float32 arrays.")
    lines += [
        '- `key`: `uint32 [2]`, `jax.random.key_data(jax.random.key(S, impl="threefry2x32"))` of'
        " a seed S.",
        "- `index`: `int32 [b]`, the numbers of the images. The batch has any size b >= 1.",
    ]
    if takes_labels:
        lines.append(
            "- `labels`: `int32 [b]`, the class of each image. An image is black if the network"
            " was not trained on its class."
        )
    return "\n".join(lines)


def _example(file: str, beside: list[str], spec: ImageSpec, takes_labels: bool, call: str) -> str:
    """A script that draws 16 images in the folder of the program."""
    lines = ["import jax", "import jax.export", "import numpy as np", ""]
    lines += [
        f'with open({json.dumps(file)}, "rb") as file:',
        "    sampler = jax.export.deserialize(bytearray(file.read()))",
        "",
    ]
    if beside:
        lines = [
            "import json",
            "",
            *lines,
            *_READING.format(json.dumps(beside[0])).splitlines(),
            "",
        ]
    lines += [
        'key = jax.random.key_data(jax.random.key(0, impl="threefry2x32"))',
        "index = np.arange(16, dtype=np.int32)",
    ]
    if takes_labels:
        trained = spec.trained_classes
        if trained == tuple(range(len(trained))):
            lines.append(f"labels = index % {len(trained)}")
        else:
            lines.append(f"classes = np.array({[*trained]}, np.int32)")
            lines.append("labels = classes[index % len(classes)]")
    lines += [
        f"images = np.asarray(jax.jit(sampler.call)({call}))",
        "print(images.shape, images.dtype, images.min(), images.max())",
    ]
    return "\n".join(lines) + "\n"


_READING = """\
# A .safetensors file: the length of a header, the header in JSON, and the numbers.
with open({}, "rb") as file:
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    params = {{
        name: np.fromfile(file, "<f4", int(np.prod(entry["shape"]))).reshape(entry["shape"])
        for name, entry in header.items()
    }}
"""
