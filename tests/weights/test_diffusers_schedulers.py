"""Configurations of diffusers' schedulers as chains and samplers, and back."""

import numpy as np
import pytest

from ddpm_jax import schedules
from ddpm_jax.weights import Recipe, WeightsError
from ddpm_jax.weights.diffusers_schedulers import config_of_scheduler, scheduler_of_config

DDPM, DDIM = {"_class_name": "DDPMScheduler"}, {"_class_name": "DDIMScheduler"}
SOLVER = {"_class_name": "DPMSolverMultistepScheduler"}
SINGLE = {"_class_name": "DPMSolverSinglestepScheduler"}
UNIPC = {"_class_name": "UniPCMultistepScheduler"}


def read(config, **kwargs):
    return scheduler_of_config(config, "scheduler_config.json", **kwargs)


def test_defaults():
    found = read(DDPM)
    assert found.chain == ("linear", {"num_steps": 1000, "beta_min": 1e-4, "beta_max": 0.02})
    assert (found.predicts, found.variance, found.notes) == ("eps", "small", ())
    threshold = Recipe("static_threshold", {})
    arguments = {"steps": None, "spacing": "leading", "threshold": threshold}
    assert found.sampler == ("ancestral", arguments)
    more = {"steps": 50, "eta": 0.0, "noise_after_threshold": False}
    assert read(DDIM).sampler == ("ddim", arguments | more)
    more = {"steps": 50, "spacing": "linspace", "threshold": None, "order": 2, "stochastic": False}
    assert read(SOLVER).sampler == ("dpm_solver_pp", more)
    more = {"steps": 50, "spacing": "linspace", "threshold": None, "order": 2}
    assert read(SINGLE).sampler == ("dpm_solver_pp_single", more)
    assert read(UNIPC).sampler == ("unipc", more | {"variant": "bh2"})


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        ({"beta_schedule": "squaredcos_cap_v2"}, "chain", ("cosine", {"num_steps": 1000})),
        (
            {"beta_schedule": "scaled_linear", "num_train_timesteps": 9, "beta_end": 0.1},
            "chain",
            ("quadratic", {"num_steps": 9, "beta_min": 1e-4, "beta_max": 0.1}),
        ),
        (
            {"trained_betas": [0.1, 1], "num_train_timesteps": 2, "prediction_type": "sample"},
            "chain",
            ("from_betas", {"betas": (0.1, 1.0)}),
        ),
        ({"prediction_type": "sample"}, "predicts", "x0"),
        ({"prediction_type": "v_prediction"}, "predicts", "v"),
        ({"predict_epsilon": False}, "predicts", "x0"),
        ({"predict_epsilon": True, "tensor_format": "np"}, "predicts", "eps"),
        ({"variance_type": "fixed_large"}, "variance", "large"),
        ({"variance_type": "fixed_small_log"}, "variance", "small"),
        ({"variance_type": "learned_range"}, "variance", "learned_range"),
    ],
)
def test_chain_prediction_and_variance(config, field, value):
    assert getattr(read(DDPM | config), field) == value


@pytest.mark.parametrize(
    ("config", "threshold"),
    [
        ({"clip_sample": False}, None),
        ({"clip_sample_range": 2}, ("static_threshold", {"limit": 2.0})),
        ({"thresholding": True}, ("static_threshold", {})),
        (
            {"thresholding": True, "sample_max_value": 5.0, "dynamic_thresholding_ratio": 0.9},
            ("dynamic_threshold", {"quantile": 0.9, "maximum": 5.0}),
        ),
    ],
)
def test_thresholds(config, threshold):
    assert read(DDPM | config).sampler.arguments["threshold"] == threshold


def test_a_sigmoid_of_betas():
    betas = read(DDPM | {"beta_schedule": "sigmoid"}).chain.arguments["betas"]
    x = np.linspace(-6, 6, 1000)
    np.testing.assert_allclose(betas, 1e-4 + 0.0199 / (1 + np.exp(-x)), rtol=1e-12)


def test_zero_terminal_snr():
    config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    chain = read(DDPM | config).chain
    expected = schedules.zero_terminal_snr(schedules.linear(1000))
    made = schedules.from_betas(np.array(chain.arguments["betas"]))
    assert float(made.alpha_bar[-1]) == 0.0
    np.testing.assert_allclose(made.log_snr[:-1], expected.log_snr[:-1], rtol=1e-5)


def test_more_steps_than_the_pipeline_takes():
    assert read(DDPM | {"num_train_timesteps": 4000}).sampler.arguments["steps"] == 1000
    assert read(DDIM | {"num_train_timesteps": 20}).sampler.arguments["steps"] is None


def test_the_solver_of_stochastic_differential_equations():
    config = {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}
    arguments = read(SOLVER | config | {"lambda_min_clipped": -np.inf}).sampler.arguments
    assert (arguments["order"], arguments["stochastic"]) == (1, True)


def test_the_third_order_of_each_solver():
    for config, difference in [
        (SOLVER, "takes half of the quadratic term"),
        (SINGLE | {"solver_type": "heun"}, None),
        (UNIPC | {"solver_type": "bh1"}, "is of order 2 in its last step but one"),
    ]:
        found = read(config | {"solver_order": 3})
        assert found.sampler.arguments["order"] == 3
        grid, *others = found.notes
        assert "a grid of one time more" in grid
        assert len(others) == (difference is not None)
        assert all(difference in note for note in others)


def test_a_solver_of_the_same_grid_has_no_note():
    config = UNIPC | {"timestep_spacing": "trailing", "solver_type": "midpoint"}
    assert (read(config).sampler.arguments["variant"], read(config).notes) == ("bh2", ())
    # It has the spacing "linspace" alone; another one in its file is of the class before it.
    assert (
        read(SINGLE | {"timestep_spacing": "trailing"}).sampler.arguments["spacing"] == "linspace"
    )


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (DDPM | {"beta_schedule": "laplace"}, "beta_schedule is 'laplace'"),
        (DDPM | {"prediction_type": "flow"}, "prediction_type is 'flow'; it has to be one of"),
        (DDPM | {"prediction_type": "flow_prediction"}, "is 'flow_prediction'; it has to be one"),
        (DDPM | {"variance_type": "learned"}, "variance_type is 'learned'"),
        (DDPM | {"variance_type": "fixed_large_log"}, "variance_type is 'fixed_large_log'"),
        (DDPM | {"timestep_spacing": "karras"}, "timestep_spacing is 'karras'"),
        (DDPM | {"steps_offset": 1}, "steps_offset is 1"),
        (DDPM | {"num_train_timesteps": 1}, "num_train_timesteps is 1"),
        (DDPM | {"num_train_timesteps": "1000"}, "num_train_timesteps is '1000'"),
        (DDPM | {"beta_start": "a"}, "beta_start is 'a'"),
        (DDPM | {"beta_end": 1.5}, "this chain is refused: .*1.5"),
        (DDPM | {"beta_start": 0.0}, "this chain is refused"),
        (DDPM | {"trained_betas": [0.1, 0.2]}, "trained_betas has to be a list of num_train_times"),
        (
            DDPM | {"trained_betas": [0.1, -0.2], "num_train_timesteps": 2},
            r"refused: betas\[1\] is -0.2",
        ),
        (DDPM | {"trained_betas": [1, 0.2], "num_train_timesteps": 2}, r"betas\[0\] is 1"),
        (DDPM | {"rescale_betas_zero_snr": True}, "its last beta is 1"),
        (DDPM | {"timestep_values": [3]}, r"timestep_values is \[3\]"),
        (DDPM | {"sample_max_value": 0.5, "thresholding": True}, "sample_max_value is 0.5"),
        (DDPM | {"clip_sample_range": 0}, "clip_sample_range is 0"),
        (DDPM | {"future": 1}, "future is 1; DDPMScheduler has no such option"),
        (DDIM | {"set_alpha_to_one": False}, "set_alpha_to_one is False; only True"),
        (SOLVER | {"solver_order": 4}, "solver_order is 4; it has to be 1, 2 or 3"),
        (SOLVER | {"solver_type": "heun"}, "solver_type is 'heun'; it has to be one of midpoint"),
        (SINGLE | {"solver_order": 1}, "solver_order is 1; it has to be 2 or 3"),
        (SINGLE | {"solver_order": 3}, "solver_type is 'midpoint'; it has to be one of heun"),
        (SINGLE | {"algorithm_type": "sde-dpmsolver++"}, "is 'sde-dpmsolver\\+\\+'"),
        (UNIPC | {"solver_order": 2.0}, "solver_order is 2.0; it has to be 1, 2 or 3"),
        (UNIPC | {"solver_type": "bh3"}, "solver_type is 'bh3'"),
        (UNIPC | {"predict_x0": False}, "predict_x0 is False"),
        (UNIPC | {"lower_order_final": False}, "lower_order_final is False; only True"),
        (UNIPC | {"disable_corrector": [0]}, r"disable_corrector is \[0\]; only \[\]"),
        (SOLVER | {"algorithm_type": "dpmsolver"}, "algorithm_type is 'dpmsolver'"),
        (SOLVER | {"use_karras_sigmas": True}, "use_karras_sigmas is True"),
        (SOLVER | {"final_sigmas_type": "sigma_min"}, "final_sigmas_type is 'sigma_min'"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "'ScoreSdeVeScheduler'; supported are"),
        ({}, "_class_name is 'None'"),
    ],
)
def test_what_has_no_counterpart_is_named(config, sentence):
    with pytest.raises(WeightsError, match=sentence):
        read(config)


def test_other_schedulers_of_the_same_chain_are_noted():
    found = read({"_class_name": "PNDMScheduler", "skip_prk_steps": True, "beta_end": 0.01})
    assert found.chain.arguments["beta_max"] == 0.01
    assert found.sampler.name == "ddim"
    assert found.notes == (
        "the sampler of PNDMScheduler is not read; images are drawn by DDIM in its place",
    )


def test_a_sampler_takes_the_place_of_what_has_no_counterpart():
    heun = Recipe("heun", {})
    assert read({"_class_name": "PNDMScheduler"}, sampler=heun).notes == ()
    assert read(DDPM | {"steps_offset": 1}, sampler=heun).sampler == heun


# ---- out


@pytest.mark.parametrize(
    "config",
    [
        {},
        {
            "beta_schedule": "squaredcos_cap_v2",
            "clip_sample": False,
            "variance_type": "fixed_large",
        },
        {"beta_schedule": "scaled_linear", "prediction_type": "sample", "clip_sample_range": 2.0},
        {"trained_betas": [0.1, 0.2, 0.35], "num_train_timesteps": 3},
        {"thresholding": True, "sample_max_value": 9.0, "timestep_spacing": "trailing"},
    ],
)
def test_in_and_out_is_the_same(config):
    found = read(DDPM | config)
    written = config_of_scheduler(found.chain, found.predicts, found.variance, found.sampler)
    for key, value in config.items():
        assert written[key] == value
    assert read(DDPM | written) == found


@pytest.mark.parametrize(
    "chain",
    [
        Recipe("cosine", {"num_steps": 9, "offset": 0.01}),
        Recipe("sigmoid", {"num_steps": 9}),
        schedules.shifted(schedules.cosine(9), resolution=128),
    ],
)
def test_other_chains_are_written_as_betas(chain):
    made = getattr(schedules, chain.name)(**chain.arguments) if type(chain) is Recipe else chain
    betas = config_of_scheduler(chain, "eps", "small")["trained_betas"]
    np.testing.assert_allclose(betas, made.betas, rtol=1e-6)


def test_what_diffusers_does_not_have_is_named():
    respaced = schedules.respaced(schedules.linear(100), [0, 50, 99])
    with pytest.raises(WeightsError, match="a respaced chain"):
        config_of_scheduler(respaced, "eps", "small")
    for kind in ("flow", "score", "edm"):
        with pytest.raises(WeightsError, match=f"predicts='{kind}' on such a chain: it has 'eps',"):
            config_of_scheduler(Recipe("linear", {"num_steps": 9}), kind, "small")
    with pytest.raises(WeightsError, match="spacing='log_snr'"):
        config_of_scheduler(
            Recipe("linear", {"num_steps": 9}),
            "eps",
            "small",
            Recipe("ddim", {"spacing": "log_snr"}),
        )
