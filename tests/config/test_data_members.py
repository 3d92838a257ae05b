"""Where images come from: each member of the family, with and without its images at hand."""

import numpy as np
import pytest
from imagery import cats_and_dogs, examples, one_sentence, opened, prepare, random_images

from ddpm_jax import config, data
from ddpm_jax.data import DataError
from ddpm_jax.experiment import image_spec_of

IMAGES = random_images(40, 8, 6, 3)


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """One of each that reads something."""
    folder = tmp_path_factory.mktemp("data")
    cats_and_dogs(folder / "pets", IMAGES)
    np.savez(folder / "own.npz", images=IMAGES // 8, levels=32)
    splits = {"train": examples(IMAGES[:20]), "test": examples(IMAGES[20:])}
    prepare(folder, "tiny_colour", splits, shape=(8, 6, 3))
    made = (
        config.Digits(),
        config.Folder(str(folder / "pets")),
        config.Archive(str(folder / "own.npz")),
        config.TensorFlowDataset("tiny_colour", str(folder)),
    )
    return {type(member): member for member in made}


@pytest.mark.parametrize("preparation", [{}, {"pad": 11}, {"crop": 5}, {"pad": 9, "crop": 7}])
@pytest.mark.parametrize(
    "kind", [kind for kind in config.members(config.Data) if kind is not config.InMemory]
)
def test_what_is_known_before_reading_is_what_is_read(kind, preparation, members):
    member, prepared = members[kind], config.Standard(**preparation)
    images = config.load_images(member, prepared)
    spec = image_spec_of(config.Config(data=member, preparation=prepared))
    assert (spec.shape, spec.levels) == (images.image_shape, images.levels)
    assert images.train[np.array([0])].images.dtype == np.uint8
    assert images.crop == preparation.get("crop")


@pytest.mark.parametrize("kind", [config.Folder, config.TensorFlowDataset])
def test_memory_decides_whether_images_are_decoded_once(kind, members):
    place = {"path": members[kind].path} if kind is config.Folder else vars(members[kind])
    place = {name: value for name, value in place.items() if name in ("path", "name", "dir")}
    # 20 images of 144 bytes.
    assert opened(kind(**place, memory_gb=2881e-9)).train.in_memory
    assert not opened(kind(**place, memory_gb=2879e-9)).train.in_memory


def test_an_archive_is_read_into_memory_or_not_at_all(members):
    path = members[config.Archive].path
    assert opened(config.Archive(path, memory_gb=5761e-9)).train.in_memory
    with pytest.raises(DataError) as caught:
        opened(config.Archive(path, memory_gb=5759e-9))
    one_sentence(caught, "data.memory_gb is 5.759e-06", "--data.memory-gb")


def test_images_in_memory_are_handed_over():
    with pytest.raises(DataError) as caught:
        opened(config.InMemory("mine"))
    one_sentence(caught, "data is InMemory('mine')", "pass its images in Python", "train(config")


def test_own_data_need_no_more_than_make():
    """Its shape is that of the images, which are made for it."""

    class Noise(config.Data):
        def make(self, preparation):
            images = preparation.of_array(IMAGES)
            return data.ImageSet(
                "noise", train=data.Arrays(images[:30]), held_out=data.Arrays(images[30:])
            )

    prepared = config.Standard(grey=True, crop=4)
    spec = image_spec_of(config.Config(data=Noise(), preparation=prepared))
    assert (spec.name, spec.shape, spec.levels) == ("Noise", (4, 4, 1), 256)
    images = config.load_images(Noise(), prepared)
    assert images.image_shape == (4, 4, 1)
    assert images.train.image_shape == (8, 6, 1)  # cut at random, by the stream
