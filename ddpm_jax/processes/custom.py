"""A chain given by its step alone: it can be walked, and has no closed forms.

A step is a pure function `step(x_prev, eps, t) -> x_t` of one sample, its standard normal noise and
the time, a scalar int32 that may be traced. Nothing is known of many steps at once, so
every closed form raises `NoClosedForm`. `ddpm_jax.litmus` looks for one.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.arrays import per_example, split_as
from ddpm_jax.checks import check_count, check_draw, check_images, check_same_shape
from ddpm_jax.processes.chain import NoClosedForm

__all__ = ["CustomChain", "Step", "check_step", "custom_chain"]

Step = Callable[[Array, Array, Array], Array]
"""`(x_prev, eps, t) -> x_t`, one sample at one time."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=[], meta_fields=["step", "num_steps"]
)
@dataclasses.dataclass(frozen=True)
class CustomChain:
    """A step and how many there are; a pytree without arrays, all of it static under jit.

    Make one with `custom_chain`, which checks.
    """

    step: Step
    """`(x_prev, eps, t) -> x_t`, of one sample at one time."""
    num_steps: int
    """T, the number of steps."""

    def q_step(
        self,
        x_prev: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        eps: Float[Array, "batch *data"],
    ) -> Float[Array, "batch *data"]:
        """One step of every example, x_{t-1} to x_t.

        Args:
            x_prev: x_{t-1}, `[batch, ...]`.
            t: times in [0, T), int32 `[batch]`.
            eps: standard normal noise, shaped as `x_prev`.

        Returns:
            x_t, shaped as `x_prev`; NaN where t is outside [0, T).

        Raises:
            TypeError, ValueError: an argument of the wrong dtype or shape, by name, or a step that
                cannot be traced or returns another shape or dtype than that of its sample.
        """
        check_images("x_prev", x_prev, t=t)
        check_same_shape("eps", eps, "x_prev", x_prev)
        x_prev = jnp.asarray(x_prev)
        eps, t = split_as(eps, x_prev).astype(x_prev.dtype), split_as(t, x_prev)
        x_t = jax.vmap(functools.partial(_call, self.step))(x_prev, eps, t)
        inside = (t >= 0) & (t < self.num_steps)
        # NaN by a sum and not by a choice: a step may do anything at times outside of its chain.
        return x_t + per_example(jnp.where(inside, 0.0, jnp.nan), x_t)

    def draw_step_noise(
        self, key: Key[Array, ""], shape: tuple[int, ...], t: Int[Array, " batch"]
    ) -> Float[Array, "batch *data"]:
        """Standard normal noise for `q_step`.

        Args:
            key: typed random key.
            shape: `[batch, ...]`.
            t: times, one for each example.

        Returns:
            The noise, float32 of `shape`.
        """
        check_draw(key, shape, t=t)
        return jax.random.normal(key, shape, jnp.float32)

    def q_sample(self, x0: Array, t: Array, eps: Array) -> NoReturn:
        """Raises NoClosedForm: there is no closed form of x_t given x_0.

        Args:
            x0: data.
            t: times.
            eps: noise.
        """
        raise _no_closed_form("x_t given x_0 (q_sample)")

    def q_transition(self, x_s: Array, t: Array, s: Array, eps: Array) -> NoReturn:
        """Raises NoClosedForm: there is no closed form of x_t given x_s.

        Args:
            x_s: images at s.
            t: times.
            s: earlier times.
            eps: noise.
        """
        raise _no_closed_form("x_t given x_s (q_transition)")

    def q_posterior(self, x0: Array, x_t: Array, t: Array, s: Array) -> NoReturn:
        """Raises NoClosedForm: there is no closed form of x_s given x_t and x_0.

        Args:
            x0: data.
            x_t: noised data.
            t: times.
            s: earlier times.
        """
        raise _no_closed_form("x_s given x_t and x_0 (q_posterior)")

    def draw_noise(self, key: Array, shape: tuple[int, ...], t: Array) -> NoReturn:
        """Raises NoClosedForm: there is no q_sample to draw noise for.

        Args:
            key: typed random key.
            shape: `[batch, ...]`.
            t: times.
        """
        raise _no_closed_form("the noise that takes x_0 to x_t (draw_noise)")


def custom_chain(
    step: Step, num_steps: int, *, shape: tuple[int, ...] | None = None
) -> CustomChain:
    """A chain given by its step alone, which can only be run step by step.

    Args:
        step: a pure function `(x_prev, eps, t) -> x_t` of one sample; eps is standard normal noise
            of the sample's shape, t a scalar int32 in [0, T).
        num_steps: T, at least 1.
        shape: that of a sample, without the batch. Given, the step is checked now (see
            `check_step`); else errors of tracing are raised when the step is first used.

    Returns:
        The chain.

    Raises:
        TypeError, ValueError: `num_steps` below 1, or a step that is not what it has to be.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax.processes import custom_chain
        >>> def step(x_prev, eps, t):
        ...     return jnp.tanh(x_prev) + 0.1 * eps
        >>> chain = custom_chain(step, 100, shape=(8, 8, 1))
        >>> x, t = jnp.zeros((2, 8, 8, 1)), jnp.array([0, 99])
        >>> chain.q_step(x, t, chain.draw_step_noise(jax.random.key(0), x.shape, t)).shape
        (2, 8, 8, 1)
    """
    check_count("num_steps", num_steps)
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; a chain has at least one step")
    if shape is None:
        _check_signature(step)
    else:
        check_step(step, shape)
    return CustomChain(step, num_steps)


def check_step(step: Step, shape: tuple[int, ...]) -> None:
    """Raises TypeError or ValueError unless `step` is a pure function of its three arguments.

    It is traced and run twice on the same sample of `shape`, float32, at t = 0, and the results
    have to agree in every bit. A state that changes without any effect on these goes undetected.

    Args:
        step: the function to check, `(x_prev, eps, t) -> x_t`.
        shape: of one sample.

    Raises:
        TypeError: no function of three arguments, one that cannot be traced, or one that returns
            another dtype.
        ValueError: another shape, or two results for the same arguments.
    """
    _check_signature(step)
    # jit keeps what it traced first; only the function inside shows what Python does next time.
    bare = inspect.unwrap(step) if hasattr(step, "lower") else step
    values = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    with jax.ensure_compile_time_eval():  # now, also where a caller is being traced
        x_prev, eps, t = jnp.asarray(values[0]), jnp.asarray(values[1]), jnp.int32(0)
        first, second = _compiled(bare), _compiled(bare)
        try:
            once, again = (np.asarray(run(x_prev, eps, t)) for run in (first, second))
        except jax.errors.UnexpectedTracerError:
            raise ValueError(
                "step uses an array of an earlier call, stored outside of itself: it has to"
                " be a pure function of (x_prev, eps, t)"
            ) from None
    if not np.array_equal(once, again, equal_nan=True):
        largest = float(np.nanmax(np.abs(once - again), initial=0.0))
        raise ValueError(
            f"step gave two results, {largest:.3g} apart, for the same (x_prev, eps, t): it uses"
            " something outside of its arguments; all its noise has to come from eps, and all that"
            " changes from step to step from t"
        )


def _compiled(step: Step) -> Step:
    """`step` in a new function, which jit traces anew."""
    return jax.jit(lambda x_prev, eps, t: _call(step, x_prev, eps, t))


def _call(step: Step, x_prev: Array, eps: Array, t: Array) -> Array:
    """`step` of traced arguments, its errors as sentences."""
    try:
        x_t = step(x_prev, eps, t)
    except _UNTRACEABLE as error:
        what = str(error).splitlines()[0]
        raise TypeError(
            "step cannot be traced: it needs the value of an array, by float(), if, while,"
            " range() or NumPy; use jax.numpy, jnp.where and jax.lax instead, on t too"
            f" ({type(error).__name__}: {what})"
        ) from error
    _check_returned(x_t, x_prev)
    return x_t


_UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def _check_returned(x_t: Any, x_prev: Array) -> None:
    if not isinstance(x_t, jax.Array | np.ndarray):
        raise TypeError(f"step returned a {type(x_t).__name__}; it has to return x_t, an array")
    if x_t.shape != x_prev.shape:
        raise ValueError(
            f"step returned the shape {x_t.shape} for a sample of shape {x_prev.shape}; x_t has to"
            " have that of x_prev"
        )
    if x_t.dtype != x_prev.dtype:
        raise TypeError(
            f"step returned {x_t.dtype} for a sample in {x_prev.dtype}; x_t has to be in the dtype"
            " of x_prev"
        )


def _check_signature(step: Step) -> None:
    if not callable(step):
        raise TypeError(f"step is a {type(step).__name__}; it has to be a function")
    try:
        inspect.signature(step).bind(None, None, None)
    except TypeError as error:
        raise TypeError(
            f"step cannot be called as step(x_prev, eps, t), with three arguments: {error}"
        ) from None
    except ValueError:  # a builtin without a signature
        return


def _no_closed_form(what: str) -> NoClosedForm:
    return NoClosedForm(
        f"a custom chain has no closed form of {what}: it is given by its step alone; q_chain walks"
        " it, and ddpm_jax.litmus looks for a closed form"
    )
