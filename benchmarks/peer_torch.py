r"""diffusers' side of a comparison: the network, the train step and the samplers in PyTorch.

The network is `diffusers.UNet2DModel` with the options that `ddpm_jax.weights` writes for that of a
config: the same layers and as many parameters. `copy_params` gives it those of this library's
network, and then it computes the same.

The step is what a training script of PyTorch does: draws of t and noise, `add_noise`, network, mean
squared error, backward, `clip_grad_norm_`, `torch.optim.Adam` (fused where it is there), and the
average of the parameters by one `torch._foreach_lerp_`. Images are bytes on the device already.
"""

import contextlib
import functools
import os
import shutil
import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from benchmarks.network_cases import What, with_chain
from benchmarks.results import Row
from benchmarks.settings import unet_of
from ddpm_jax.config import Adam, Config, Isotropic, UNet, make_schedule, member_name
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import image_spec_of
from ddpm_jax.weights.diffusers_names import their_array, their_name
from ddpm_jax.weights.diffusers_networks import config_of_network

__all__ = [
    "COMPILED",
    "ENVIRONMENT",
    "OURS",
    "PAUSE",
    "THEIRS",
    "Libraries",
    "Peer",
    "check_network",
    "copy_params",
    "import_libraries",
    "make_network",
    "notes_of_unavailable",
    "torch_device",
    "waited_for",
    "why_not_compiled",
]

KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
"""What a network predicts, and what diffusers calls it."""
PAUSE = 0.005
"""Seconds between runs, in which the other library's threads go to sleep."""
_PARTS = (
    *("UNet2DModel", "DDIMPipeline", "DDPMPipeline"),
    *("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"),
)
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""Of a suite in which two libraries share a GPU."""
OURS, THEIRS, COMPILED = "ddpm_jax", "diffusers", "diffusers, compiled"
"""Who does it."""


class Libraries(NamedTuple):
    """PyTorch and diffusers, imported."""

    torch: Any
    diffusers: Any


def import_libraries(suite: str) -> Libraries:
    """Imports both.

    Raises:
        UserError: one of them is not installed; it names the extra that brings them.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, of nothing that is used here
            import diffusers
            import torch
            from diffusers.utils import import_utils

            # No network or scheduler needs torchvision, and one that was built for CUDA does not
            # load beside a PyTorch without it.
            import_utils._torchvision_available = False
            import_utils._transformers_available = False  # it would import torchvision, too
            for name in _PARTS:  # diffusers imports a part when it is first used
                getattr(diffusers, name)
    except ImportError as error:
        raise UserError(
            f"the suite {suite} needs diffusers and PyTorch, of the extra 'peers':"
            f" pip install -e '.[peers]', on Python 3.11 ({error})"
        ) from error
    torch.set_num_threads(cores())
    return Libraries(torch, diffusers)


def waited_for(torch: Any, device: str, function: Callable[[], Any]) -> Any:
    """What `function` returns, when the device is done with it."""
    result = function()
    if device == "cuda":
        torch.cuda.synchronize()
    return result


def why_not_compiled(error: Exception) -> str:
    """Why `torch.compile` raised `error`, in one line."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "torch.compile wants a C++ compiler, and there is none"
    return f"torch.compile fails: {type(error).__name__}"


def notes_of_unavailable(rows: list[Row]) -> list[str]:
    """Why rows of `torch.compile` are missing from a table, each reason once."""
    reasons = {row.numbers["unavailable"] for row in rows if "unavailable" in row.numbers}
    return [f"No compiled mode of diffusers' is in the table: {why}." for why in reasons]


def cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_network(config: Config, image_shape: tuple[int, int, int]) -> None:
    """Raises UserError for a network that `diffusers.UNet2DModel` has no counterpart of."""
    model = config.network
    if type(model) is not UNet:  # a subclass may make anything
        raise UserError(
            f"network is {type(model).__name__}; diffusers has a counterpart of the UNet alone"
        )
    if model.variance == "learned_range" or model.classes:
        raise UserError(
            f"network.variance is {model.variance!r} and network.classes is {model.classes}; this"
            " suite compares networks with one output and without classes"
        )
    if not isinstance(config.process, Isotropic):
        raise UserError(
            f"process is {member_name(type(config.process))}; diffusers has isotropic chains alone"
        )
    if not isinstance(config.optimizer, Adam):
        raise UserError(
            f"optimizer is {member_name(type(config.optimizer))}; this suite compares Adam"
        )
    if image_shape[0] != image_shape[1]:
        raise UserError(f"images are {image_shape}; diffusers' pipelines draw square ones")
    config_of_network(_our_network(config), image_shape)


def make_network(diffusers: Any, config: Config, image_shape: tuple[int, int, int]) -> Any:
    """The network of `config` as diffusers has it, its parameters drawn by PyTorch."""
    return diffusers.UNet2DModel(**config_of_network(_our_network(config), image_shape))


def _our_network(config: Config) -> Any:
    return unet_of(config).make(image_spec_of(config))


def copy_params(params: Mapping[str, Any], network: Any, torch: Any) -> None:
    """Gives diffusers' network the parameters of ours, `{"params": {layer: ...}}`.

    Raises:
        KeyError: a layer that one of them has and the other has not.
    """
    left = dict(network.named_parameters())
    levels = len(network.down_blocks)
    with torch.no_grad():
        for path, leaf in flatten_dict(params["params"], sep="/").items():
            value = their_array(path, np.asarray(leaf))
            left.pop(their_name(path, levels)).copy_(torch.from_numpy(value.copy()))
    if left:
        raise KeyError(f"diffusers' network has more parameters: {', '.join(left)}")


class Peer:
    """What diffusers does with one config, each method once; results are waited for."""

    def __init__(
        self,
        libraries: Libraries,
        config: Config,
        image_shape: tuple[int, int, int],
        *,
        device: str,
        dtype: str,
        seed: int,
    ) -> None:
        torch, diffusers = libraries
        self._torch, self._diffusers, self._config = torch, diffusers, config
        self._device, self._dtype = torch.device(device), dtype
        torch.manual_seed(seed)
        network = make_network(diffusers, config, image_shape).to(self._device)
        on_gpu = self._device.type == "cuda"
        # A CPU's convolutions of float32 take NCHW at least as well.
        layout = torch.channels_last if on_gpu else torch.contiguous_format
        self._layout = {"memory_format": layout}
        self.network = network.to(**self._layout)
        if dtype != "float32":  # samplers go on in the network's dtype, and NumPy has no bfloat16
            self.network.register_forward_hook(_widened)
        self._tables = _Tables(config)
        betas = self._tables.betas
        # trained_betas: our own chain, whatever its name is there.
        self._chain: dict[str, Any] = {
            "num_train_timesteps": len(betas),
            "trained_betas": betas,
            "prediction_type": KINDS[config.network.predicts],
        }
        self._scheduler = diffusers.DDPMScheduler(**self._chain)
        self._params = list(self.network.parameters())
        self._pipelines: dict[str, Any] = {}
        self._average: list[Any] = []
        self._optimizer: Any = None
        self._rng = np.random.default_rng(seed)
        self._shape = (image_shape[2], *image_shape[:2])

    def make_run(self, what: What, batch: int, steps: int) -> Callable[[], Any]:
        """One of the cases of `benchmarks.network_cases`, on inputs that are there already."""
        match what:
            case "train step":
                return functools.partial(self.train_step, self.images(batch))
            case "forward pass":
                return functools.partial(self.forward, *self.inputs(batch))
            case "DDIM":
                return functools.partial(self.ddim, batch, steps)
            case "DPM-Solver++":
                return functools.partial(self.dpm_solver, batch, steps)
        chain = with_chain(self._config, steps)
        return functools.partial(self.bits_per_dim, self.images(batch), tables=_Tables(chain))

    @property
    def parameters(self) -> int:
        """How many numbers the network has."""
        return sum(int(leaf.numel()) for leaf in self._params)

    def images(self, batch: int) -> Any:
        """Random bytes, `[batch, channel, height, width]`, on the device."""
        made = self._rng.integers(0, 256, (batch, *self._shape), np.uint8)
        return self._torch.from_numpy(made).to(self._device)

    def train_step(self, images: Any) -> None:
        """Forward, backward, clip, Adam, average."""
        torch, config = self._torch, self._config
        self._start_training()
        x0 = self._scaled(images)
        t = torch.randint(0, len(self._tables.betas), (len(x0),), device=self._device)
        eps = torch.randn_like(x0)
        x_t = self._scheduler.add_noise(x0, eps, t)
        with self._autocast():
            output = self.network(x_t, t).sample
        target = self._target(x0, eps, t)
        loss = torch.nn.functional.mse_loss(output, target)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._params, config.optimizer.clip_norm)
        self._optimizer.step()
        with torch.no_grad():
            decay = config.averages.decays[0]
            torch._foreach_lerp_(self._average, self._params, 1.0 - decay)
        self._wait()

    def forward(self, x_t: Any, t: Any) -> Any:
        """The prediction at `(x_t, t)`, dropout off."""
        self.network.eval()
        with self._torch.inference_mode(), self._autocast():
            output = self.network(x_t, t).sample
        self._wait()
        return output

    def inputs(self, batch: int) -> tuple[Any, Any]:
        """x_t and t for `forward`."""
        x_t = self._torch.randn((batch, *self._shape), device=self._device).to(**self._layout)
        t = self._rng.integers(0, len(self._tables.betas), batch)
        return x_t, self._torch.from_numpy(t).to(self._device)

    def ddim(self, batch: int, steps: int) -> Any:
        """Images by `DDIMPipeline`."""
        scheduler = self._diffusers.DDIMScheduler(**self._chain)
        return self._draw("DDIMPipeline", scheduler, batch, steps)

    def dpm_solver(self, batch: int, steps: int) -> Any:
        """Images by DPM-Solver++ (2M) in the pipeline that takes any scheduler."""
        scheduler = self._diffusers.DPMSolverMultistepScheduler(**self._chain)
        return self._draw("DDPMPipeline", scheduler, batch, steps)

    def bits_per_dim(
        self,
        images: Any,
        noise: Callable[[int], Any] | None = None,
        *,
        tables: "_Tables | None" = None,
    ) -> Any:
        """Minus the whole ELBO of each image in bits/dim: a plain loop over all T.

        Args:
            images: bytes.
            noise: of a time, `[batch, channel, height, width]`; drawn where it is not given.
            tables: of the chain, where it is not the config's.
        """
        torch, tables = self._torch, tables or self._tables
        self.network.eval()
        x0 = self._scaled(images)
        rest = tables.alpha_bar[-1]  # KL of N(a x0, 1 - a^2) to N(0, 1)
        nats = 0.5 * (rest * x0.square() - rest - float(np.log1p(-rest))).flatten(1).sum(1)
        with torch.inference_mode():
            for t in range(len(tables.betas)):
                eps = torch.randn_like(x0) if noise is None else noise(t)
                a, b = tables.signal[t], tables.noise[t]
                x_t = a * x0 + b * eps
                with self._autocast():
                    output = self.network(x_t, torch.full((len(x0),), t, device=self._device))
                x0_hat = self._x0_hat(output.sample, x_t, a, b)
                nats += self._decoder(x0, x0_hat, b) if t == 0 else self._kl(x0, x0_hat, t, tables)
        bits = nats / (x0[0].numel() * np.log(2.0))
        self._wait()
        return bits

    def _kl(self, x0: Any, x0_hat: Any, t: int, tables: "_Tables") -> Any:
        """Of the posteriors of x_{t-1}, whose means differ as their x0 do."""
        true = tables.posterior_variance[t]
        model = true if self._config.network.variance == "small" else tables.betas[t]
        squared = (tables.weight_x0[t] * (x0 - x0_hat)).square() / model
        ratio = true / model
        return 0.5 * (squared + ratio - 1.0 - float(np.log(ratio))).flatten(1).sum(1)

    def _decoder(self, x0: Any, x0_hat: Any, deviation: float) -> Any:
        """Minus the log likelihood of the grey levels, as published code of DDPM takes it."""
        torch, half = self._torch, 1.0 / 255.0
        upper = torch.special.ndtr((x0 - x0_hat + half) / deviation)
        lower = torch.special.ndtr((x0 - x0_hat - half) / deviation)
        upper = torch.where(x0 > 0.999, 1.0, upper)
        lower = torch.where(x0 < -0.999, 0.0, lower)
        return -(upper - lower).clamp(min=1e-12).log().flatten(1).sum(1)

    def _x0_hat(self, output: Any, x_t: Any, a: float, b: float) -> Any:
        match self._config.network.predicts:
            case "eps":
                return (x_t - b * output) / a
            case "x0":
                return output
        return a * x_t - b * output

    def _target(self, x0: Any, eps: Any, t: Any) -> Any:
        match self._config.network.predicts:
            case "eps":
                return eps
            case "x0":
                return x0
        return self._scheduler.get_velocity(x0, eps, t)

    def _start_training(self) -> None:
        torch, optimizer = self._torch, typing.cast(Adam, self._config.optimizer)  # it is checked
        if self._optimizer is None:
            self._average = [leaf.detach().clone() for leaf in self._params]
            self._optimizer = torch.optim.Adam(
                self._params,
                lr=optimizer.learning_rate,
                betas=(optimizer.b1, optimizer.b2),
                fused=self._device.type in ("cpu", "cuda"),
            )
        self.network.train()

    def _scaled(self, images: Any) -> Any:
        return (images.float() / 127.5 - 1.0).to(**self._layout)

    def _draw(self, name: str, scheduler: Any, batch: int, steps: int) -> Any:
        if name not in self._pipelines:
            self._pipelines[name] = getattr(self._diffusers, name)(
                unet=self.network, scheduler=scheduler
            )
        pipeline = self._pipelines[name]
        pipeline.scheduler = scheduler
        pipeline.set_progress_bar_config(disable=True)
        self.network.eval()
        with self._autocast(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, of NumPy's and their own deprecations
            drawn = pipeline(batch_size=batch, num_inference_steps=steps, output_type="np").images
        self._wait()
        return drawn

    def _autocast(self) -> Any:
        if self._dtype == "float32":
            return contextlib.nullcontext()
        return self._torch.autocast(self._device.type, dtype=self._torch.bfloat16)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()


def _widened(network: Any, arguments: Any, output: Any) -> Any:
    """A network's output in float32."""
    return type(output)(sample=output.sample.float())


class _Tables:
    """Of the chain in float64 on the host, of the betas that both libraries have."""

    def __init__(self, config: Config) -> None:
        betas = np.asarray(make_schedule(config.schedule).betas, np.float64)
        alpha_bar = np.cumprod(1.0 - betas)
        before = np.append(1.0, alpha_bar[:-1])
        # As Python's floats: a NumPy scalar would take a tensor for an array of its own.
        self.betas: list[float] = betas.tolist()
        self.alpha_bar: list[float] = alpha_bar.tolist()
        self.signal: list[float] = np.sqrt(alpha_bar).tolist()
        self.noise: list[float] = np.sqrt(1.0 - alpha_bar).tolist()
        variance = betas * (1.0 - before) / (1.0 - alpha_bar)
        self.posterior_variance: list[float] = variance.tolist()
        weight_x0 = np.sqrt(before) * betas / (1.0 - alpha_bar)
        self.weight_x0: list[float] = weight_x0.tolist()


def torch_device(torch: Any) -> str:
    """Of the same kind as JAX's.

    Raises:
        UserError: JAX has an accelerator that this PyTorch has not.
    """
    platform = jax.devices()[0].platform
    if platform == "cpu":
        return "cpu"
    if platform == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise UserError(
        f"JAX computes on {platform!r} and this PyTorch has no such device; install a PyTorch for"
        " it, or set JAX_PLATFORMS=cpu to compare both on the CPU"
    )
