"""Which parameter is split over which axis of the mesh: a table, and what follows from it.

Each array of a network names its axes, as Flax metadata. A rule says which of those names goes to
which axis of the mesh. Rules are read from the top, and the first that fits takes the mesh axis:
the length has to be divisible by it. What no rule fits is whole on every device, and so is what is
small, since splitting it would save less than the gathering costs.

A network that names no axes at all is split, too: `with_largest` names the longest axis of each of
its arrays.
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
LARGEST = "largest"
"""The name of the longest axis of an array of a network that names none."""
RULES: tuple[Rule, ...] = (
    # of the array    of the mesh
    ("out", "fsdp"),
    ("in", "fsdp"),
    (LARGEST, "fsdp"),
)
SMALL = 4096
"""Arrays of fewer numbers are not split."""


def abstract(boxed: Any, mesh: Mesh, rules: Sequence[Rule] = RULES) -> Any:
    """Shapes, dtypes and shardings of a tree, whose arrays may be boxed with the names of axes.

    The tree that comes back has no boxes. Arrays without names are whole on every device.

    Args:
        boxed: arrays, or their shapes, as `flax.core.meta` boxes them.
        mesh: with the axes that the rules name.
        rules: see above.
    """

    def of(array: Any, names: Sequence[str | None] | None = None) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec() if names is None else spec_of(names, array.shape, mesh, rules)
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    def unboxed(leaf: Any) -> Any:
        if not _is_box(leaf):
            return of(leaf)
        # Of a parameter that an optimizer has nothing for, optax leaves a box without an array.
        return jax.tree.map(functools.partial(of, names=leaf.names), leaf.value)

    return jax.tree.map(unboxed, boxed, is_leaf=_is_box)


def axis_names(tree: Any) -> set[str]:
    """All names of axes in a tree."""
    boxes = filter(_is_box, jax.tree.leaves(tree, is_leaf=_is_box))
    return {name for box in boxes for name in box.names if name is not None}


def with_largest(params: Any, mesh: Mesh) -> Any:
    """The parameters, each in a box that calls its longest axis `LARGEST`.

    That is the longest of those that "fsdp" divides; an array without one stays as it is, and so
    do all where the network names an axis of one, or where nothing is split.
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
    """Where each array of a tree lives; of what `abstract` makes, or of arrays."""
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
