"""Three forms of one train step on a mesh: `jit`, `shard_map`, `pmap`.

A step is `(state, batch) -> (state, metrics)`. Except for the gradient its arithmetic is the same
for the whole batch and for one device's part. A form therefore defines three things: how a gradient
is computed over the mesh, how a host's images become the step's batch, and how the step is
compiled.

jit
    The step sees the whole batch and all parameters. The compiler decides what is summed over
    devices, and where; bfloat16 is an exception, see below. This is the default.

shard_map
    The gradient sees one device's part. This module gathers split parameters before it and averages
    gradients after it, in the chosen dtype. Everything else is as under jit.

pmap
    The whole step sees one device's part of the batch and all parameters. Nothing can be split over
    "fsdp", and one process has all devices.

The sum over devices: each device has the mean gradient of its share. The mean over devices follows
in float32, or in bfloat16, which halves the traffic and rounds to 8 bits. A layer that computes in
bfloat16 has a weight gradient in bfloat16, which JAX then widens to float32; but under jit the
compiler sums over devices before it widens. Therefore "jit" computes the gradient as "shard_map"
does if the network computes in bfloat16 and the sum has to be in float32. On one device nothing is
summed, and a step is compiled as it is written.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.errors import UserError
from ddpm_jax.parallel.mesh import AXES, BATCH, replicated, split_by_batch

__all__ = [
    "Form",
    "Gradient",
    "Reduction",
    "jit_form",
    "one_device",
    "pmap_form",
    "shard_map_form",
]

Reduction = Literal["float32", "bfloat16"]
"""Dtype in which gradients are averaged over devices."""
Gradient = Callable[[Any, Any, Any], tuple[Any, Any]]
"""`(params, batch, drawn) -> (values [batch], gradient)`. The gradient is a mean over the examples.
The batch, the random draws for it and the values are pytrees of arrays `[batch, ...]`."""

_DEVICE = "device"
"""The axis that `pmap` maps over."""


class Form(NamedTuple):
    """How a step runs on a mesh, as five functions."""

    spread: Callable[[Gradient], Gradient]
    """Turns a gradient of some examples into the gradient of the whole batch. The result takes the
    batch as the step sees it, and the draws and values of all examples."""
    batch_size: Callable[[jax.Array], int]
    """Size of the whole batch, from the part that the step sees."""
    place: Callable[[Any], Any]
    """Places a process's share of a batch, a pytree of arrays, on the devices for the step."""
    abstract_batch: Callable[[Any], Any]
    """The same for a whole batch of `jax.ShapeDtypeStruct`."""
    lower: Callable[[Callable[..., Any], Any, Any], jax.stages.Lowered]
    """`(step, state, batch) -> lowered step`, of arrays or of their shapes. Compile the result to
    get the step. The state is donated."""


def one_device() -> Form:
    """The form without a mesh, for one device.

    Returns:
        A form that changes nothing, and compiles with `jax.jit`.
    """
    return Form(
        spread=lambda gradient: gradient,
        batch_size=_leading,
        place=lambda batch: jax.tree.map(jnp.asarray, batch),
        abstract_batch=lambda batch: batch,
        lower=lambda step, state, batch: jax.jit(step, donate_argnums=0).lower(state, batch),
    )


def jit_form(
    mesh: Mesh, state: Any, reduction: Reduction = "float32", *, compute: Reduction = "float32"
) -> Form:
    """The form "jit": the compiler inserts the communication; see the module.

    Args:
        mesh: the devices.
        state: sharding of each array of the state; its `params` say how parameters are split.
        reduction: dtype in which gradients are averaged over devices.
        compute: dtype in which the network computes.

    Returns:
        The form.
    """
    if (compute, reduction) == ("bfloat16", "float32"):
        return shard_map_form(mesh, state, reduction)
    return _unless_alone(_jit(mesh, state), mesh)


def shard_map_form(mesh: Mesh, state: Any, reduction: Reduction = "float32") -> Form:
    """The form "shard_map": gathers and averages are explicit; see the module.

    Args:
        mesh: the devices.
        state: sharding of each array of the state; its `params` say how parameters are split.
        reduction: dtype in which gradients are averaged over devices.

    Returns:
        The form.
    """
    specs = jax.tree.map(lambda sharding: sharding.spec, state.params)

    def spread(gradient: Gradient) -> Gradient:
        def of_one_device(params: Any, images: Any, drawn: Any) -> tuple[Any, Any]:
            values, grads = gradient(jax.tree.map(_gathered, params, specs), images, drawn)
            narrow = functools.partial(_mean, mesh=mesh, reduction=reduction)
            return values, jax.tree.map(narrow, grads, specs)

        return jax.shard_map(
            of_one_device, mesh=mesh, in_specs=(specs, BATCH, BATCH), out_specs=(BATCH, specs)
        )

    return _unless_alone(_jit(mesh, state)._replace(spread=spread), mesh)


def _unless_alone(form: Form, mesh: Mesh) -> Form:
    """The form; on one device it averages nothing."""
    return form if mesh.size > 1 else form._replace(spread=lambda gradient: gradient)


def _jit(mesh: Mesh, state: Any) -> Form:
    whole, split, batch = replicated(mesh), state.params, split_by_batch(mesh)

    def spread(gradient: Gradient) -> Gradient:
        def over_the_mesh(params: Any, images: Any, drawn: Any) -> tuple[Any, Any]:
            # Without this the compiler might split activations in the way of the parameters.
            params = jax.lax.with_sharding_constraint(params, whole)
            drawn = jax.lax.with_sharding_constraint(drawn, batch)
            values, grads = gradient(params, images, drawn)
            return values, jax.lax.with_sharding_constraint(grads, split)

        return over_the_mesh

    return one_device()._replace(
        spread=spread,
        place=lambda share: jax.make_array_from_process_local_data(batch, share),
        abstract_batch=lambda whole: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=batch), whole
        ),
        lower=lambda step, *args: jax.jit(
            step, in_shardings=(state, batch), out_shardings=(state, whole), donate_argnums=0
        ).lower(*args),
    )


def pmap_form(mesh: Mesh, reduction: Reduction = "float32") -> Form:
    """The form "pmap": one process, and all parameters on each device; see the module.

    Args:
        mesh: the devices.
        reduction: dtype in which gradients are averaged over devices.

    Returns:
        The form.

    Raises:
        UserError: the mesh splits parameters, or there are several processes.
    """
    if mesh.shape["fsdp"] > 1:
        raise UserError(
            f"mesh.fsdp is {mesh.shape['fsdp']}; it has to be 1 for the form 'pmap', which keeps"
            " all parameters on each device, or take 'jit' or 'shard_map'"
        )
    processes = len({device.process_index for device in mesh.devices.flat})
    if processes > 1:
        raise UserError(
            f"mesh is pmap, which runs in one process, and there are {processes}; take jit or"
            " shard-map"
        )
    devices = list(mesh.devices.flat)

    def spread(gradient: Gradient) -> Gradient:
        def of_one_device(params: Any, images: Any, drawn: Any) -> tuple[Any, Any]:
            count = _leading(images)
            first = jax.lax.axis_index(_DEVICE) * count
            own = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, count), drawn)
            values, grads = gradient(params, images, own)
            mean = jax.tree.map(lambda grad: _average(grad, (_DEVICE,), reduction), grads)
            return jax.lax.all_gather(values, _DEVICE, tiled=True), mean

        return of_one_device

    leading = NamedSharding(mesh, PartitionSpec(AXES))

    def by_device(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
        return count, shape[0] // count, *shape[1:]

    def place(share: Any) -> Any:
        local = len(mesh.local_devices)
        return jax.make_array_from_process_local_data(
            leading, jax.tree.map(lambda leaf: leaf.reshape(by_device(leaf.shape, local)), share)
        )

    def abstract_batch(whole: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                by_device(leaf.shape, len(devices)), leaf.dtype, sharding=leading
            ),
            whole,
        )

    form = Form(
        spread=spread,
        batch_size=lambda batch: _leading(batch) * len(devices),
        place=place,
        abstract_batch=abstract_batch,
        lower=lambda step, *args: jax.pmap(
            step,
            axis_name=_DEVICE,
            in_axes=(None, 0),
            out_axes=None,
            donate_argnums=0,
            devices=devices,
        ).lower(*args),
    )
    return _unless_alone(form, mesh)


def _leading(batch: Any) -> int:
    """Examples in a pytree of arrays `[batch, ...]`."""
    return int(jax.tree.leaves(batch)[0].shape[0])


def _gathered(param: jax.Array, spec: PartitionSpec) -> jax.Array:
    """The whole of a parameter, as a value that varies over devices, and so does its gradient.

    If the value were shared, differentiation itself would sum over devices, and the mean of that
    would be a sum.
    """
    if "fsdp" not in spec:
        return jax.lax.pcast(param, AXES, to="varying")
    whole = jax.lax.all_gather(param, "fsdp", axis=spec.index("fsdp"), tiled=True)
    return jax.lax.pcast(whole, "data", to="varying")


def _mean(grad: jax.Array, spec: PartitionSpec, *, mesh: Mesh, reduction: Reduction) -> jax.Array:
    """The mean over all devices; for a split parameter, the part that this device holds."""
    if "fsdp" not in spec:
        return _average(grad, AXES, reduction)
    part = jax.lax.psum_scatter(
        grad.astype(reduction), "fsdp", scatter_dimension=spec.index("fsdp"), tiled=True
    )
    return _average(part, ("data",), reduction).astype(grad.dtype) / mesh.shape["fsdp"]


def _average(grad: jax.Array, axes: tuple[str, ...], reduction: Reduction) -> jax.Array:
    return jax.lax.pmean(grad.astype(reduction), axes).astype(grad.dtype)
