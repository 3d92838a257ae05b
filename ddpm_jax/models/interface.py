"""The interface of a network: `init` and `apply`, and a call with at least `x_t` and `t`."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.errors import UserError

__all__ = ["Wrapper", "init_params", "innermost", "network_function", "optional_arguments"]

_OPTIONAL = ("train", "keys", "labels")


class Wrapper(nn.Module):
    """A network around another one.

    Its call takes `train`, `keys` and `labels`, and passes on those that the inner network takes.
    """

    network: nn.Module
    """The inner network."""


def innermost(model: nn.Module) -> nn.Module:
    """The network inside all wrappers."""
    while isinstance(model, Wrapper):
        model = model.network
    return model


def init_params(
    model: nn.Module, key: Key[Array, ""], image_shape: Sequence[int], *, labelled: bool = False
) -> Any:
    """The initial variables of a network, each boxed with the names of its axes.

    The function is pure: `jax.jit` with output shardings creates each array on its own devices.
    `flax.core.meta.unbox` removes the boxes; training, checkpoints and `model.apply` use variables
    without boxes.

    Args:
        model: a Flax module.
        key: a typed key.
        image_shape: (height, width, channel).
        labelled: whether the network gets a label.

    Returns:
        The variables, as `model.init` returns them.

    Raises:
        UserError: the network gets a label and does not take one.
    """
    x_t, t = jnp.zeros((1, *image_shape), jnp.float32), jnp.zeros((1,), jnp.int32)
    labels = jnp.zeros((1,), jnp.int32) if labelled else None
    kwargs = optional_arguments(model, train=False, keys=None, labels=labels)
    return model.init(key, x_t, t, **kwargs)


def network_function(model: nn.Module) -> Callable[..., Any]:
    """A network as a function of its parameters, with the same arguments for all networks.

    The network gets those of `train`, `keys` and `labels` that its `__call__` takes. If it does not
    take `keys`, it gets one key of the batch as its rng stream "dropout" in training.

    Args:
        model: a Flax module.

    Returns:
        A function `(params, x_t, t, train=False, keys=None, labels=None) -> output`. It raises a
        UserError if it gets labels that the network does not take.
    """
    takes_keys = "keys" in _taken(model)

    def apply(
        params: Any,
        x_t: Float[Array, "batch *data"],
        t: Int[Array, " batch"] | Float[Array, " batch"],
        *,
        train: bool = False,
        keys: Key[Array, " batch"] | None = None,
        labels: Int[Array, " batch"] | None = None,
    ) -> Any:
        kwargs = optional_arguments(model, train=train, keys=keys, labels=labels)
        if train and keys is not None and not takes_keys:
            kwargs["rngs"] = {"dropout": keys[0]}
        return model.apply(params, x_t, t, **kwargs)

    return apply


def optional_arguments(
    model: nn.Module,
    *,
    train: bool,
    keys: Key[Array, " batch"] | None,
    labels: Int[Array, " batch"] | None,
) -> dict[str, Any]:
    """Those of the arguments that the network's `__call__` takes, without None.

    Raises:
        UserError: there are labels, and the network does not take them.
    """
    taken = _taken(model)
    if labels is not None and "labels" not in taken:
        raise UserError(
            f"labels are passed to {type(model).__name__}, whose __call__ has no parameter 'labels'"
        )
    given = {"train": train, "keys": keys, "labels": labels}
    return {name: given[name] for name in taken if given[name] is not None}


def _taken(model: nn.Module) -> list[str]:
    """Names of the optional arguments that a network takes; for a wrapper, its inner network."""
    parameters = inspect.signature(type(innermost(model)).__call__).parameters
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return [name for name in _OPTIONAL if takes_all or name in parameters]
