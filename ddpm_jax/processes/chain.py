"""The contract of a chain without modes, which has some closed forms or none.

The functions of `ddpm_jax.forward` call the method of the same name; a form that does not exist
raises `NoClosedForm`.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, Key

__all__ = ["Chain", "NoClosedForm"]


class NoClosedForm(TypeError):  # noqa: N818 - it names what is missing
    """The chain has no closed form of what was called."""


@runtime_checkable
class Chain(Protocol):
    """A chain without modes, whose methods the functions of `ddpm_jax.forward` call by their names.

    Times are int32 `[batch]`, -1 <= s < t < T, and images `[batch, ...]`. The posterior's second
    moment is the chain's own: a covariance, or a variance of each value.
    """

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""

    def q_sample(
        self, x0: Float[Array, "batch *data"], t: Int[Array, " batch"], eps: Array
    ) -> Float[Array, "batch *data"]:
        """x_t given x_0.

        Args:
            x0: data.
            t: times.
            eps: noise from `draw_noise`.

        Returns:
            x_t, shaped as `x0`.
        """

    def q_step(
        self, x_prev: Float[Array, "batch *data"], t: Int[Array, " batch"], eps: Array
    ) -> Float[Array, "batch *data"]:
        """x_t given x_{t-1}.

        Args:
            x_prev: x_{t-1}.
            t: times.
            eps: noise from `draw_step_noise`.

        Returns:
            x_t, shaped as `x_prev`.
        """

    def q_transition(
        self,
        x_s: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        s: Int[Array, " batch"],
        eps: Array,
    ) -> Float[Array, "batch *data"]:
        """x_t given x_s.

        Args:
            x_s: images at s.
            t: times.
            s: earlier times.
            eps: noise of all the steps from s to t.

        Returns:
            x_t, shaped as `x_s`.
        """

    def q_posterior(
        self,
        x0: Float[Array, "batch *data"],
        x_t: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        s: Int[Array, " batch"],
    ) -> tuple[Array, Array]:
        """Mean and second moment of x_s given x_t and x_0.

        Args:
            x0: data.
            x_t: noised data.
            t: times.
            s: earlier times.

        Returns:
            The mean, shaped as `x0`, and the second moment.
        """

    def draw_noise(self, key: Key[Array, ""], shape: tuple[int, ...], t: Array) -> Array:
        """The eps of `q_sample`.

        Args:
            key: typed random key.
            shape: `[batch, ...]`.
            t: times.

        Returns:
            Noise of `shape`.
        """

    def draw_step_noise(self, key: Key[Array, ""], shape: tuple[int, ...], t: Array) -> Array:
        """The eps of `q_step`.

        Args:
            key: typed random key.
            shape: `[batch, ...]`.
            t: times.

        Returns:
            Noise of `shape`.
        """
