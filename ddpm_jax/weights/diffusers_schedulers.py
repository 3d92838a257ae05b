"""diffusers' `scheduler_config.json`: its chain, prediction, variance and sampler, in and out."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import schedules
from ddpm_jax.predictions import PredictionName, Predicts
from ddpm_jax.reverse import Variance
from ddpm_jax.schedules.tables import on_host
from ddpm_jax.weights.weights import Recipe, WeightsError

__all__ = ["Scheduler", "config_of_scheduler", "scheduler_of_config"]


class Scheduler(NamedTuple):
    """What a `scheduler_config.json` says."""

    chain: Recipe
    predicts: PredictionName
    variance: Variance | None
    """None where the scheduler has none of its own, as DDIM's."""
    sampler: Recipe
    notes: tuple[str, ...]
    """Sentences about what is drawn otherwise than by diffusers."""


_PREDICTS: dict[str, PredictionName] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_VARIANCES: dict[str, Variance] = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "learned_range": "learned_range",
}
_SPACINGS = ("leading", "trailing", "linspace")
_UNIPC_VARIANTS = {"bh1": "bh1", **dict.fromkeys(("bh2", "midpoint", "heun", "logrho"), "bh2")}
"""diffusers takes "bh2" for the types of other solvers."""

_CHAIN = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "predict_epsilon": True,  # before version 0.9; the other value is prediction_type "sample"
    "tensor_format": "pt",  # before version 0.3
    "timestep_values": None,  # before version 0.3
}
_SAMPLER = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_SOLVER = _SAMPLER | {
    "timestep_spacing": "linspace",
    "solver_order": 2,
    "lower_order_final": True,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "final_sigmas_type": "zero",
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
_DPM_SOLVER = {
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lambda_min_clipped": -np.inf,
    "variance_type": None,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": _CHAIN | _SAMPLER | _CLIP | {"variance_type": "fixed_small"},
    "DDIMScheduler": _CHAIN | _SAMPLER | _CLIP | {"set_alpha_to_one": True},
    "DPMSolverMultistepScheduler": _CHAIN
    | _SOLVER
    | _DPM_SOLVER
    | {"euler_at_final": False, "use_lu_lambdas": False},
    "DPMSolverSinglestepScheduler": _CHAIN | _SOLVER | _DPM_SOLVER,
    "UniPCMultistepScheduler": _CHAIN
    | _SOLVER
    | {
        "solver_type": "bh2",
        "predict_x0": True,
        "disable_corrector": [],
        "solver_p": None,
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    },
}
"""Every key of the schedulers that are known here, with its default, as of 0.42.1."""
_FREE = {
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "rescale_betas_zero_snr", "predict_epsilon", "tensor_format"),
    *("thresholding", "dynamic_thresholding_ratio", "sample_max_value", "timestep_spacing"),
    *("clip_sample", "clip_sample_range", "variance_type", "solver_order", "algorithm_type"),
    *("solver_type", "steps_offset", "flow_shift", "time_shift_type"),
    *("lower_order_final", "euler_at_final"),
}
"""Keys that may have other values than their default, because they are read, or because they change
nothing: the last four of them where all else is as it has to be."""
_SAME_CHAIN = {
    *("PNDMScheduler", "DEISMultistepScheduler", "LMSDiscreteScheduler", "DPMSolverSDEScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
    *("DDIMParallelScheduler", "DDPMParallelScheduler"),
}
"""Schedulers for networks of the same kind, of which the chain alone is read."""

_PIPELINE_STEPS = {"DDPMScheduler": 1000}
"""`num_inference_steps` of diffusers' pipelines, where it is not 50."""


def scheduler_of_config(
    config: Mapping[str, Any], where: str, *, sampler: Recipe | None = None
) -> Scheduler:
    """What a scheduler's configuration says.

    Args:
        config: keys that are missing have the defaults of its class.
        where: the file, for error sentences.
        sampler: how images are drawn; in the place of what the configuration says of it.

    Raises:
        WeightsError: a class that is not supported; a key that is unknown, or has a value that has
            no counterpart here; a chain that `ddpm_jax.schedules` refuses.
    """
    kind = str(config.get("_class_name"))
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    notes: tuple[str, ...] = ()
    if kind in _SAME_CHAIN:
        if sampler is None:
            notes = (f"the sampler of {kind} is not read; images are drawn by DDIM in its place",)
        given = {key: value for key, value in given.items() if key in _CHAIN}
        values = _DEFAULTS["DDIMScheduler"] | given
    elif kind in _DEFAULTS:
        values = _checked(given, kind, where)
    else:
        raise WeightsError(
            f"{where}: _class_name is {kind!r}; supported are {', '.join([*_DEFAULTS])}, and the"
            f" chains of {', '.join(sorted(_SAME_CHAIN))}"
        )

    predicts = _choice(values, "prediction_type", _PREDICTS, where)
    if values["predict_epsilon"] is False:
        predicts = "x0"
    chain = _chain(values, where)
    variance: Variance | None = None
    if values.get("variance_type") is not None:
        variance = _choice(values, "variance_type", _VARIANCES, where)
    try:
        schedule = getattr(schedules, chain.name)(**chain.arguments)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{where}: this chain is refused: {error}") from error
    if schedule.zero_terminal_snr and predicts == "eps":
        raise WeightsError(
            f"{where}: its last beta is 1, which leaves no signal, and prediction_type is"
            " 'epsilon'; it has to be 'v_prediction' or 'sample'"
        )
    if sampler is None:
        sampler = _sampler(values, kind, where)
        notes += tuple(_differences(sampler))
    return Scheduler(chain, predicts, variance, sampler, notes)


def _checked(given: dict[str, Any], kind: str, where: str) -> dict[str, Any]:
    """All keys with their values, if each is known, or is null: an option that is off."""
    defaults = _DEFAULTS[kind]
    for key, value in given.items():
        if key not in defaults and value is not None:
            raise WeightsError(f"{where}: {key} is {value!r}; {kind} has no such option here")
    values = defaults | {key: value for key, value in given.items() if key in defaults}
    for key, value in values.items():
        if key not in _FREE and value != defaults[key]:
            raise WeightsError(
                f"{where}: {key} is {value!r}; only {defaults[key]!r} has a counterpart here"
            )
    return values


def _choice(values: Mapping[str, Any], key: str, choices: Mapping[str, Any], where: str) -> Any:
    value = values[key]
    if not isinstance(value, str) or value not in choices:
        raise WeightsError(f"{where}: {key} is {value!r}; it has to be one of {', '.join(choices)}")
    return choices[value]


def _number(values: Mapping[str, Any], key: str, where: str) -> float:
    value = values[key]
    if type(value) not in (int, float):
        raise WeightsError(f"{where}: {key} is {value!r}; it has to be a number")
    return float(value)


# ---- the chain


def _chain(values: Mapping[str, Any], where: str) -> Recipe:
    num_steps = values["num_train_timesteps"]
    if type(num_steps) is not int or not 2 <= num_steps <= 1_000_000:
        raise WeightsError(
            f"{where}: num_train_timesteps is {num_steps!r}; it has to be 2 to 1,000,000"
        )
    chain = _betas(values, num_steps, where)
    if not values["rescale_betas_zero_snr"]:
        return chain
    try:
        schedule = getattr(schedules, chain.name)(**chain.arguments)
        betas = _betas_of(schedules.zero_terminal_snr(schedule))
    except ValueError as error:
        raise WeightsError(f"{where}: this chain is refused: {error}") from error
    return Recipe("from_betas", {"betas": betas})


def _betas(values: Mapping[str, Any], num_steps: int, where: str) -> Recipe:
    betas = values["trained_betas"]
    if betas is not None:
        numbers = isinstance(betas, list | tuple) and all(type(b) in (int, float) for b in betas)
        if not numbers or len(betas) != num_steps:
            raise WeightsError(
                f"{where}: trained_betas has to be a list of num_train_timesteps, {num_steps},"
                " numbers"
            )
        return Recipe("from_betas", {"betas": tuple(float(beta) for beta in betas)})
    ends = _number(values, "beta_start", where), _number(values, "beta_end", where)
    linear = {"num_steps": num_steps, "beta_min": ends[0], "beta_max": ends[1]}
    match values["beta_schedule"]:
        case "linear":
            return Recipe("linear", linear)
        case "scaled_linear":
            return Recipe("quadratic", linear)
        case "squaredcos_cap_v2":
            return Recipe("cosine", {"num_steps": num_steps})
        case "sigmoid":  # of the betas, not of alpha_bar as in `schedules.sigmoid`
            part = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, num_steps)))
            betas = (ends[0] + (ends[1] - ends[0]) * part).tolist()
            return Recipe("from_betas", {"betas": tuple(betas)})
    raise WeightsError(
        f"{where}: beta_schedule is {values['beta_schedule']!r}; it has to be linear,"
        " scaled_linear, squaredcos_cap_v2 or sigmoid"
    )


def _betas_of(schedule: schedules.Schedule) -> tuple[float, ...]:
    """In float64."""
    log_alpha_bar = on_host(schedule.log_alpha_bar_parts)
    betas: list[float] = (-np.expm1(np.diff(log_alpha_bar, prepend=0.0))).tolist()
    return tuple(betas)


# ---- the sampler


def _sampler(values: Mapping[str, Any], kind: str, where: str) -> Recipe:
    num_steps = values["num_train_timesteps"]
    if kind == "DPMSolverSinglestepScheduler":
        spacing = "linspace"  # it has no other
    else:
        spacing = _choice(values, "timestep_spacing", {name: name for name in _SPACINGS}, where)
    if spacing == "leading" and values["steps_offset"] != 0:
        raise WeightsError(
            f"{where}: steps_offset is {values['steps_offset']!r}; it has to be 0 for the spacing"
            " 'leading'"
        )
    steps = _PIPELINE_STEPS.get(kind, 50)
    arguments = {
        "steps": None if steps >= num_steps else steps,
        "spacing": spacing,
        "threshold": _threshold(values, where),
    }
    match kind:
        case "DDPMScheduler":
            return Recipe("ancestral", arguments)
        case "DPMSolverMultistepScheduler":
            order = _order(values, (1, 2, 3), where)
            _choice(values, "solver_type", {"midpoint": None}, where)
            kinds = {"dpmsolver++": False, "sde-dpmsolver++": True}
            stochastic = _choice(values, "algorithm_type", kinds, where)
            return Recipe("dpm_solver_pp", arguments | {"order": order, "stochastic": stochastic})
        case "DPMSolverSinglestepScheduler":
            order = _order(values, (2, 3), where)
            _choice(values, "solver_type", {"midpoint" if order == 2 else "heun": None}, where)
            _choice(values, "algorithm_type", {"dpmsolver++": None}, where)
            return Recipe("dpm_solver_pp_single", arguments | {"order": order})
        case "UniPCMultistepScheduler":
            order = _order(values, (1, 2, 3), where)
            variant = _choice(values, "solver_type", _UNIPC_VARIANTS, where)
            if values["lower_order_final"] is not True:
                raise WeightsError(
                    f"{where}: lower_order_final is {values['lower_order_final']!r}; only True has"
                    " a counterpart here"
                )
            return Recipe("unipc", arguments | {"order": order, "variant": variant})
    return Recipe("ddim", arguments | {"eta": 0.0, "noise_after_threshold": False})


def _order(values: Mapping[str, Any], orders: tuple[int, ...], where: str) -> int:
    order = values["solver_order"]
    if type(order) is not int or order not in orders:
        *most, last = map(str, orders)
        raise WeightsError(
            f"{where}: solver_order is {order!r}; it has to be {', '.join(most)} or {last}"
        )
    return order


def _differences(sampler: Recipe) -> Iterator[str]:
    """What diffusers does otherwise than the sampler that stands for its scheduler."""
    name, order = sampler.name, sampler.arguments.get("order")
    if name == "ddim" and sampler.arguments["spacing"] == "linspace":
        yield (
            "diffusers' DDIM goes down by T // steps from each time, where the times of the"
            " spacing 'linspace' are further apart; here each step goes to the next time"
        )
    if name not in ("ddim", "ancestral") and sampler.arguments["spacing"] != "trailing":
        yield (
            "diffusers' solvers make a grid of one time more, and leave out the last; here the"
            " grid has as many times as there are steps"
        )
    if name == "dpm_solver_pp" and order == 3:
        yield "diffusers' DPM-Solver++ of order 3 takes half of the quadratic term; here all of it"
    if name == "unipc" and order == 3:
        yield "diffusers' UniPC of order 3 is of order 2 in its last step but one; here it is not"


def _threshold(values: Mapping[str, Any], where: str) -> Recipe | None:
    if values["thresholding"]:
        largest = _number(values, "sample_max_value", where)
        if largest < 1.0:
            raise WeightsError(f"{where}: sample_max_value is {largest}; it has to be 1 or more")
        if largest == 1.0:  # a plain cut: no image is divided by more
            return Recipe("static_threshold", {})
        quantile = _number(values, "dynamic_thresholding_ratio", where)
        if not 0.0 < quantile <= 1.0:
            raise WeightsError(
                f"{where}: dynamic_thresholding_ratio is {quantile}; it has to be in (0, 1]"
            )
        return Recipe("dynamic_threshold", {"quantile": quantile, "maximum": largest})
    if not values.get("clip_sample", False):
        return None
    limit = _number(values, "clip_sample_range", where)
    if limit <= 0.0:
        raise WeightsError(f"{where}: clip_sample_range is {limit}; it has to be positive")
    return Recipe("static_threshold", {} if limit == 1.0 else {"limit": limit})


# ---- out

_NO_MAXIMUM = 1e9
"""`sample_max_value` of a dynamic threshold without a maximum."""


def config_of_scheduler(
    chain: Recipe | schedules.Schedule,
    predicts: Predicts,
    variance: Variance,
    sampler: Recipe | None = None,
) -> dict[str, Any]:
    """The keys of a `DDPMScheduler`, which diffusers' other schedulers read, too.

    Args:
        chain: named chains keep their name, where diffusers has one; others are written as betas.
        predicts: what the network's output stands for.
        variance: of the reverse process.
        sampler: its threshold and spacing; by default what `DDPMScheduler` does by default.

    Raises:
        WeightsError: a chain, prediction, spacing or threshold that diffusers does not have.
    """
    of_predicts: dict[Predicts, str] = {ours: theirs for theirs, ours in _PREDICTS.items()}
    if predicts not in of_predicts:
        raise WeightsError(
            f"diffusers cannot express predicts={predicts!r} on such a chain: it has"
            f" {', '.join(map(repr, of_predicts))}"
        )
    values = _DEFAULTS["DDPMScheduler"] | _chain_out(chain)
    values |= {
        "prediction_type": of_predicts[predicts],
        "variance_type": {
            "small": "fixed_small",
            "large": "fixed_large",
            "learned_range": "learned_range",
        }[variance],
    }
    for old in ("predict_epsilon", "tensor_format", "timestep_values"):
        del values[old]
    if sampler is None:
        return values
    spacing = sampler.arguments.get("spacing", "linspace")
    if spacing not in _SPACINGS:
        raise WeightsError(
            f"diffusers cannot express spacing={spacing!r}: it has {', '.join(_SPACINGS)}"
        )
    threshold = sampler.arguments.get("threshold", Recipe("static_threshold", {}))
    return values | {"timestep_spacing": spacing} | _threshold_out(threshold)


def _chain_out(chain: Recipe | schedules.Schedule) -> dict[str, Any]:
    if isinstance(chain, Recipe):
        arguments = dict(chain.arguments)
        match chain.name:
            case "linear" | "quadratic":
                return {
                    "beta_schedule": "linear" if chain.name == "linear" else "scaled_linear",
                    "num_train_timesteps": arguments["num_steps"],
                    "beta_start": arguments.get("beta_min", 1e-4),
                    "beta_end": arguments.get("beta_max", 0.02),
                }
            case "cosine" if (
                arguments.get("offset", 0.008) == 0.008
                and arguments.get("max_beta", 0.999) == 0.999
            ):
                return {
                    "beta_schedule": "squaredcos_cap_v2",
                    "num_train_timesteps": arguments["num_steps"],
                }
            case "from_betas":
                return _trained(tuple(float(beta) for beta in arguments["betas"]))
        schedule: schedules.Schedule = getattr(schedules, chain.name)(**arguments)
    else:
        schedule = chain
    times = np.asarray(schedule.network_times)
    if not np.array_equal(times, np.arange(len(times))):
        raise WeightsError(
            "diffusers cannot express a respaced chain: its network is given the steps' own numbers"
        )
    if not schedule.preserves_variance:
        raise WeightsError(
            "diffusers' DDPMScheduler cannot express a chain that does not preserve variance"
        )
    return _trained(_betas_of(schedule))


def _trained(betas: tuple[float, ...]) -> dict[str, Any]:
    return {"trained_betas": [*betas], "num_train_timesteps": len(betas)}


def _threshold_out(threshold: Recipe | None) -> dict[str, Any]:
    if threshold is None:
        return {"clip_sample": False}
    arguments = threshold.arguments
    match threshold.name:
        case "static_threshold":
            return {"clip_sample": True, "clip_sample_range": arguments.get("limit", 1.0)}
        case "dynamic_threshold":
            return {
                "thresholding": True,
                "dynamic_thresholding_ratio": arguments.get("quantile", 0.995),
                "sample_max_value": arguments.get("maximum") or _NO_MAXIMUM,
            }
    raise WeightsError(f"diffusers cannot express the threshold {threshold.name}")
