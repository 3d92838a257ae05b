"""Settings of JAX, from the environment or `jax.config`, under which no run is possible.

A run has to end with the same bits wherever it is resumed, so what changes random numbers is
refused. All other settings leave the bits as they are, or change them by rounding:
`tests/config/test_jax_settings.py` has the table.
"""

from typing import Any

import jax

from ddpm_jax.errors import UserError

__all__ = ["check_jax_settings"]

_OTHER_NUMBERS = "the random numbers of a run would be others"
_GUARD = "tables, images and results move between host and device"
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "jax_threefry_partitionable": ((True,), _OTHER_NUMBERS),
    "jax_random_seed_offset": ((0,), _OTHER_NUMBERS),
    "jax_accurate_erf_inv": ((False,), _OTHER_NUMBERS),
    "jax_disable_jit": ((False,), "steps are compiled before they run"),
    "jax_debug_key_reuse": ((False,), "a key per example is folded in more than one program"),
    **{
        f"jax_transfer_guard{direction}": ((None, "allow", "log", "log_explicit"), _GUARD)
        for direction in ("", "_host_to_device", "_device_to_device", "_device_to_host")
    },
}
"""What each may be, and why it may not be anything else."""


def check_jax_settings() -> None:
    """Raises UserError for the first setting of JAX under which no run is possible."""
    for name, (allowed, reason) in _REFUSED.items():
        value = getattr(jax.config, name, allowed[0])  # an older JAX has fewer of them
        if value not in allowed:
            wanted = "unset" if allowed[0] is None else repr(allowed[0])
            raise UserError(f"{name.upper()} is {value!r}; it has to be {wanted}, since {reason}")
