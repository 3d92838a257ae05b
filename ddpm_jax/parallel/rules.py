"""Which parameter is split over which axis of the mesh: a table, and what follows from it.

Each array of a network names its axes, as Flax metadata. A rule says which of those names goes to
which axis of the mesh. Rules are read from the top, and the first that fits takes the mesh axis:
the length has to be divisible by it. What no rule fits is whole on every device, and so is what is
small, since splitting it would save less than the gathering costs.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["RULES", "SMALL", "Rule", "abstract", "shardings", "spec_of"]

Rule = tuple[str, str]
RULES: tuple[Rule, ...] = (
    # of the array    of the mesh
    ("out", "fsdp"),
    ("in", "fsdp"),
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

    def of(leaf: Any) -> jax.ShapeDtypeStruct:
        named = isinstance(leaf, meta.Partitioned)
        array = leaf.value if named else leaf
        spec = spec_of(leaf.names, array.shape, mesh, rules) if named else PartitionSpec()
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(of, boxed, is_leaf=lambda leaf: isinstance(leaf, meta.Partitioned))


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
