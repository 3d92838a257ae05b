"""What a forward process is to the functions that take one.

Modal processes are told by their tables: how much signal is left and how much noise was added, at
each time and for each mode of an orthonormal basis in which modes do not mix. A `Schedule` is the
one with a single mode that all pixels share, a `Spectral` has many. Every formula of this library
is written once, per mode, and serves both.

Other chains know some closed forms or none. The functions of `ddpm_jax.forward` ask them; a form
that does not exist is a `NoClosedForm` that says so.
"""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, Key

from ddpm_jax.processes.spectral import Spectral
from ddpm_jax.schedules import Schedule

__all__ = [
    "Chain",
    "Modal",
    "NoClosedForm",
    "Process",
    "check_modal",
    "check_process",
    "check_schedule",
]


class NoClosedForm(TypeError):  # noqa: N818 - it says what there is not, as StopIteration does
    """A closed form was asked of a chain that has none."""


@runtime_checkable
class Chain(Protocol):
    """A chain without modes; what `ddpm_jax.forward` says of each method holds for these."""

    @property
    def num_steps(self) -> int:
        """T."""
        ...

    @property
    def without_modes(self) -> str:
        """Why there are none, as the second half of a sentence."""
        ...

    def q_sample(
        self, x0: Float[Array, "batch *data"], t: Int[Array, " batch"], eps: Array
    ) -> Float[Array, "batch *data"]:
        """x_t given x_0."""
        ...

    def q_step(
        self, x_prev: Float[Array, "batch *data"], t: Int[Array, " batch"], eps: Array
    ) -> Float[Array, "batch *data"]:
        """x_t given x_{t-1}."""
        ...

    def q_transition(
        self,
        x_s: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        s: Int[Array, " batch"],
        eps: Array,
    ) -> Float[Array, "batch *data"]:
        """x_t given x_s."""
        ...

    def q_posterior(
        self,
        x0: Float[Array, "batch *data"],
        x_t: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        s: Int[Array, " batch"],
    ) -> tuple[Array, Array]:
        """Moments of x_s given x_t and x_0."""
        ...

    def draw_noise(self, key: Key[Array, ""], shape: tuple[int, ...], t: Array) -> Array:
        """The eps of `q_sample`."""
        ...

    def draw_step_noise(self, key: Key[Array, ""], shape: tuple[int, ...], t: Array) -> Array:
        """The eps of `q_step`."""
        ...


Modal = Schedule | Spectral
"""A process whose modes do not mix: every function of the library takes it."""

Process = Modal | Chain
"""Anything that `q_chain` can walk."""


def check_process(name: str, process: Any) -> None:
    """Raises TypeError unless `process` is one."""
    if not isinstance(process, Process):
        raise TypeError(
            f"{name} is a {type(process).__name__}; it has to be a schedule or another process"
            " (ddpm_jax.schedules and ddpm_jax.processes make them)"
        )


def check_modal(name: str, process: Any) -> None:
    """Raises NoClosedForm for a chain without modes, TypeError for what is no process at all."""
    check_process(name, process)
    if not isinstance(process, Modal):
        raise NoClosedForm(
            f"{name} is a {type(process).__name__}, which has no modes: {process.without_modes}"
        )


def check_schedule(schedule: Any) -> None:
    """Raises TypeError unless `schedule` is one, and not another process."""
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"schedule is a {type(schedule).__name__}; it has to be a Schedule"
            " (ddpm_jax.schedules makes them)"
        )
