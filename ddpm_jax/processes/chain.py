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
    """A chain without modes; its methods are documented where `ddpm_jax.forward` has their names.

    The posterior's second moment is the chain's own: a covariance, or a variance of each value.
    """

    @property
    def num_steps(self) -> int:
        """T."""

    def q_sample(
        self, x0: Float[Array, "batch *data"], t: Int[Array, " batch"], eps: Array
    ) -> Float[Array, "batch *data"]:
        """x_t given x_0."""

    def q_step(
        self, x_prev: Float[Array, "batch *data"], t: Int[Array, " batch"], eps: Array
    ) -> Float[Array, "batch *data"]:
        """x_t given x_{t-1}."""

    def q_transition(
        self,
        x_s: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        s: Int[Array, " batch"],
        eps: Array,
    ) -> Float[Array, "batch *data"]:
        """x_t given x_s."""

    def q_posterior(
        self,
        x0: Float[Array, "batch *data"],
        x_t: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        s: Int[Array, " batch"],
    ) -> tuple[Array, Array]:
        """Mean and second moment of x_s given x_t and x_0."""

    def draw_noise(self, key: Key[Array, ""], shape: tuple[int, ...], t: Array) -> Array:
        """The eps of `q_sample`."""

    def draw_step_noise(self, key: Key[Array, ""], shape: tuple[int, ...], t: Array) -> Array:
        """The eps of `q_step`."""
