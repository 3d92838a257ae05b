"""Reads the weights of Inception-v3, and checks which file they are and whether it is complete.

The public file is `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, which torch-fidelity
releases as `weights-inception-2015-12-05-6726825d.pth`: 95,628,359 bytes, TensorFlow's graph of
2015-12-05 converted tensor by tensor. Nothing is downloaded; the user gives the path. The SHA-256
of the file is compared before it is parsed.

`convert` writes the same tensors, under the same names and in the same layout, to an `.npz`, with
the SHA-256 of the original file and that of the tensors, which is compared at each load. That
detects damage and accidental edits, not tampering.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.errors import first_line
from ddpm_jax.evaluation import inception
from ddpm_jax.evaluation.features import EvaluationError, FeatureNetwork, Features
from ddpm_jax.files import check_size, file_sha256
from ddpm_jax.npz import arrays_digest, load_npz, save_npz
from ddpm_jax.weights import WeightsError
from ddpm_jax.weights.torch_files import read_state_dict

__all__ = ["PUBLIC_SHA256", "convert", "expected_shapes", "inception_network", "to_variables"]

PUBLIC_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of the public file. Its beginning is in the file's name, as torch.hub requires. Several
public projects pin the file by this digest; HyperGAN's documentation is one of them."""

_MOST_BYTES = 2**28
"""Largest size of a file in bytes; Inception-v3 in float64 has 0.7 of it."""
_SOURCE = "source"
"""The array of an `.npz` that is not a tensor: the SHA-256 of the original file."""

_BIAS = "fc.bias"
"""A tensor of the file that the network does not use: see `inception` about the logits."""

_COUNTER = ".num_batches_tracked"
"""What PyTorch's batch normalization counts while it trains."""


_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
"""Flax's names of what a layer has, and PyTorch's."""

Resize = Literal["tensorflow", "pytorch-fid", "clean-fid"]
"""How images become 299 x 299: see `ddpm_jax.evaluation.inception`."""


class Weights(NamedTuple):
    """Tensors as PyTorch has them, and the SHA-256 of the file that they were published in."""

    tensors: dict[str, np.ndarray]
    source: str


def inception_network(
    path: Path,
    *,
    resize: Resize = "tensorflow",
    other_weights: bool = False,
    sharding: jax.sharding.Sharding | None = None,
) -> FeatureNetwork:
    """Inception-v3 with the weights of a file.

    Args:
        path: the public `.pth`, or the `.npz` that `convert` made of it.
        resize: how images are resized and scaled, named after programs: "tensorflow" as TTUR,
            guided-diffusion, EDM and torch-fidelity do it, "pytorch-fid", or "clean-fid". The
            network's name and identity say which.
        other_weights: accept weights that are not the public ones; the network's name then says so.
        sharding: placement of the weights. On a mesh they should be on each device,
            `NamedSharding(mesh, PartitionSpec())`. By default JAX copies them to the images' device
            with each batch.

    Returns:
        The feature network.

    Raises:
        EvaluationError: `resize` is none of these.
        WeightsError: the file is missing, damaged or altered; a tensor is missing, unknown or of
            another shape; or the weights are not the public ones, and `other_weights` is False.
    """
    if resize not in inception.PREPARATIONS:
        names = ", ".join(map(repr, inception.PREPARATIONS))
        raise EvaluationError(f"resize is {resize!r}; it has to be one of {names}")
    preparation = inception.PREPARATIONS[resize]
    weights = _read(path, other_weights=other_weights)
    variables = jax.device_put(to_variables(weights.tensors), sharding)
    about = f"{arrays_digest(weights.tensors)} {preparation.sentence}"
    return FeatureNetwork(
        name=_name(weights.source) + preparation.suffix,
        identity=hashlib.sha256(about.encode()).hexdigest(),
        dim=inception.DIM,
        classes=inception.CLASSES,
        # The weights are an argument of the program, not 95 MB of constants in it.
        apply=jax.tree_util.Partial(_compiled(resize), variables),
        spatial_dim=inception.SPATIAL_DIM,
    )


def convert(source: Path, target: Path, *, other_weights: bool = False) -> str:
    """Writes the tensors of a `.pth` to an `.npz`, and returns a sentence for the user.

    Raises:
        WeightsError: see `inception_network`; or `target` exists, its folder does not, or its
            name does not end in ".npz".
    """
    if target.suffix != ".npz":
        raise WeightsError(f"the target is {target}; its name has to end in .npz")
    if target.exists():
        raise WeightsError(f"the target {target} exists already; remove it, or choose another")
    if not target.parent.is_dir():
        raise WeightsError(f"the target is {target}; there is no folder {target.parent}")
    weights = _read(source, other_weights=other_weights)
    try:
        save_npz(target, {**weights.tensors, _SOURCE: np.array(weights.source)})
    except OSError as error:
        raise WeightsError(f"{target} cannot be written: {error.strerror}") from error
    return f"{target}: {_name(weights.source)}, {len(weights.tensors)} tensors of {source}"


@functools.cache
def _compiled(resize: Resize) -> Callable[[Any, jax.Array], Features]:
    return jax.jit(functools.partial(inception.features, resize=resize))


@functools.cache
def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the file's tensors, in PyTorch's layout, counters left out."""

    def moved(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[-1], shape[-2], *shape[:-2]) if len(shape) > 1 else shape

    shapes = {_torch_name(path): moved(leaf.shape) for path, leaf in _variables().items()}
    return shapes | {_BIAS: (inception.CLASSES,)}


def to_variables(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What `InceptionV3().apply` wants, of tensors as PyTorch has them."""

    def moved(tensor: np.ndarray) -> np.ndarray:  # [out, in, *pixels] to [*pixels, in, out]
        return np.moveaxis(tensor, (1, 0), (-2, -1)) if tensor.ndim > 1 else tensor

    return unflatten_dict({path: moved(tensors[_torch_name(path)]) for path in _variables()})


@functools.cache
def _variables() -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    image = jax.ShapeDtypeStruct((1, inception.SIDE, inception.SIDE, 3), jnp.float32)
    variables = jax.eval_shape(inception.InceptionV3().init, jax.random.key(0), image)
    return flatten_dict(variables)


def _torch_name(path: tuple[str, ...]) -> str:
    """("params", "Mixed_5b", "branch1x1", "bn", "scale") -> "Mixed_5b.branch1x1.bn.weight"."""
    _, *layers, leaf = path
    return ".".join([*layers, _LEAVES[leaf]])


def _name(source: str) -> str:
    return "Inception-v3" if source == PUBLIC_SHA256 else f"Inception-v3, weights {source[:8]}"


def _read(path: Path, *, other_weights: bool) -> Weights:
    """The tensors of either kind of file, checked."""
    converted = _read_converted(path) if path.suffix == ".npz" else None
    source = converted.source if converted else _sha256(path)
    if source != PUBLIC_SHA256 and not other_weights:
        raise WeightsError(
            f"{path} has the SHA-256 {source}, and the public Inception-v3 of 2015-12-05 has"
            f" {PUBLIC_SHA256}; results of other weights cannot be compared with published ones."
            " --other-weights accepts them, and names the results after them"
        )
    tensors = converted.tensors if converted else read_state_dict(path, most_bytes=_MOST_BYTES)
    tensors = {name: t for name, t in tensors.items() if not name.endswith(_COUNTER)}
    _check(path, tensors)
    return Weights(tensors, source)


def _read_converted(path: Path) -> Weights:
    """The file that `convert` wrote, if it is unchanged."""
    try:
        tensors, intact = load_npz(path, most_bytes=_MOST_BYTES)
        source = tensors.pop(_SOURCE, np.array("")).item()
        if not (isinstance(source, str) and re.fullmatch("[0-9a-f]{64}", source)):
            raise ValueError("it does not state the SHA-256 of its source")
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # zip, zlib, NumPy and JSON each have their own
        raise WeightsError(
            f"{path} is not a converted Inception-v3, or it is damaged: {first_line(error)}"
        ) from error
    if not intact:
        raise WeightsError(
            f"{path} has been altered: the SHA-256 of its tensors differs; convert the weights"
            " again"
        )
    return Weights(tensors, source)


def _check(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises WeightsError, with the first tensor that is wrong, unless they are Inception's."""
    expected = expected_shapes()
    for name in sorted(expected.keys() | tensors.keys()):
        wanted = f"float32{list(expected[name])}" if name in expected else "absent"
        given = f"{tensors[name].dtype}{list(tensors[name].shape)}" if name in tensors else "absent"
        if given != wanted:
            raise WeightsError(
                f"{path} is of another network: {name[:80]} is {given} there, and {wanted} in"
                " Inception-v3"
            )


def _sha256(path: Path) -> str:
    try:
        check_size(path, _MOST_BYTES)
        return file_sha256(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not a file of weights: {error}") from error
