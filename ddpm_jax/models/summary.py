"""A network as a table: its layers, their shapes, parameters and FLOPs."""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from ddpm_jax.models.interface import Wrapper, init_params

__all__ = ["Layer", "layer_table"]


class Layer(NamedTuple):
    """One row of the table."""

    name: str
    """Name of the layer in the network."""
    kind: str
    """Name of its class."""
    output: tuple[int, ...]
    """Shape of the output for one image."""
    parameters: int
    """Number of parameters."""
    flops: int
    """FLOPs of the forward pass for one image, as XLA counts them."""


def layer_table(
    model: nn.Module, image_shape: tuple[int, ...], *, labelled: bool = False
) -> list[Layer]:
    """The layers of a network with their shapes, parameters and FLOPs.

    The network is traced and not computed. FLOPs are XLA's count for the lowered layer; what the
    network computes between its layers is in the last row only.

    Args:
        model: the network. For a wrapper the rows are those of the inner network, except the last.
        image_shape: (height, width, channel).
        labelled: whether the network gets a label.

    Returns:
        A row for each direct child in the order in which they run, and a last row "total".
    """
    x_t = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    labels: dict[str, Any] = {"labels": jnp.zeros(1, jnp.int32)} if labelled else {}
    key = jax.eval_shape(lambda: jax.random.key(0))
    init = functools.partial(init_params, model, image_shape=image_shape, labelled=labelled)
    variables = meta.unbox(jax.eval_shape(init, key))
    calls: list[tuple[nn.Module, Any, Any, Any]] = []
    inner: Any = model
    parents: tuple[str, ...] = ()
    while isinstance(inner, Wrapper):
        inner, parents = inner.network, (*parents, "network")

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        path = context.module.path
        if context.method_name == "__call__" and path and path[:-1] == parents:
            calls.append((context.module, args, kwargs, output))
        return output

    with nn.intercept_methods(record):
        output = jax.eval_shape(functools.partial(model.apply, **labels), variables, x_t, t)
    params, (output, *_) = variables["params"], jax.tree.leaves(output)
    own = functools.reduce(lambda tree, name: tree.get(name, {}), parents, params)
    rows = [_row(module, own.get(module.name, {}), *call) for module, *call in calls]
    return [*rows, _row(model, params, (x_t, t), labels, output)._replace(name="total")]


def _row(module: nn.Module, params: Any, args: Any, kwargs: Any, output: Any) -> Layer:
    detached = module.clone(parent=None)
    arrays = [argument for argument in args if hasattr(argument, "shape")]
    rest = [argument for argument in args if not hasattr(argument, "shape")]
    abstract = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]

    def forward(params: Any, *arrays: jax.Array) -> Any:
        return detached.apply({"params": params}, *arrays, *rest, **kwargs)

    cost = jax.jit(forward).lower(params, *abstract).cost_analysis()
    return Layer(
        name=module.name or "",
        kind=type(module).__name__,
        output=tuple(output.shape[1:]),
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        flops=round((cost or {}).get("flops", 0)),
    )
