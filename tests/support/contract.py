"""One table of the core's public functions, with arrays to call them on: see test_core_contract."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import (
    analytic,
    bases,
    forward,
    gaussians,
    likelihood,
    litmus,
    losses,
    predictions,
    processes,
    reverse,
    samplers,
    schedules,
    timesteps,
)

ROOMS = (
    *(bases, schedules, gaussians, processes, predictions, forward, reverse, timesteps),
    *(losses, likelihood, samplers, samplers.guidance, analytic, litmus),
)
BATCH = 8
SCHEDULE = schedules.cosine(12)
BLURRING = processes.blurring(SCHEDULE, (3, 2), max_blur=0.4)
EXPLODING = schedules.variance_exploding(12, sigma_min=0.1, sigma_max=8.0)
LEVELS = 17
DATA = analytic.mixture([0.3, 0.7], [[0.5] * 6, [-0.2] * 6], [np.eye(6), np.diag([0.1, 0.3] * 3)])


class Case(NamedTuple):
    """A public function with what is static bound, and its arrays by name."""

    function: Callable
    arrays: dict
    like: str | None = None
    """The array whose shape the others have to have; a wrong one is theirs to report."""


def image(seed):
    return 0.5 * jax.random.normal(jax.random.key(seed), (BATCH, 3, 2))


def on_grid(seed):
    levels = jax.random.randint(jax.random.key(seed), (BATCH, 3, 2), 0, LEVELS)
    return jnp.linspace(-1.0, 1.0, LEVELS)[levels]


def positive(seed):
    return 0.5 + jnp.square(image(seed))


def factor(seed):
    """Lower-triangular matrices with a positive diagonal, one for each vector of an image."""
    a, b, c = positive(seed)[..., 0], image(seed + 1)[..., 0], positive(seed)[..., 1]
    return jnp.stack([jnp.stack([a, 0 * a], axis=-1), jnp.stack([b, c], axis=-1)], axis=-2)


def bent(x_t, t):
    """A network whose slope depends on where it stands."""
    return 0.3 * x_t + 0.2 * jnp.sin(x_t)


def _sum_of_bits(bits):
    return bits.prior + bits.per_time.sum(axis=0)


def look_up(name):
    return lambda **times: getattr(SCHEDULE, name)(**times)


def of_condition(condition):
    """Terms of the ELBO under a process that a condition makes, in all of its arguments."""
    falling = jnp.linspace(4.0, -4.0, 12)[None, :, None, None]
    process = processes.per_pixel(
        lambda c: falling + c[:, None], variance=lambda c: jnp.exp(c), condition=condition
    )
    t = jnp.where(condition[:, 0, 0] > 0.0, 3, 7)
    x_t = forward.q_sample(process, jnp.sin(condition), t, jnp.cos(condition))
    prior = losses.prior_term(process, jnp.sin(condition))
    return prior + losses.vlb_terms(
        process, 0.3 * condition, jnp.sin(condition), x_t, t, predicts="v", levels=None
    )


t, s = jnp.arange(BATCH, dtype=jnp.int32) + 2, jnp.arange(BATCH, dtype=jnp.int32) - 1
key = jax.random.key(5)
grey = on_grid(0)
prediction = {"prediction": image(2), "x0": grey}


def cases_of(process):
    """What takes a process, on this one."""

    def bind(function, **static):
        """`function` of the process and named arrays."""
        return lambda **arrays: function(process, **arrays, **static)

    def draw_images(sampler):
        # Not from T - 1: x0_hat = (x - b eps_hat) / a has lost hundreds of roundings there.
        times = jnp.asarray([8, 5, 2, 0])
        return lambda key, **start: samplers.sample(sampler, key, (BATCH, 3, 2), times, **start).x0

    return {
        "q_sample": Case(bind(forward.q_sample), {"x0": image(0), "t": t, "eps": image(1)}, "x0"),
        "q_step": Case(
            bind(forward.q_step), {"x_prev": image(0), "t": t, "eps": image(1)}, "x_prev"
        ),
        "q_chain": Case(bind(forward.q_chain, num_steps=3), {"key": key, "x0": image(0)}, "x0"),
        "q_posterior": Case(
            bind(forward.q_posterior), {"x0": image(0), "x_t": image(1), "t": t, "s": s}, "x0"
        ),
        "q_posterior_variance": Case(bind(forward.q_posterior_variance), {"t": t, "s": s}, "t"),
        "q_transition": Case(
            bind(forward.q_transition), {"x_s": image(0), "t": t, "s": s, "eps": image(1)}, "x_s"
        ),
        "convert": Case(
            bind(forward.convert, source="eps", target="v"),
            {"value": image(0), "x_t": image(1), "t": t},
            "value",
        ),
        "convert, score": Case(
            bind(forward.convert, source="score", target="x0"),
            {"value": image(0), "x_t": image(1), "t": t},
            "value",
        ),
        "convert, flow": Case(
            bind(forward.convert, source="flow", target="edm"),
            {"value": image(0), "x_t": image(1), "t": t},
            "value",
        ),
        "weights_at": Case(bind(predictions.weights_at, predicts="edm"), {"t": t}, "t"),
        "error_ratio": Case(bind(predictions.error_ratio, predicts="flow"), {"t": t}, "t"),
        "fixed_variance": Case(
            bind(reverse.fixed_variance, variance="large"), {"t": t, "s": s}, "t"
        ),
        "learned_log_variance": Case(
            bind(reverse.learned_log_variance),
            {"interpolation": image(0), "t": t, "s": s},
            "interpolation",
        ),
        "simple_loss": Case(
            bind(losses.simple_loss, predicts="v"), {**prediction, "t": t, "eps": image(1)}, "x0"
        ),
        "target": Case(
            bind(losses.target, predicts="v"), {"x0": image(0), "t": t, "eps": image(1)}, "x0"
        ),
        "weighted_loss": Case(
            bind(losses.weighted_loss, predicts="v", weighting=losses.min_snr()),
            {**prediction, "t": t, "eps": image(1)},
            "x0",
        ),
        "error_weight": Case(
            bind(losses.error_weight, predicts="eps", weighting=losses.p2()), {"t": t}, "t"
        ),
        "distillation_target": Case(
            bind(losses.distillation_target, predict=bent, predicts="v"),
            {"x_t": image(0), "t": t, "m": t - 1, "s": s},
            "x_t",
        ),
        "kl_weight": Case(bind(losses.kl_weight, predicts="eps"), {"t": t}, "t"),
        "vlb_terms": Case(
            bind(losses.vlb_terms, predicts="eps", levels=LEVELS),
            {**prediction, "x_t": image(1), "t": t - 2},
            "x0",
        ),
        "vlb_terms, learned range": Case(
            bind(losses.vlb_terms, predicts="v", levels=LEVELS, variance="learned_range"),
            {**prediction, "x_t": image(1), "t": t - 2, "interpolation": image(3)},
            "x0",
        ),
        "hybrid_loss": Case(
            bind(losses.hybrid_loss, predicts="v", levels=LEVELS, vlb_weight=0.5),
            {
                **prediction,
                "interpolation": image(3),
                "x_t": image(1),
                "t": t - 2,
                "eps": image(4),
            },
            "x0",
        ),
        "elbo_loss": Case(
            bind(losses.elbo_loss, predicts="v", levels=LEVELS),
            {**prediction, "x_t": image(1), "t": t - 2},
            "x0",
        ),
        "prior_term": Case(bind(losses.prior_term), {"x0": grey}, "x0"),
        "bits_per_dim": Case(
            lambda **arrays: (
                likelihood.bits_per_dim(
                    process, lambda x_t, t: 0.3 * x_t, **arrays, predicts="eps", levels=LEVELS
                ).total
            ),
            {"key": key, "x0": grey},
            "x0",
        ),
        "bits_per_dim, in chunks": Case(
            lambda **arrays: (
                likelihood.bits_per_dim(
                    process,
                    lambda x_t, t: (0.3 * x_t, 0.1 * x_t),
                    **arrays,
                    predicts="v",
                    levels=LEVELS,
                    chunk=5,
                    variance="learned_range",
                ).total
            ),
            {"key": key, "x0": grey},
            "x0",
        ),
        "estimate_bits_per_dim": Case(
            bind(
                likelihood.estimate_bits_per_dim,
                predict=lambda x_t, t: 0.3 * x_t,
                predicts="v",
                levels=LEVELS,
                num_times=4,
                chunk=3,
            ),
            {"key": key, "x0": grey},
            "x0",
        ),
        "bits_at_times": Case(
            lambda times, **arrays: _sum_of_bits(
                likelihood.bits_at_times(
                    process,
                    lambda x_t, t: 0.3 * x_t,
                    **arrays,
                    times=times[None] if hasattr(times, "ndim") else times,
                    predicts="v",
                    levels=LEVELS,
                )
            ),
            {"key": key, "x0": grey, "times": t},
            "x0",
        ),
        "flow_bits_per_dim": Case(
            bind(
                likelihood.flow_bits_per_dim,
                predict=lambda x_t, t: 0.3 * jnp.tanh(x_t),
                times=samplers.time_grid(process, 4),
                predicts="v",
                levels=LEVELS,
                num_probes=2,
            ),
            {"key": key, "x0": grey},
            "x0",
        ),
        "sample, ancestral": Case(
            draw_images(samplers.ancestral(process, lambda x_t, t: 0.3 * x_t)), {"key": key}
        ),
        "sample, ddim": Case(
            draw_images(samplers.ddim(process, lambda x_t, t: 0.3 * x_t, eta=0.5)), {"key": key}
        ),
        "sample, dpm_solver_pp": Case(
            draw_images(samplers.dpm_solver_pp(process, bent, stochastic=True)), {"key": key}
        ),
        "sample, dpm_solver_pp_single": Case(
            draw_images(samplers.dpm_solver_pp_single(process, bent, order=3)), {"key": key}
        ),
        "sample, unipc": Case(draw_images(samplers.unipc(process, bent)), {"key": key}),
        "sample, midpoint": Case(draw_images(samplers.midpoint(process, bent)), {"key": key}),
        "sample, heun": Case(draw_images(samplers.heun(process, bent)), {"key": key}),
        "sample, stochastic_heun": Case(
            draw_images(samplers.stochastic_heun(process, bent, gamma=0.4)), {"key": key}
        ),
        "sample, from a start": Case(
            draw_images(samplers.probability_flow(process, bent, threshold=None)),
            {"key": key, "start": image(0)},
        ),
        "ddim_inversion": Case(
            lambda x0: samplers.ddim_inversion(
                process, bent, x0, samplers.time_grid(process, 4), iterations=2
            ),
            {"x0": image(0)},
            "x0",
        ),
        "inpaint": Case(
            lambda key, known, mask: draw_images(
                samplers.inpaint(
                    samplers.dpm_solver_pp(process, bent, threshold=None),
                    process,
                    known,
                    mask,
                    resamplings=2,
                )
            )(key),
            {"key": key, "known": image(0), "mask": image(1) > 0.0},
            "known",
        ),
        "denoise": Case(
            lambda **arrays: analytic.denoise(DATA, process, **arrays, target="v"),
            {"x_t": image(0), "t": t},
            "x_t",
        ),
        "predictor": Case(
            lambda x_t, t: analytic.predictor(DATA, process, predicts="eps")(x_t, t),
            {"x_t": image(0), "t": t},
            "x_t",
        ),
        "log_density": Case(
            lambda **arrays: analytic.log_density(DATA, process, **arrays),
            {"x_t": image(0), "t": t - 3},
            "x_t",
        ),
        "classifier": Case(
            samplers.guidance.classifier(
                process, bent, lambda x_t, t: jnp.sum(jnp.sin(x_t), axis=(1, 2)), scale=2.0
            ),
            {"x_t": image(0), "t": t},
            "x_t",
        ),
    }


CASES = {
    **cases_of(SCHEDULE),
    **{f"{name}, blurring": case for name, case in cases_of(BLURRING).items()},
    **{f"{name}, exploding": case for name, case in cases_of(EXPLODING).items()},
    "per_pixel": Case(of_condition, {"condition": image(0)}, "condition"),
    "kl_diagonal": Case(
        gaussians.kl_diagonal,
        {
            "mean_q": image(0),
            "variance_q": positive(1),
            "mean_p": image(2),
            "variance_p": positive(3),
        },
        "mean_q",
    ),
    "kl_shared_variance": Case(
        gaussians.kl_shared_variance,
        {"mean_q": image(0), "mean_p": image(1), "variance": positive(2)},
        "mean_q",
    ),
    "kl_standardized": Case(
        gaussians.kl_standardized, {"error": image(0), "log_variance_ratio": image(1)}, "error"
    ),
    "entropy_diagonal": Case(gaussians.entropy_diagonal, {"variance": positive(0)}, "variance"),
    "log_density_diagonal": Case(
        gaussians.log_density_diagonal,
        {"x": image(0), "mean": image(1), "variance": positive(2)},
        "x",
    ),
    "kl_full": Case(
        gaussians.kl_full,
        {
            "mean_q": image(0),
            "cholesky_q": factor(1),
            "mean_p": image(2),
            "cholesky_p": factor(3),
        },
        "mean_q",
    ),
    "entropy_full": Case(gaussians.entropy_full, {"cholesky": factor(0)}, "cholesky"),
    "log_density_full": Case(
        gaussians.log_density_full,
        {"x": image(0), "mean": image(1), "cholesky": factor(2)},
        "x",
    ),
    "kl_to_standard_normal": Case(
        gaussians.kl_to_standard_normal,
        {"mean": image(0), "one_minus_variance": 0.3 * positive(1)},
        "mean",
    ),
    "discretized_log_likelihood": Case(
        lambda **arrays: gaussians.discretized_log_likelihood(**arrays, levels=LEVELS),
        {"x": on_grid(0), "mean": image(1), "standard_deviation": positive(2)},
        "x",
    ),
    "dequantize": Case(
        lambda **arrays: likelihood.dequantize(**arrays, levels=LEVELS),
        {"key": key, "x0": grey},
        "x0",
    ),
    "continuous_bits_per_dim": Case(
        lambda **arrays: (
            likelihood.continuous_bits_per_dim(
                lambda x, log_snr: bent(x, log_snr) + 0.01 * log_snr[:, None, None],
                **arrays,
                log_snr_max=6.0,
                log_snr_min=-7.0,
                predicts="v",
                levels=LEVELS,
                num_times=4,
                chunk=3,
            ).total
        ),
        {"key": key, "x0": grey},
        "x0",
    ),
    "update_history": Case(
        lambda t, losses: timesteps.update_history(
            timesteps.LossHistory(image(0)[..., 0], jnp.arange(BATCH, dtype=jnp.int32)), t, losses
        ),
        {"t": t - 2, "losses": positive(1)[:, 0, 0]},
        "losses",
    ),
    "probabilities": Case(
        lambda losses: (
            timesteps.probabilities(timesteps.LossHistory(losses, jnp.full(BATCH, 3)))
            * image(1)[:, 0, 0]
        ),
        {"losses": positive(0)[..., 0]},
        "losses",
    ),
    "importance": Case(
        lambda key: timesteps.importance(key, BATCH, jnp.linspace(0.01, 0.2, 12)), {"key": key}
    ),
    "uniform": Case(lambda key: timesteps.uniform(key, BATCH, 12), {"key": key}),
    "stratified": Case(lambda key: timesteps.stratified(key, BATCH, 12), {"key": key}),
    "sample, analytic": Case(lambda key: analytic.sample(DATA, key, (BATCH, 3, 2)), {"key": key}),
    "classifier_free": Case(
        samplers.guidance.classifier_free(
            bent, lambda x_t, t: 0.3 * x_t, scale=3.0, interval=(3, 6), rescale=0.5
        ),
        {"x_t": image(0), "t": t},
        "x_t",
    ),
    "static_threshold": Case(samplers.static_threshold, {"x0_hat": image(0)}, "x0_hat"),
    "dynamic_threshold": Case(
        samplers.dynamic_threshold(0.7), {"x0_hat": 4.0 * image(0)}, "x0_hat"
    ),
}

# Those that take no arrays, or make what does.
STATIC = {
    *("linear", "quadratic", "constant", "cosine", "sigmoid", "linear_log_snr"),
    *("from_betas", "from_alpha_bar", "from_log_snr", "from_signal_noise"),
    *("variance_exploding", "rectified_flow", "variance_preserving", "sub_variance_preserving"),
    *("zero_terminal_snr", "shifted", "respaced"),
    *("from_monotone", "monotone", "monotone_steps"),
    *("constant", "min_snr", "p2", "truncated_snr"),
    *("lognormal", "loss_history", "spread_times"),
    *("dpm_solver_pp_single", "midpoint", "unipc"),
    *("time_grid", "density_grid", "level_grid"),
    *("ancestral", "ddim", "dpm_solver_pp", "heun", "stochastic_heun", "probability_flow"),
    *("gaussian", "mixture"),
    *("mean", "covariance", "entropy", "entropy_estimate", "elbo_terms"),  # nothing has a batch
    *("identity", "dct", "fourier", "orthonormal"),
    *("isotropic", "spectral", "correlated", "equal_snr", "blurring"),
    *("affine_chain", "gamma", "custom_chain", "check_step", "litmus"),
    *("conversion", "edm", "resolve", "weights_of"),
    *("check_predicts", "split_output", "variance_range", "interpolate"),
}
