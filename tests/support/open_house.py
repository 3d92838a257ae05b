"""A config file with a member of its own in each family: nothing of it is known to the package."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax import config, data, processes, samplers, schedules
from ddpm_jax.parallel import jit_form


@dataclasses.dataclass(frozen=True)
class Checks(config.Data):
    """Chequered squares of random brightness, in two classes."""

    count: int = 32

    def make(self, preparation):
        rng = np.random.default_rng(0)
        labels = np.arange(self.count) % 2
        even = np.indices((4, 4)).sum(axis=0) % 2 == labels[:, None, None]
        images = (even * rng.integers(9, 17, (self.count, 1, 1))).astype(np.uint8)[..., None]
        images = preparation.of_array(images)
        half = self.count // 2
        return data.ImageSet(
            "checks",
            train=data.Arrays(images[:half], labels[:half], 17),
            held_out=data.Arrays(images[half:], labels[half:], 17),
            levels=17,
            classes=("even", "odd"),
            preparation=str(preparation),
        )


@dataclasses.dataclass(frozen=True)
class Bordered(config.Preparation):
    """A border of one pixel."""

    def make(self):
        return data.Preparation(pad=6)


@dataclasses.dataclass(frozen=True)
class Geometric(config.Schedule):
    """alpha_bar falls by the same factor at each step."""

    factor: float = 0.6

    def make(self):
        return schedules.from_alpha_bar(self.factor ** np.arange(1, self.num_steps + 1))


@dataclasses.dataclass(frozen=True)
class Soft(config.Process):
    """A blur that follows from the images."""

    def make(self, schedule, shape, measured):
        return processes.blurring(schedule, shape, max_blur=float(measured[0]))

    def measure(self, images):
        return np.array([images.image_shape[0] / 6.0])

    def placeholder(self, shape):
        return np.ones(1)


class Layer(nn.Module):
    """One dense layer, and dropout with Flax's own key."""

    @nn.compact
    def __call__(self, x_t, t, *, train=False):
        h = jnp.concatenate([x_t.reshape(x_t.shape[0], -1), t[:, None] / 8.0], axis=-1)
        h = nn.Dropout(0.1, deterministic=not train)(h)
        return nn.Dense(x_t[0].size)(h).reshape(x_t.shape)


@dataclasses.dataclass(frozen=True)
class OneLayer(config.Network):
    """The network."""

    def make(self, images):
        return Layer()


@dataclasses.dataclass(frozen=True)
class Absolute(config.Objective):
    """The mean absolute error."""

    def make(self):
        return lambda terms: jnp.mean(jnp.abs(terms.target - terms.prediction), axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class Rising(config.Times):
    """One t after the other, with a count of the batches as its memory."""

    def make(self, process):
        return config.TimeLaw(
            draw=lambda key, batch, count: (
                (count + jnp.arange(batch, dtype=jnp.int32)) % process.num_steps,
                jnp.ones(batch),
            ),
            remember=lambda count, t, losses: count + 1,
            initial_memory=lambda: jnp.int32(0),
        )

    def held_out(self):
        return config.Uniform()


@dataclasses.dataclass(frozen=True)
class Signs(config.Optimizer):
    """Signs of the gradient."""

    def make(self, learning_rate):
        return optax.sign_sgd(learning_rate)


@dataclasses.dataclass(frozen=True)
class Halved(config.Decay):
    """Half of the peak after so many steps."""

    after: int = 2

    def make(self, peak, steps, warmup_steps):
        return lambda step: jnp.where(step < self.after, peak, peak / 2.0)


@dataclasses.dataclass(frozen=True)
class Mean(config.Averages):
    """The plain mean over all steps, besides the usual ones."""

    def make(self):
        usual = config.EMA(decays=self.decays).make()
        return (*usual, lambda step: step.astype(jnp.float32) / (step.astype(jnp.float32) + 1.0))


@dataclasses.dataclass(frozen=True)
class Guess(config.Sampler):
    """x0_hat at once."""

    def make(self, model):
        def init(key, shape, start=None):
            return samplers.SamplerState(
                jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(key)
            )

        def step(key, state, t, s):
            t = jnp.full(state.x_t.shape[0], t, jnp.int32)
            x0_hat = self.threshold.make()(model.predict(state.x_t, model.process.network_time(t)))
            return samplers.SamplerState(x0_hat), samplers.StepInfo(x0_hat, x0_hat)

        return samplers.Sampler(init, step)


@dataclasses.dataclass(frozen=True)
class Tanh(config.Threshold):
    """tanh."""

    def make(self):
        return jnp.tanh


@dataclasses.dataclass(frozen=True)
class Sizes(config.Evaluation):
    """How many parameters there are."""

    def make(self, model):
        def measure(params):
            count = sum(leaf.size for leaf in jax.tree.leaves(params))
            return config.Measurements({"parameters": count})

        return measure


@dataclasses.dataclass(frozen=True)
class Plain(config.Mesh):
    """The built-in form, by its function."""

    def make(self, devices, shardings, compute):
        return jit_form(devices, shardings, self.reduction)


@dataclasses.dataclass(frozen=True)
class Alone(config.Hosts):
    """No others."""

    several = False

    def join(self):
        pass


@dataclasses.dataclass(frozen=True)
class Lines(config.Logger):
    """A line of JSON for each call."""

    def make(self, directory, resumed_at):
        return _Lines((directory / "lines.jsonl").open("a"))


class _Lines:
    def __init__(self, file):
        self.file = file

    def scalars(self, step, values):
        self.file.write(json.dumps({"step": step, **values}) + "\n")

    def picture(self, step, name, picture):
        self.file.write(json.dumps({"step": step, "picture": picture.shape}) + "\n")

    def close(self):
        self.file.close()


def get_config():
    return config.Config(
        data=Checks(),
        preparation=Bordered(),
        schedule=Geometric(num_steps=8),
        process=Soft(),
        network=OneLayer(predicts="x0"),
        objective=Absolute(),
        times=Rising(),
        optimizer=Signs(learning_rate=1e-3, warmup_steps=0, decay=Halved()),
        averages=Mean(decays=(0.9,)),
        sampler=Guess(threshold=Tanh(), steps=2),
        evaluation=Sizes(num_samples=4, batch_size=16),
        mesh=Plain(),
        hosts=Alone(),
        logger=Lines(),
        train=config.Train(steps=6, batch_size=8, log_every=2, save_every=3, draw_every=6),
    )
