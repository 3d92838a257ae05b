"""A process that compiles for one topology: `python -m ddpm_jax.plan.worker`.

It is started by `ddpm_jax.plan.ask` in the environment of `topologies.environment`, not by hand;
`ddpm_jax.plan.children` tells how the two speak.
"""

from typing import Any

from ddpm_jax.plan.children import Say, answer_question

__all__ = ["main"]


def main() -> None:
    """Answers one question."""
    answer_question(_plan)


def _plan(question: dict[str, Any], say: Say) -> dict[str, Any]:
    from ddpm_jax.config import from_json
    from ddpm_jax.plan import topologies
    from ddpm_jax.plan.plan import make_plan

    topology = topologies.parse(question["topology"])
    return make_plan(
        from_json(question["config"]),
        topology,
        topologies.devices(topology),
        advise=question["advise"],
        largest_batch=question["largest_batch"],
        say=say,
    )


if __name__ == "__main__":
    main()
