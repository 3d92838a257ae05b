"""Floating-point operations of a function, counted from what JAX traces.

Compilers count a loop's body once, and some count nothing. Here a scan counts as often as it runs,
and what a backward pass computes again counts again. Only products of matrices and convolutions
count, as peak rates do, with two operations for each product that is added.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

__all__ = ["count_flops"]


def count_flops(function: Any, *arguments: Any) -> int:
    """FLOPs of one call; arguments are arrays or their shapes.

    Example:
        >>> import jax
        >>> from ddpm_jax.plan.flops import count_flops
        >>> a, b = jax.ShapeDtypeStruct((2, 3), "float32"), jax.ShapeDtypeStruct((3, 5), "float32")
        >>> count_flops(lambda a, b: a @ b, a, b)
        60
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    inner = [_of_jaxpr(jaxpr) for jaxpr in _inside(params)]
    match name:
        case "scan":
            return params["length"] * sum(inner)
        case "cond":
            return max(inner)
        case "shard_map":
            return params["mesh"].size * sum(inner)
    return sum(inner)


def _of_convolution(equation: Any) -> int:
    """Two for each product of numbers of the kernel and the image; padding and holes are none."""
    params = equation.params
    image, kernel = (variable.aval for variable in equation.invars)
    out, numbers = equation.outvars[0].aval, params["dimension_numbers"]
    places = 1
    for index, (axis, kernel_axis) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], strict=True)
    ):
        places *= _meetings(
            image.shape[axis],
            kernel.shape[kernel_axis],
            out.shape[numbers.out_spec[2 + index]],
            stride=params["window_strides"][index],
            low=params["padding"][index][0],
            dilation=params["lhs_dilation"][index],
            kernel_dilation=params["rhs_dilation"][index],
        )
    others = out.shape[numbers.out_spec[0]] * out.shape[numbers.out_spec[1]]
    return 2 * others * kernel.shape[numbers.rhs_spec[1]] * places // params["batch_group_count"]


def _meetings(
    image: int, kernel: int, out: int, *, stride: int, low: int, dilation: int, kernel_dilation: int
) -> int:
    """Along one axis, the pairs of output and kernel place that meet a number of the image."""
    count = 0
    for place in range(kernel):
        for start in range(out):
            at = start * stride + place * kernel_dilation - low
            count += at % dilation == 0 and 0 <= at // dilation < image
    return count


def _inside(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if isinstance(inner, core.ClosedJaxpr):
                yield inner.jaxpr
            elif isinstance(inner, core.Jaxpr):
                yield inner
