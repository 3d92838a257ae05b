"""`ddpm-jax data prepare`: the genuine builders of TensorFlow Datasets, without TensorFlow."""

import collections
import gzip
import hashlib
import os
import pathlib
import socket
import struct
import sys
import zlib

import numpy as np
import pytest
from imagery import all_of, as_png, one_sentence, random_images, rows

from ddpm_jax.cli.main import main
from ddpm_jax.data import DataError, load
from ddpm_jax.data.prepare import prepare, with_gzip_header

DEBIAN = pathlib.Path(
    os.environ.get("FASHION_MNIST_DIR", "/usr/share/datasets/fashion-mnist")
).expanduser()
genuine = pytest.mark.skipif(
    not DEBIAN.is_dir(),
    reason=f"no Fashion-MNIST in {DEBIAN}; Debian's package dataset-fashion-mnist has it, and"
    " FASHION_MNIST_DIR may say where it is",
)


# Fashion-MNIST


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """Where it was prepared, and what that wrote to stdout and stderr."""
    directory = tmp_path_factory.mktemp("fashion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", unreachable)
        patch.setattr(socket, "getaddrinfo", unreachable)
        code = main(
            ["data", "prepare", "fashion_mnist", "--from", str(DEBIAN), "--dir", str(directory)]
        )
    return directory, code


@pytest.fixture(autouse=True)
def _once(monkeypatch):
    monkeypatch.setattr("ddpm_jax.data.prepare._RETRIES", 0)


def unreachable(*_):
    raise socket.gaierror(-3, "Temporary failure in name resolution")


def idx(name, header):
    """The numbers of an IDX file, read by hand."""
    with gzip.open(DEBIAN / name) as file:
        magic, *sizes = struct.unpack(f">{header}I", file.read(4 * header))
        assert magic == 0x800 + header - 1  # bytes, in so many dimensions
        return np.frombuffer(file.read(), np.uint8).reshape(sizes)


@genuine
@pytest.mark.thorough
def test_every_image_is_that_of_the_original_files(fashion):
    directory, code = fashion
    assert code == 0
    found = load("fashion_mnist", str(directory))
    assert found.image_shape == (28, 28, 1)
    assert found.classes[0] == "T-shirt/top"
    assert len(found.classes) == 10
    for source, part, count in ((found.train, "train", 60_000), (found.held_out, "t10k", 10_000)):
        images = idx(f"{part}-images-idx3-ubyte.gz", 4)
        labels = idx(f"{part}-labels-idx1-ubyte.gz", 2)
        assert images.shape == (count, 28, 28)
        assert rows(*all_of(source)) == rows(images, labels)  # tfds shuffles what it writes


@genuine
def test_the_checksums_are_those_that_tfds_registers():
    import tensorflow_datasets as tfds

    infos = {info.filename: info for info in tfds.builder("fashion_mnist").url_infos.values()}
    assert len(infos) == 4
    for name, info in infos.items():
        restored = with_gzip_header((DEBIAN / name).read_bytes(), name)
        assert hashlib.sha256(restored).hexdigest() == info.checksum
        assert len(restored) == info.size


@genuine
@pytest.mark.thorough
def test_nothing_is_left_of_the_stand_in(fashion):
    from tensorflow_datasets.core.features import image_feature
    from tensorflow_datasets.core.utils import lazy_imports_utils, tqdm_utils

    directory, _ = fashion
    assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow"]
    assert "_module" not in vars(lazy_imports_utils.tensorflow)
    assert image_feature._ImageEncoder._encode_image.__module__ == image_feature.__name__
    assert tqdm_utils._active
    assert sorted(path.name for path in directory.iterdir()) == ["downloads", "fashion_mnist"]


@genuine
@pytest.mark.thorough
def test_what_is_said(fashion, capfd):
    # Of the second call; the first one's words are those of `tell` alone, which are tested below.
    directory, _ = fashion
    arguments = ["data", "prepare", "fashion_mnist", "--dir", str(directory)]
    assert main([*arguments, "--from", str(DEBIAN)]) == main(arguments) == 0
    there = directory / "fashion_mnist" / "3.0.1"
    said, noise = capfd.readouterr()
    assert said == 2 * f"{there} is there already\nfashion_mnist is in {there}\n"
    assert noise == ""


@genuine
def test_files_that_are_others_or_missing(tmp_path, capfd):
    names = sorted(path.name for path in DEBIAN.iterdir())

    def refused(*parts):
        code = main(
            ["data", "prepare", "fashion_mnist", "--from", str(folder), "--dir", str(tmp_path)]
        )
        said = capfd.readouterr().err
        assert (code, said.count("\n")) == (2, 1)
        for part in parts:
            assert part in said
        with pytest.raises(DataError, match="is not in"):
            load("fashion_mnist", str(tmp_path))

    folder = tmp_path / "from"
    refused("ddpm-jax: --from is ", "which is no folder")
    folder.mkdir()
    refused("which has none of the files t10k-images", names[3])
    for name in names:
        (folder / name).symlink_to(DEBIAN / name)
    wrong = folder / names[0]
    wrong.unlink()
    wrong.write_bytes((DEBIAN / names[0]).read_bytes()[:-1])
    refused(f"'{wrong}' is not the file that TensorFlow Datasets knows by this name", "sha256")
    wrong.unlink()
    wrong.mkdir()
    refused(f"'{wrong}' cannot be read (Is a directory)")
    wrong.rmdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", unreachable)
        refused("'fashion_mnist' cannot be prepared (", f"which has no {names[0]}")
    assert not list(tmp_path.glob(".preparing*"))


def test_without_a_network(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    assert main(["data", "prepare", "fashion_mnist", "--dir", str(tmp_path)]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("ddpm-jax: data set 'fashion_mnist' cannot be prepared (")
    assert "wants a connection; --from DIR takes files from a folder" in said


# Builders of the tests' own


def builder(name, generate):
    """Registers a data set of two splits, made by `generate(split)`."""
    import tensorflow_datasets as tfds

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "label": tfds.features.ClassLabel(num_classes=3),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {split: self._generate_examples(split) for split in ("train", "test")}

        def _generate_examples(self, split):
            yield from enumerate(generate(split))

    Made.name = name
    return Made


@pytest.fixture
def registered(monkeypatch):
    """`registered(name, generate)` lets `tfds.builder` find such a builder."""
    import tensorflow_datasets as tfds

    known, genuine = {}, tfds.builder

    def find(name, **options):
        return known[name](**options) if name in known else genuine(name, **options)

    monkeypatch.setattr(tfds, "builder", find)

    def register(name, generate):
        known[name] = builder(name, generate)

    return register


GREY = random_images(9, 8, 8, 1)


def good(split):
    chosen = GREY[:6] if split == "train" else GREY[6:]
    return [{"image": as_png(image), "label": i % 3} for i, image in enumerate(chosen)]


def broken(split):
    yield from good(split)
    if split == "test":
        raise ZeroDivisionError("half of it\nand no more")


def test_a_builder_that_fails_leaves_no_half_data_set(tmp_path, registered):
    registered("tiny", broken)
    with pytest.raises(DataError) as caught:
        prepare("tiny", tmp_path)
    one_sentence(caught, "'tiny' cannot be prepared (", "half of it")
    assert "tensorflow" not in sys.modules
    assert not (tmp_path / "tiny").exists()
    assert not list(tmp_path.glob(".preparing*"))
    with pytest.raises(DataError, match="'tiny' is not in"):
        load("tiny", str(tmp_path))


def test_to_overwrite_is_to_replace_when_all_is_well(tmp_path, registered):
    registered("tiny", good)
    told = []
    there = prepare("tiny", tmp_path, tell=told.append)
    assert told == ["TensorFlow is not installed; a stand-in opens files and encodes images"]
    whole = rows(*all_of(load("tiny", str(tmp_path)).train))
    assert whole == rows(GREY[:6], np.arange(6) % 3)

    registered("tiny", broken)
    with pytest.raises(DataError):
        prepare("tiny", tmp_path, overwrite=True)
    assert rows(*all_of(load("tiny", str(tmp_path)).train)) == whole  # the old one is still there

    (there / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot be opened .*--overwrite"):
        load("tiny", str(tmp_path))
    registered("tiny", good)
    assert prepare("tiny", tmp_path, tell=told.append) == there
    assert told[-1] == f"{there} is there already"
    assert prepare("tiny", tmp_path, overwrite=True) == there
    assert rows(*all_of(load("tiny", str(tmp_path)).train)) == whole


def test_a_builder_that_asks_for_more_of_tensorflow(tmp_path, registered):
    def more(split):
        from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

        yield {"image": tf.image.flip_left_right(GREY[0]), "label": 0}

    registered("tiny", more)
    with pytest.raises(DataError) as caught:
        prepare("tiny", tmp_path)
    one_sentence(caught, "'tiny' asks for tensorflow.image, which only TensorFlow has; pip install")


def test_the_stand_in_encodes_what_a_builder_has_as_arrays(tmp_path, registered):
    registered("tiny", lambda split: [{"image": image, "label": 1} for image in GREY])
    prepare("tiny", tmp_path)
    assert rows(*all_of(load("tiny", str(tmp_path)).train)) == rows(GREY, np.ones(9))


def test_unknown_data_sets(tmp_path, capfd):
    for name in ("no_such_thing", "Foo Bar", "fashion_mnist:0.0.1", "cifar10/no_config"):
        assert main(["data", "prepare", name, "--dir", str(tmp_path)]) == 2
        said, noise = capfd.readouterr()
        assert said == ""
        assert noise.startswith(f"ddpm-jax: TensorFlow Datasets has no data set {name!r} (")
        assert noise.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command(capfd):
    for arguments, part in ((["get"], "not 'get'"), ([], "not nothing")):
        assert main(["data", *arguments]) == 2
        assert f"ddpm-jax data wants prepare or inception, {part}" in capfd.readouterr().err
    assert main(["data", "--help"]) == 0
    assert "ddpm-jax data prepare NAME" in capfd.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["data", "prepare", "--help"])
    assert left.value.code == 0
    assert "--from" in capfd.readouterr().out


# The header of a gzip file, RFC 1952


def bare(contents=b"some bytes", flags=0):
    """A file without a name and a time, as `gzip --no-name` writes it."""
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = made.compress(contents) + made.flush()
    tail = struct.pack("<II", zlib.crc32(contents), len(contents))
    return bytes([0x1F, 0x8B, 8, flags, 0, 0, 0, 0, 2, 3]) + body + tail


@pytest.mark.parametrize(
    ("name", "time"),
    [("train-images-idx3-ubyte.gz", 1504176606), ("t10k-labels-idx1-ubyte.gz", 1504176627)],
)
def test_a_header_gets_its_name_and_time(name, time):
    found = with_gzip_header(bare(), name)
    assert gzip.decompress(found) == b"some bytes"
    magic, method, flags, mtime, extra, system = struct.unpack("<HBBIBB", found[:10])
    assert (magic, method, flags, mtime, extra, system) == (0x8B1F, 8, 8, time, 2, 3)
    stored, _, rest = found[10:].partition(b"\0")
    assert stored == name.removesuffix(".gz").encode()
    assert rest == bare()[10:]
    assert with_gzip_header(found, name) == found  # it has one


def test_other_files_stay_as_they_are():
    name = "train-images-idx3-ubyte.gz"
    named = with_gzip_header(bare(), name)
    for contents in (b"", b"\x1f\x8b\x08", b"no gzip at all", bare(flags=4), named):
        assert with_gzip_header(contents, name) == contents
    assert with_gzip_header(bare(), "cifar-10-binary.tar.gz") == bare()
    assert collections.Counter(named)[0] > 0
