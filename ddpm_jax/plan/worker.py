"""A process that compiles for one topology: `python -m ddpm_jax.plan.worker`.

`ddpm_jax.plan.requests` starts it in the environment of `topologies.environment`, not by hand;
`ddpm_jax.plan.subprocesses` describes the messages.
"""

from typing import Any

from ddpm_jax.plan.subprocesses import Say, serve

__all__ = ["main"]


def main() -> None:
    """Answers one question."""
    serve(_plan)


def _plan(question: dict[str, Any], say: Say) -> dict[str, Any]:
    from ddpm_jax.config import from_message
    from ddpm_jax.plan import topologies
    from ddpm_jax.plan.plan import make_plan

    topology = topologies.parse(question["topology"])
    return make_plan(
        from_message(question["config"]),
        topology,
        topologies.devices(topology),
        advise=question["advise"],
        largest_batch=question["largest_batch"],
        say=say,
    )


if __name__ == "__main__":
    main()
