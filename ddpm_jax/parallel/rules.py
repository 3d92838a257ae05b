"""Rules that split parameters over the axes of the mesh.

Each array of a network names its axes, as Flax metadata. A rule maps one of these names to an axis
of the mesh. The first rule that fits takes the mesh axis; it fits if the axis of the mesh divides
the length. Each device holds the whole of an array that no rule fits, and of small arrays, because
splitting those saves less than gathering them costs.

A network that names no axes is split, too: `with_largest` names the longest axis of each of its
arrays.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = [
    "LARGEST",
    "RULES",
    "SMALL",
    "Rule",
    "abstract",
    "axis_names",
    "shardings",
    "spec_of",
    "with_largest",
]

Rule = tuple[str, str]
"""A name of an array's axis, and the axis of the mesh that splits it."""
LARGEST = "largest"
"""Name of the longest axis of an array, in a network that names no axes; see `with_largest`."""
RULES: tuple[Rule, ...] = (
    # axis of the array, axis of the mesh
    ("out", "fsdp"),
    ("in", "fsdp"),
    (LARGEST, "fsdp"),
)
"""The default rules, the first one first."""
SMALL = 4096
"""Arrays of fewer numbers are not split."""


def abstract(boxed: Any, mesh: Mesh, rules: Sequence[Rule] = RULES) -> Any:
    """Shapes, dtypes and shardings of the arrays of a tree, without the arrays.

    Args:
        boxed: a tree of arrays, or of their shapes. `flax.core.meta` may box them with the names of
            their axes; an array without names is whole on each device.
        mesh: a mesh with the axes that the rules name.
        rules: pairs (axis of the array, axis of the mesh), the first one first.

    Returns:
        The same tree without boxes, of `jax.ShapeDtypeStruct` with shardings.
    """

    def of(array: Any, names: Sequence[str | None] | None = None) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec() if names is None else spec_of(names, array.shape, mesh, rules)
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    def unboxed(leaf: Any) -> Any:
        if not _is_box(leaf):
            return of(leaf)
        # For a parameter without optimizer state, optax leaves a box without an array.
        return jax.tree.map(functools.partial(of, names=leaf.names), leaf.value)

    return jax.tree.map(unboxed, boxed, is_leaf=_is_box)


def axis_names(tree: Any) -> set[str]:
    """All names of axes in a tree.

    Args:
        tree: arrays that may be boxed with the names of their axes.

    Returns:
        The set of names.
    """
    boxes = filter(_is_box, jax.tree.leaves(tree, is_leaf=_is_box))
    return {name for box in boxes for name in box.names if name is not None}


def with_largest(params: Any, mesh: Mesh) -> Any:
    """Parameters boxed so that their longest axes are split: those axes get the name `LARGEST`.

    The axis is the longest one of those whose length the mesh axis "fsdp" divides. An array without
    such an axis is not changed. Nothing is changed if the network names an axis, or if "fsdp" is 1.

    Args:
        params: a tree of arrays, boxed or not.
        mesh: a mesh with the axis "fsdp".

    Returns:
        The same tree with boxes.
    """
    count = mesh.shape["fsdp"]
    if count == 1 or axis_names(params):
        return params

    def of(array: Any) -> Any:
        lengths = [length if length % count == 0 else 0 for length in array.shape]
        if not any(lengths):
            return array
        names: list[str | None] = [None] * array.ndim
        names[lengths.index(max(lengths))] = LARGEST
        return nn.LogicallyPartitioned(array, tuple(names))

    return jax.tree.map(of, meta.unbox(params))


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, meta.Partitioned)


def shardings(tree: Any) -> Any:
    """The sharding of each array of a tree.

    Args:
        tree: arrays, or the result of `abstract`.

    Returns:
        The same tree of shardings.
    """
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def spec_of(
    names: Sequence[str | None], shape: Sequence[int], mesh: Mesh, rules: Sequence[Rule] = RULES
) -> PartitionSpec:
    """The partition of one array whose axes have these `names`.

    Example:
        >>> from ddpm_jax import parallel
        >>> mesh = parallel.make_mesh(1, 1)
        >>> tuple(spec_of(("in", "out"), (128, 512), mesh))
        (None, 'fsdp')
    """
    axes: list[str | None] = [None] * len(shape)
    if math.prod(shape) >= SMALL:
        for logical, mesh_axis in rules:
            for place, (name, length) in enumerate(zip(names, shape, strict=True)):
                fits = name == logical and axes[place] is None
                if fits and mesh_axis not in axes and length % mesh.shape[mesh_axis] == 0:
                    axes[place] = mesh_axis
    return PartitionSpec(*axes)
