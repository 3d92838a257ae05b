"""Images and bits/dim of networks of diffusers, beside its pipelines and a loop in PyTorch."""

import contextlib
import functools
import importlib
import itertools
import math
import warnings

import diffusers_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers_folders import CONFIGS, SMALL
from peers import diffusers, scheduling_ddpm, torch

from ddpm_jax import likelihood, samplers
from ddpm_jax.models import UNet
from ddpm_jax.samplers import SamplerState
from ddpm_jax.weights import LazyArray, WeightsError
from ddpm_jax.weights.diffusers import from_diffusers
from ddpm_jax.weights.to_diffusers import to_diffusers

# NumPy's, of how their schedulers hand it tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

KEY = jax.random.key(0)
GREY = 1.0 / 255.0


@pytest.fixture(scope="module")
def network():
    """Its eps_hat is near to eps, so that images are not at the bounds alone."""
    network = folders.network_of(SMALL)
    with torch.no_grad():
        network.conv_out.weight.mul_(0.5)
    return network


def start(network, seed=0, batch=2):
    """What a pipeline begins with, in their layout."""
    size, channels = network.config.sample_size, network.config.in_channels
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, channels, size, size), generator=generator)


def our_layout(tensor):
    return jnp.asarray(np.moveaxis(tensor.numpy(), 1, -1))


def threshold_of(recipe):
    match recipe:
        case None:
            return None
        case ("static_threshold", arguments):
            return functools.partial(samplers.static_threshold, **arguments)
        case (name, arguments):
            return getattr(samplers, name)(**arguments)


def sampler_of(weights, **changes):
    """As the recipe says, and its times."""
    arguments = {**weights.sampler.arguments, **changes}
    times = samplers.time_grid(
        weights.schedule,
        arguments.pop("steps") or weights.schedule.num_steps,
        arguments.pop("spacing"),
    )
    arguments["threshold"] = threshold_of(arguments.pop("threshold"))
    predict = functools.partial(weights.network.apply, weights.params())
    make = getattr(samplers, weights.sampler.name)
    return make(weights.schedule, predict, predicts=weights.predicts, **arguments), times


def to_pixels(x0):
    return np.clip(np.asarray(x0) / 2 + 0.5, 0.0, 1.0)


def check_pixels(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.std(theirs) > 0.1
    assert np.abs(ours - theirs).max() < GREY


@pytest.mark.parametrize(
    "options",
    [
        {"thresholding": True, "sample_max_value": 3.0, "timestep_spacing": "trailing"},
        *(
            pytest.param(options, marks=pytest.mark.thorough)
            for options in (
                {},
                {"clip_sample": False, "beta_schedule": "squaredcos_cap_v2"}
                | {"prediction_type": "sample"},
                {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"},
                {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
                | {"timestep_spacing": "trailing", "clip_sample_range": 1.5},
            )
        ),
    ],
    ids=["thresholding", "defaults", "sample", "v", "zero snr"],
)
def test_fifty_steps_of_ddim(network, options, tmp_path):
    scheduler = diffusers.DDIMScheduler(**options)
    weights = from_diffusers(folders.save(network, tmp_path / "pipeline", scheduler))
    sampler, times = sampler_of(weights)
    assert (weights.sampler.name, len(times)) == ("ddim", 50)
    x_T = start(network)
    shape = (2, *weights.image_shape)
    ours = samplers.sample(sampler, KEY, shape, times, start=our_layout(x_T)).x0
    check_pixels(to_pixels(ours), drawn(diffusers.DDIMPipeline(network, scheduler), 50))


def drawn(pipeline, steps, batch=2):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        batch_size=batch, num_inference_steps=steps, generator=generator, output_type="np"
    ).images


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("UniPCMultistepScheduler", {"timestep_spacing": "trailing"}),
        ("UniPCMultistepScheduler", {"solver_order": 1}),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
        ("DPMSolverSinglestepScheduler", {}),
        ("DPMSolverSinglestepScheduler", {"solver_order": 3, "solver_type": "heun"}),
    ],
)
def test_a_solver_at_their_times(network, kind, options, tmp_path):
    steps = 9
    scheduler = getattr(diffusers, kind)(prediction_type="v_prediction", **options)
    weights = from_diffusers(folders.save(network, tmp_path / "pipeline", scheduler))
    scheduler.set_timesteps(steps)
    x = start(network)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
    sampler, _ = sampler_of(weights)
    if options.get("timestep_spacing") == "trailing":
        grid = samplers.time_grid(weights.schedule, steps, "trailing")
        np.testing.assert_array_equal(grid, scheduler.timesteps)
    times = jnp.asarray(scheduler.timesteps.numpy().astype(np.int32))
    shape = (2, *weights.image_shape)
    ours = samplers.sample(sampler, KEY, shape, times, start=our_layout(start(network))).x0
    check_pixels(to_pixels(ours), to_pixels(our_layout(x)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("cifar10", {"variance_type": "fixed_large"}, marks=pytest.mark.thorough),
        pytest.param(
            "cifar10",
            {"prediction_type": "sample", "beta_schedule": "sigmoid"},
            marks=pytest.mark.thorough,
        ),
        ("learned variance", {"variance_type": "learned_range", "prediction_type": "v_prediction"}),
    ],
)
def test_the_chain_with_their_noise(name, options, tmp_path, monkeypatch):
    network = folders.network_of(CONFIGS[name])
    scheduler = diffusers.DDPMScheduler(20, **options)
    weights = from_diffusers(folders.save(network, tmp_path / "pipeline", scheduler))
    noises, draw = [], scheduling_ddpm.randn_tensor

    def drawn_and_noted(*args, **kwargs):
        noises.append(draw(*args, **kwargs))
        return noises[-1]

    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", drawn_and_noted)
    theirs = drawn(diffusers.DDPMPipeline(network, scheduler), 20)
    assert len(noises) == 19  # none on the last step

    sampler, times = sampler_of(weights, variance=weights.variance)
    module = importlib.import_module("ddpm_jax.samplers.ancestral")

    @jax.jit
    def step(x_t, t, s, noise):
        with monkeypatch.context() as patch:
            patch.setattr(module, "normal", lambda *_: noise[..., : x_t.shape[-1]])
            return sampler.step(KEY, SamplerState(x_t), t, s)[0].x_t

    x = our_layout(start(network))
    noises = [*map(our_layout, noises), jnp.zeros(x.shape)]
    for (t, s), noise in zip(itertools.pairwise([*times, jnp.int32(-1)]), noises, strict=True):
        x = step(x, t, s, noise)
    check_pixels(to_pixels(x), theirs)


# ---- out


def test_a_written_pipeline_loads_without_a_warning_and_draws_the_same(network, tmp_path, capsys):
    scheduler = diffusers.DDPMScheduler(30, beta_end=0.3, clip_sample_range=1.5)
    weights = from_diffusers(folders.save(network, tmp_path / "pipeline", scheduler))
    arguments = {name: getattr(weights, name) for name in ("chain", "predicts", "variance")}
    out = tmp_path / "out"
    to_diffusers(
        out,
        weights.network,
        weights.image_shape,
        weights.arrays["ema"],
        sampler=weights.sampler,
        **arguments,
    )
    messages = []
    with warnings.catch_warnings(), heard(messages):
        warnings.simplefilter("error")
        read = diffusers.DDPMPipeline.from_pretrained(out, low_cpu_mem_usage=False)
    assert messages == []
    assert read.scheduler.config.clip_sample_range == 1.5
    np.testing.assert_array_equal(
        drawn(read, 30), drawn(diffusers.DDPMPipeline(network, scheduler), 30)
    )


@contextlib.contextmanager
def heard(messages):
    """Whatever diffusers logs as a warning."""
    import logging

    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


# ---- folders as diffusers and others write them


apply = jax.jit(UNet.apply, static_argnums=0)  # compiled once for equal networks


def outputs_agree(weights, network, name="ema"):
    x_t, t, _ = folders.inputs(SMALL)
    ours = apply(weights.network, weights.params(name), jnp.float32(x_t), t)
    theirs = folders.their_output(network, np.float32(x_t), t)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "options",
    [
        {"max_shard_size": "20KB"},
        {"safe_serialization": False},
        {"safe_serialization": False, "max_shard_size": "20KB"},
        {"variant": "fp16"},
        {"variant": "fp16", "safe_serialization": False},
        {"variant": "fp16", "max_shard_size": "20KB"},
    ],
    ids=str,
)
def test_files_of_parameters(network, options, tmp_path):
    folder = folders.save(network, tmp_path / "pipeline", **options)
    names = [path.name for path in (folder / "unet").iterdir()]
    assert "diffusion_pytorch_model.safetensors" not in names
    if "max_shard_size" in options:
        assert len(names) > 4
    outputs_agree(from_diffusers(folder), network)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_as_float32(dtype, tmp_path):
    network = folders.network_of(SMALL).to(dtype)
    weights = from_diffusers(folders.save(network, tmp_path / "pipeline"))
    assert weights.arrays["ema"]["input/kernel"].read().dtype == np.float32
    outputs_agree(weights, network.float())


def test_a_checkpoint_of_training_has_an_average_beside_its_parameters(network, tmp_path):
    other = folders.network_of(SMALL, seed=1)
    average = diffusers.training_utils.EMAModel(
        other.parameters(), model_cls=diffusers.UNet2DModel, model_config=other.config
    )
    average.save_pretrained(tmp_path / "unet_ema")
    network.save_pretrained(tmp_path / "unet")
    with pytest.raises(WeightsError, match="without a scheduler; give chain and predicts"):
        from_diffusers(tmp_path)
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    weights = from_diffusers(tmp_path)
    outputs_agree(weights, other)
    outputs_agree(weights, network, "raw")


@pytest.mark.parametrize("safe", [True, False])
def test_old_names_of_attention(network, safe, tmp_path):
    folder = folders.save(network, tmp_path / "pipeline")
    (file,) = (folder / "unet").glob("*.safetensors")
    state, old = network.state_dict(), {}
    news = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name, value in state.items():
        for new, before in news.items():
            name = name.replace(f".{new}.", f".{before}.")
        # Layers of attention were convolutions once.
        old[name] = value[:, :, None, None] if "query.weight" in name else value
    assert not old.keys() & {name for name in state if "to_q" in name}
    file.unlink()
    if safe:
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in old.items()}, file)
    else:
        torch.save(old, file.with_suffix(".bin"))
    outputs_agree(from_diffusers(folder), network)


# ---- bits/dim


def bits_per_dim_in_torch(network, scheduler, images, noises):
    """Minus the ELBO of grey levels in [-1, 1], in float64, one time after the other."""
    betas = scheduler.betas.double().numpy()
    alpha_bar = np.cumprod(1.0 - betas)
    x0 = torch.from_numpy(np.moveaxis(images, -1, 1)).double()
    last = alpha_bar[-1]
    nats = 0.5 * (last * x0**2 - last - math.log(1.0 - last))
    half = 1.0 / 255.0
    for t, eps in enumerate(noises):
        eps = torch.from_numpy(np.moveaxis(np.array(eps), -1, 1)).double()
        a, b = math.sqrt(alpha_bar[t]), math.sqrt(1.0 - alpha_bar[t])
        x_t = a * x0 + b * eps
        with torch.inference_mode():
            eps_hat = network(x_t, torch.full((len(x0),), t)).sample
        x0_hat = (x_t - b * eps_hat) / a
        if t == 0:
            upper, lower = (torch.special.ndtr((x0 - x0_hat + side) / b) for side in (half, -half))
            upper = torch.where(x0 > 0.999, 1.0, upper)
            lower = torch.where(x0 < -0.999, 0.0, lower)
            nats = nats - (upper - lower).log()
        else:
            before = alpha_bar[t - 1]
            small = betas[t] * (1.0 - before) / (1.0 - alpha_bar[t])
            weight = math.sqrt(before) * betas[t] / (1.0 - alpha_bar[t])
            nats = nats + 0.5 * (weight * (x0 - x0_hat)) ** 2 / small
    return nats.flatten(1).mean(1).numpy() / math.log(2.0)


def test_bits_per_dim(network, tmp_path):
    scheduler = diffusers.DDPMScheduler(8, beta_start=0.02, beta_end=0.6)
    weights = from_diffusers(folders.save(network, tmp_path / "pipeline", scheduler))
    shape = (3, *weights.image_shape)
    images = np.random.default_rng(0).integers(0, 256, shape) / 127.5 - 1.0
    noises = [jax.random.normal(jax.random.fold_in(KEY, t), shape) for t in range(8)]
    wide = folders.widened(folders.network_of(SMALL))
    wide.load_state_dict(network.state_dict())
    theirs = bits_per_dim_in_torch(wide, scheduler, images, noises)
    ours = likelihood.bits_per_dim(
        weights.schedule,
        functools.partial(weights.network.apply, weights.params()),
        KEY,
        jnp.float32(images),
        predicts=weights.predicts,
        variance=weights.variance,
        levels=256,
    )
    assert np.isfinite(theirs).all()
    np.testing.assert_allclose(ours.total, theirs, rtol=1e-5)


def test_an_array_that_cannot_be_read_leaves_nothing(network, tmp_path):
    weights = from_diffusers(folders.save(network, tmp_path / "pipeline"))

    def fail():
        raise WeightsError("gone")

    arrays = {**weights.arrays["ema"], "input/bias": LazyArray((8,), fail)}
    with pytest.raises(WeightsError, match="gone"):
        to_diffusers(
            tmp_path / "out",
            weights.network,
            weights.image_shape,
            arrays,
            chain=weights.chain,
            predicts="eps",
            variance="small",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
