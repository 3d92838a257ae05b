"""What a network has to be: `init` and `apply`, and a call that takes `x_t` and `t` at least."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.errors import UserError

__all__ = ["Wrapper", "init_params", "network_function", "optional_arguments"]

_OPTIONAL = ("train", "keys", "labels")


class Wrapper(nn.Module):
    """A network around another one, which gets those of `train`, `keys` and `labels` it takes.

    Its call has a parameter for each of them.
    """

    network: nn.Module


def init_params(model: nn.Module, key: Key[Array, ""], image_shape: Sequence[int]) -> Any:
    """The variables of `model` for images of one shape, each in a box with its axes' names.

    Pure, so that `jit` with output shardings creates each of them on its own devices.
    `flax.core.meta.unbox` takes them out of their boxes: what is trained, stored and given to
    `model.apply` is without.
    """
    x_t, t = jnp.zeros((1, *image_shape), jnp.float32), jnp.zeros((1,), jnp.int32)
    return model.init(key, x_t, t)


def network_function(model: nn.Module) -> Callable[..., Any]:
    """`(params, x_t, t, train=False, keys=None, labels=None) -> output` of any such network.

    Of `train`, `keys` and `labels` the network gets those that its `__call__` has a parameter for.
    One that has none for `keys` gets one key of the batch as its rng stream "dropout" in training.

    Raises:
        UserError: when it is called with labels that the network does not take.
    """
    takes_keys = "keys" in _taken(model)

    def apply(
        params: Any,
        x_t: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
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
        UserError: labels that it does not take.
    """
    taken = _taken(model)
    if labels is not None and "labels" not in taken:
        raise UserError(
            f"{type(model).__name__} is given labels, and its __call__ has no parameter of that"
            " name"
        )
    given = {"train": train, "keys": keys, "labels": labels}
    return {name: given[name] for name in taken if given[name] is not None}


def _taken(model: nn.Module) -> list[str]:
    """Names of optional arguments that a network takes; those of the inner one, of a wrapper."""
    while isinstance(model, Wrapper):
        model = model.network
    parameters = inspect.signature(type(model).__call__).parameters
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return [name for name in _OPTIONAL if takes_all or name in parameters]
