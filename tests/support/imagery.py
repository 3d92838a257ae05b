"""What the tests of data share: images, encoded ones, and data sets prepared as tfds would."""

import collections
import io
import time
import tracemalloc

import numpy as np
import PIL.Image
import pytest

from ddpm_jax import config
from ddpm_jax.data import Preparation
from ddpm_jax.data.encoded import Encoded, Record
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import image_spec_of


def one_sentence(caught: pytest.ExceptionInfo, *parts: str) -> None:
    """The message is one line and says each of the parts."""
    message = str(caught.value)
    assert "\n" not in message, message
    for part in parts:
        assert part in message, message


def ends_in_one_sentence(read, path, *parts, most_bytes=2**24, error=UserError):
    """And soon, and with little memory."""
    before = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    one_sentence(caught, *parts)
    assert len(str(caught.value)) < 1000
    assert peak < most_bytes
    assert time.perf_counter() - before < 10


def random_images(n, *shape):
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def telling(n, height=1, width=2):
    """n images whose pixels are (number of the image, row, column)."""
    grid = np.stack(np.meshgrid(range(n), range(height), range(width), indexing="ij"), axis=-1)
    return grid.astype(np.uint8)


def encode(image, kind="png", **options):
    """The bytes of a file; `image` is uint8 or uint16 [height, width, channel], or a picture."""
    file = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    image.save(file, kind, **options)
    return file.getvalue()


class InTurn:
    """Records of PNG bytes, read after times that are not in their order."""

    def __init__(self, images, labels=None):
        self.encoded = [encode(image) for image in images]
        self.labels = [None] * len(images) if labels is None else [int(label) for label in labels]

    def __len__(self):
        return len(self.encoded)

    def read(self, indices):
        time.sleep(0.002 * (sum(indices) % 3))
        return [Record(self.encoded[index], self.labels[index]) for index in indices]

    def where(self, index):
        return f"record {index}"


def streaming(images, labels=None, **options):
    """A source that decodes as it is read."""
    shape = images.shape[1:]
    return Encoded(
        InTurn(images, labels), Preparation(), shape[-1], shape, labels is not None, **options
    )


def as_png(image):
    file = io.BytesIO(encode(image))
    file.seek(0)
    return file


def prepare(directory, name, splits, *, features=None, shape=(None, None, 3)):
    """Writes a data set of `splits`, each a list of examples, as `tfds build` would."""
    import tensorflow_datasets as tfds

    features = features or {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(num_classes=3),
    }

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            yield from enumerate(splits[split])

    Prepared.name = name
    Prepared(data_dir=directory, file_format="array_record").download_and_prepare()


def examples(images, first_label=0):
    return [
        {"image": as_png(image), "label": (first_label + i) % 3} for i, image in enumerate(images)
    ]


def rows(images, labels):
    """A multiset of (pixels, label): tfds shuffles records when it writes them."""
    return collections.Counter(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def all_of(source):
    """Every image of a source and its labels."""
    return source[np.arange(len(source))]


def write(path, contents):
    """A file, of bytes or of an image; the folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents if isinstance(contents, bytes) else encode(contents))
    return path


def fill(folder, images, kind="png"):
    """A folder of files 000.png, 001.png ..."""
    for number, image in enumerate(images):
        write(folder / f"{number:03}.{kind}", encode(image, kind))
    return folder


def cats_and_dogs(folder, images):
    """10 cats to train on, 5 held out, and the same of dogs, from the 20th image on."""
    for label, name in enumerate(("cat", "dog")):
        fill(folder / "train" / name, images[20 * label : 20 * label + 10])
        fill(folder / "test" / name, images[20 * label + 10 : 20 * label + 15])
    return folder


def opened(data, **preparation):
    """The images of a member, as `config.Standard` prepares them."""
    return config.load_images(data, config.Standard(**preparation))


def shape_of(data, **preparation):
    """(height, width, channel) of them; images need not be there if it is known without."""
    prepared = config.Standard(**preparation)
    return image_spec_of(config.Config(data=data, preparation=prepared)).shape


def open_digits(**options):
    return _opened(config.Digits, options)


def open_folder(path, **options):
    return _opened(config.Folder, options, str(path))


def open_archive(path, **options):
    return _opened(config.Archive, options, str(path))


def open_prepared(name, directory=None, **options):
    """A data set of TensorFlow Datasets."""
    return _opened(config.TensorFlowDataset, options, name, directory and str(directory))


def _opened(kind, options, *place):
    of_data = {name: options.pop(name) for name in ("on_bad_image", "memory_gb") if name in options}
    return opened(kind(*place, **of_data), **options)
