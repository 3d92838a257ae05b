"""A step's program, read without running it: random draws, casts, and a proof that it is affine.

A step is traced to a jaxpr, and classes of values are followed through it: independent of x and
eps, affine in both together, or unknown. If the result is affine then the step is, in exact
arithmetic, for every x, eps and t, which no number of probes could show. The list of operations
that keep a value affine is short and on the safe side: any other makes a value unknown, and the
probes decide.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

__all__ = ["is_affine", "narrow_types", "random_draws"]

_CONSTANT, _AFFINE, _UNKNOWN = 0, 1, 2

# Affine in all their operands together. Indices and predicates are no floats: they are constant,
# or unknown and not looked up here.
_SUMS = {
    *("add", "sub", "add_any", "neg", "reduce_sum", "cumsum", "fft", "real", "imag", "complex"),
    *("reshape", "transpose", "broadcast_in_dim", "squeeze", "rev", "slice", "dynamic_slice"),
    *("gather", "scatter", "scatter-add", "dynamic_update_slice", "select_n", "concatenate"),
    *("stack", "unstack", "split", "pad", "copy", "stop_gradient", "convert_element_type"),
}
# Linear in each of two operands; one of them has to be constant.
_PRODUCTS = {"mul", "dot_general", "conv_general_dilated"}
# A program of the same operands.
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "remat", "checkpoint")


def is_affine(program: core.ClosedJaxpr) -> bool:
    """Whether it can be read off that the only result is affine in the first two arguments."""
    classes = [_AFFINE, _AFFINE] + [_CONSTANT] * (len(program.jaxpr.invars) - 2)
    return _follow(program.jaxpr, classes)[0] != _UNKNOWN


def random_draws(program: core.ClosedJaxpr) -> list[str]:
    """Names of the operations that draw random numbers or make keys, sorted."""
    names = {equation.primitive.name for equation in _equations(program.jaxpr)}
    draws = ("threefry2x32", "rng_bit_generator", "rng_uniform")
    return sorted(name for name in names if name.startswith("random_") or name in draws)


def narrow_types(program: core.ClosedJaxpr) -> tuple[str, ...]:
    """Names of the types narrower than float32 to which values of x or eps are rounded, sorted.

    Inside of loops and branches all is taken to depend on x and eps.
    """
    names: set[str] = set()
    inputs = program.jaxpr.invars
    _mark(program.jaxpr, [True, True] + [False] * (len(inputs) - 2), names)
    return tuple(sorted(names))


def _mark(jaxpr: Any, inputs: Sequence[bool], names: set[str]) -> None:
    """Adds to `names` what `jaxpr` rounds to that depends on those of its `inputs` that count."""
    marked = {variable for variable, counts in zip(jaxpr.invars, inputs, strict=True) if counts}
    for equation in jaxpr.eqns:
        if not any(atom in marked for atom in equation.invars if isinstance(atom, core.Var)):
            continue
        marked.update(equation.outvars)
        for variable in equation.outvars:
            dtype = getattr(variable.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating) and not _is_wide(dtype):
                names.add(dtype.name)
        if equation.primitive.name == "reduce_precision":
            exponent, mantissa = (
                equation.params[f"{part}_bits"] for part in ("exponent", "mantissa")
            )
            if exponent < 8 or mantissa < 23:
                names.add(f"{1 + exponent + mantissa} bits")
        operands = [isinstance(atom, core.Var) and atom in marked for atom in equation.invars]
        for inner in _programs(equation):
            same = equation.primitive.name in _CALLS and len(inner.invars) == len(operands)
            _mark(inner, operands if same else [True] * len(inner.invars), names)


def _follow(jaxpr: Any, inputs: Sequence[int]) -> list[int]:
    classes: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))

    def look_up(atom: Any) -> int:
        return _CONSTANT if isinstance(atom, core.Literal) else classes.get(atom, _CONSTANT)

    for equation in jaxpr.eqns:
        operands = [look_up(atom) for atom in equation.invars]
        results = _result(equation, operands)
        for variable, result in zip(equation.outvars, results, strict=True):
            narrow = result == _AFFINE and not _is_wide(variable.aval.dtype)
            classes[variable] = _UNKNOWN if narrow else result
    return [look_up(atom) for atom in jaxpr.outvars]


def _result(equation: Any, operands: list[int]) -> list[int]:
    name, worst = equation.primitive.name, max(operands, default=_CONSTANT)
    if worst != _AFFINE:
        return [worst] * len(equation.outvars)
    if name == "cond":
        branches = [_follow(branch.jaxpr, operands[1:]) for branch in equation.params["branches"]]
        return [max(results) for results in zip(*branches, strict=True)]
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    if name in _CALLS:
        return _follow(getattr(inner, "jaxpr", inner), operands)
    affine = (
        name in _SUMS
        or (
            name in _PRODUCTS
            and sorted(operands) == [_CONSTANT, _AFFINE]
            and _is_precise(equation.params.get("precision"))
        )
        or (name == "div" and operands == [_AFFINE, _CONSTANT])
    )
    return [_AFFINE if affine else _UNKNOWN] * len(equation.outvars)


def _is_wide(dtype: Any) -> bool:
    """Whether rounding to it is float32's or finer, and nothing worse."""
    return jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32


def _is_precise(precision: Any) -> bool:
    """Whether a product that asks for this precision does not round its operands.

    One without a precision runs at the caller's; `litmus` runs it at the highest.
    """
    each = precision if isinstance(precision, tuple) else (precision,)
    return all(one in (None, jax.lax.Precision.HIGHEST) for one in each)


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in _programs(equation):
            yield from _equations(inner)


def _programs(equation: Any) -> Iterator[Any]:
    """The programs inside of an operation: bodies of loops, branches, functions."""
    for value in jax.tree.leaves(
        tuple(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
    ):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner
