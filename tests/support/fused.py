"""Functions of the core, each call compiled as one program.

Called plainly, each of their operations is a program of its own for every shape, which is most of
what a test of a formula costs. That both calls give the same is for test_core_contract.
"""

import functools
import inspect

import jax

from ddpm_jax import analytic, forward, losses, reverse


def fused(function):
    """`function`, compiled in all arguments that are arrays; a trace and its errors are as ever."""
    signature = inspect.signature(function)

    @functools.cache
    def program(static):
        return jax.jit(lambda traced: function(**traced, **dict(static)))

    @functools.wraps(function)
    def call(*args, **kwargs):
        arguments = signature.bind(*args, **kwargs).arguments
        traced = {name: value for name, value in arguments.items() if _is_traced(value)}
        static = tuple((name, arguments[name]) for name in arguments if name not in traced)
        return program(static)(traced)

    return call


def _is_traced(value):
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(isinstance(leaf, jax.Array) for leaf in leaves)


denoise, log_density, elbo_terms = map(
    fused, (analytic.denoise, analytic.log_density, analytic.elbo_terms)
)
entropy, entropy_estimate = map(fused, (analytic.entropy, analytic.entropy_estimate))
q_sample, q_step, q_transition, q_posterior, convert, q_posterior_variance = map(
    fused,
    (
        *(forward.q_sample, forward.q_step, forward.q_transition, forward.q_posterior),
        *(forward.convert, forward.q_posterior_variance),
    ),
)
kl_weight, prior_term, simple_loss, vlb_terms, weighted_loss = map(
    fused,
    (
        *(losses.kl_weight, losses.prior_term, losses.simple_loss, losses.vlb_terms),
        losses.weighted_loss,
    ),
)
fixed_variance, learned_log_variance = map(
    fused, (reverse.fixed_variance, reverse.learned_log_variance)
)
