"""Measures images per second of each source, and how long a train step waits for images.

    digits                  scikit-learn's, in memory
    npz                     an archive, in memory
    png                     a folder of PNG files, decoded as they are read
    jpeg, resized           a folder of JPEG files with sides twice as long, as they are read
    tfds, in memory         a data set as TensorFlow Datasets prepares it, decoded beforehand
    tfds, streaming         the same, decoded as it is read
    fashion_mnist           where TFDS_DATA_DIR has it, with borders that make it as large

All but the first and the last hold the same smooth pictures with some noise, made for the
measurement in a temporary folder. What is read are the batches of `data.make_iterator`, flipped,
one source after the other, so that none reads ahead while another is measured; the batches that lay
ready at the beginning do not count. A run is one batch; images per second are those of all runs
together, since threads hand out several at once.

Then `training.fit` trains a small network on them for some steps, and measures how long the device
waited: larger networks wait less. It runs on one device, with the simple loss and uniform times.

What it does not measure: disks (the files were just written, and are in memory), and processes that
share a machine.
"""

import contextlib
import dataclasses
import io
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image

from benchmarks import columns
from benchmarks.columns import number
from benchmarks.results import Row
from benchmarks.settings import Common, Say, check_values, unet_of
from benchmarks.timing import timed
from ddpm_jax import config as configs
from ddpm_jax import data as images_room
from ddpm_jax import experiment as experiments
from ddpm_jax import training
from ddpm_jax.config import Config, load
from ddpm_jax.data import DataError, ImageSet
from ddpm_jax.errors import UserError

__all__ = ["COLUMNS", "PACKAGES", "Settings", "notes", "run"]

PACKAGES: tuple[str, ...] = ("grain", "pillow", "array_record", "tensorflow-datasets")
_HELD_OUT = 10


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """What `python -m benchmarks data` takes."""

    config: Path = Path("configs/digits.py")
    """Of the chain and the optimizer."""
    channels: int = 16
    """Of the network: one block on each level, down to 8x8 pixels."""
    images: int = 4096
    """That are made of each kind."""
    side: int = 32
    """Of those images, in pixels; the borders of Fashion-MNIST need 28 or more."""
    batch: int = 128
    """Images in a batch."""
    steps: int = 10
    """Of training with each source, twice; 0.1 s to 0.5 s each on a CPU."""


def run(settings: Settings, say: Say) -> Iterator[Row]:
    """Makes the images, reads them, and trains on them; yields a row for each source.

    Raises:
        UserError: settings that cannot work.
    """
    check_values(settings)
    if settings.steps < 2:
        raise UserError(
            f"--steps is {settings.steps}; the first of them is not measured, so take 2"
        )
    steps = _Steps(settings)
    with tempfile.TemporaryDirectory() as folder:
        say(f"making {settings.images} images of each kind")
        for name, images in _sources(settings, Path(folder)):
            say(name)
            seconds = _read(settings, images)
            rate = settings.batch * len(seconds) / sum(seconds)
            numbers = {"images_per_second": rate, **steps.measured(images)}
            case = {"source": name, "shape": "x".join(map(str, images.image_shape))}
            yield Row(case, seconds, steps.compile_seconds(images), numbers)


def _sources(settings: Settings, folder: Path) -> Iterator[tuple[str, ImageSet]]:
    yield "digits", _opened(configs.Digits())
    count, side = settings.images, settings.side
    pictures = _pictures(count + _HELD_OUT, side, settings.seed)
    train, test = pictures[:count], pictures[count:]
    np.savez(folder / "made.npz", train_images=train, test_images=test)
    yield "npz", _opened(configs.Archive(str(folder / "made.npz")))
    _write(folder / "png", train, test, "png")
    yield "png", _opened(configs.Folder(str(folder / "png"), memory_gb=0.0))
    large = _pictures(count + _HELD_OUT, 2 * side, settings.seed)
    _write(folder / "jpeg", large[:count], large[count:], "jpeg")
    jpeg = configs.Folder(str(folder / "jpeg"), memory_gb=0.0)
    yield "jpeg, resized", _opened(jpeg, size=side)
    _prepare(folder / "tfds", train, test)
    for name, memory_gb in (("tfds, in memory", 4.0), ("tfds, streaming", 0.0)):
        made = configs.TensorFlowDataset("made", str(folder / "tfds"), memory_gb=memory_gb)
        yield name, _opened(made)
    if os.environ.get("TFDS_DATA_DIR"):
        with contextlib.suppress(DataError):  # it is not there, or larger than the side
            yield "fashion_mnist", _opened(configs.TensorFlowDataset("fashion_mnist"), pad=side)


def _opened(data: configs.Data, **preparation: Any) -> ImageSet:
    return configs.load_images(data, configs.Standard(**preparation))


def _pictures(count: int, side: int, seed: int) -> np.ndarray:
    """Colours that change slowly, and noise: they compress about as photographs do."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(40.0, 215.0, (count, 2, 2, 3))
    weights = np.stack([np.linspace(0.0, 1.0, side), np.linspace(1.0, 0.0, side)])
    smooth = np.einsum("kx,ly,nklc->nxyc", weights, weights, corners)
    noisy = smooth + rng.normal(0.0, 8.0, smooth.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def _encoded(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, kind)
    return file.getvalue()


def _write(folder: Path, train: np.ndarray, test: np.ndarray, kind: str) -> None:
    for split, pictures in (("train", train), ("test", test)):
        (folder / split).mkdir(parents=True)
        for index, image in enumerate(pictures):
            (folder / split / f"{index:06}.{kind}").write_bytes(_encoded(image, kind))


def _prepare(folder: Path, train: np.ndarray, test: np.ndarray) -> None:
    """A data set called "made", written as a builder of TensorFlow Datasets does."""
    import tensorflow_datasets as tfds

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {"image": tfds.features.Image(shape=train.shape[1:])}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager: Any) -> Any:
            return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

        def _generate_examples(self, pictures: Any) -> Any:
            for index, image in enumerate(pictures):
                yield index, {"image": io.BytesIO(_encoded(image, "png"))}

    noise = io.StringIO()
    with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
        Made(data_dir=folder, file_format="array_record").download_and_prepare()


def _read(settings: Settings, images: ImageSet) -> list[float]:
    """Seconds of every batch, when those that lay ready are used up."""
    batches = images_room.make_iterator(
        images.train, batch_size=settings.batch, seed=settings.seed, flip=True
    )
    for _ in range(2 * (os.cpu_count() or 1) + 2):
        next(batches)
    seconds: list[float] = []
    while len(seconds) < 3 or (len(seconds) < settings.repeats and sum(seconds) < settings.seconds):
        seconds.append(timed(lambda: next(batches)))
    return seconds


class _Steps:
    """A train step for each kind of images, compiled once."""

    def __init__(self, settings: Settings) -> None:
        config = load(settings.config)
        self._config: Config = dataclasses.replace(
            config,
            network=dataclasses.replace(
                unet_of(config),
                channels=settings.channels,
                num_blocks=1,
                attention_resolutions=(),
                norm_groups=math.gcd(4, settings.channels),
            ),
            objective=configs.Simple(),
            times=configs.Uniform(),
            train=dataclasses.replace(config.train, batch_size=settings.batch, accumulate=1),
            seed=settings.seed,
        )
        self._steps = settings.steps
        self._compiled: dict[Any, tuple[Any, float]] = {}

    def compile_seconds(self, images: ImageSet) -> float:
        """Of the step for such images."""
        return self._compiled[images.image_shape, images.levels][1]

    def measured(self, images: ImageSet) -> dict[str, float]:
        """What a step takes in when its batch is there, and how much of its time it waits."""
        levels = _levels(images.image_shape[0])
        network = dataclasses.replace(unet_of(self._config), multipliers=levels)
        config = dataclasses.replace(self._config, network=network)
        experiment = experiments.build(config, images=images, devices=jax.local_devices()[:1])
        form = experiments.make_form(experiment)
        kind = images.image_shape, images.levels
        if kind not in self._compiled:
            start = time.perf_counter()
            step = experiments.lower_step(experiment, form).compile()
            self._compiled[kind] = step, time.perf_counter() - start
        step, _ = self._compiled[kind]
        batches = experiments.make_batches(experiment)
        own = form.place(next(batches))
        waits = {
            "own": self._train(
                step, experiments.initial_state(experiment), iter(lambda: own, None)
            ),
            "read": self._train(
                step, experiments.initial_state(experiment), map(form.place, batches)
            ),
        }
        taken = self._config.train.batch_size * (self._steps - 1)
        return {
            "step_images_per_second": taken / waits["own"].seconds,
            "trained_images_per_second": taken / waits["read"].seconds,
            "waited": waits["read"].waited / waits["read"].seconds,
        }

    def _train(self, step: Any, state: Any, batches: Iterator[Any]) -> "_Waits":
        waits = _Waits()
        training.fit(
            step,
            state,
            batches,
            waits,
            start=0,
            steps=self._steps,
            log_every=self._steps,
            save_every=self._steps,
            draw_every=self._steps,
        )
        return waits


def _levels(side: int) -> tuple[int, ...]:
    """As many as bring attention, which the middle has, to 8 pixels a side or a few more."""
    count = 1
    while side % 2**count == 0 and side >> count >= 8:
        count += 1
    return (1,) * count


class _Waits:
    """Hooks that add up; the time is that after the first step was dispatched."""

    def __init__(self) -> None:
        self.waited, self.seconds, self._start = 0.0, 0.0, 0.0

    def advance(self, step: int, waited: float) -> None:
        if step == 1:
            self._start = time.perf_counter()
        self.waited += waited

    def log(self, step: int, metrics: training.StepMetrics) -> None:
        self.seconds = time.perf_counter() - self._start

    def monitor(self, step: int, state: training.TrainState) -> None:
        pass

    def draw(self, step: int, state: training.TrainState) -> None:
        pass

    def keep(self, step: int, state: training.TrainState) -> None:
        pass

    def save(self, step: int, state: training.TrainState, *, due: bool, leaving: bool) -> None:
        pass


COLUMNS: columns.Columns = {
    "source": columns.case("source"),
    "images": columns.case("shape"),
    "batch": columns.time,
    "quartiles": columns.quartiles,
    "images/s": columns.figure("images_per_second"),
    "a step's images/s": columns.figure("step_images_per_second"),
    "trained images/s": columns.figure("trained_images_per_second"),
    "waiting, %": columns.figure("waited", unit=0.01),
}
"""Headers of the table, and what stands under them."""


def notes(rows: list[Row]) -> list[str]:
    """What the numbers say."""
    sentences = []
    for row in rows:
        numbers = row.numbers
        times = numbers["images_per_second"] / numbers["step_images_per_second"]
        sentences.append(
            f"{row.case['source']}: read {number(times)} times as fast as a step takes images in"
            f" when its batch is there; the device waited {numbers['waited']:.1%} of the time."
        )
    sentences.append(
        "Reading and the step share the cores here; of an accelerator they are its host's."
    )
    return sentences
