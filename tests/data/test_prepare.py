"""`ddpm-jax data prepare`: builders of TensorFlow Datasets, and what is said if they cannot run."""

import socket
import sys

import numpy as np
import pytest
from imagery import all_of, as_png, one_sentence, open_prepared, random_images, rows, write

from ddpm_jax.cli.main import main
from ddpm_jax.data import DataError
from ddpm_jax.data.prepare import prepare


@pytest.fixture(autouse=True)
def _once(monkeypatch):
    monkeypatch.setattr("ddpm_jax.data.prepare._RETRIES", 0)


def unreachable(*_):
    raise socket.gaierror(-3, "Temporary failure in name resolution")


def test_files_that_are_others_or_missing(tmp_path, capfd, monkeypatch):
    import tensorflow_datasets as tfds

    infos = tfds.builder("fashion_mnist").url_infos.values()
    checksums = {info.filename: info.checksum for info in infos}
    folder = tmp_path / "from"

    def refused(*parts):
        code = main(
            ["data", "prepare", "fashion_mnist", "--from", str(folder), "--dir", str(tmp_path)]
        )
        said = capfd.readouterr().err
        assert (code, said.count("\n")) == (2, 1)
        for part in (*parts, "ddpm-jax: "):
            assert part in said
        with pytest.raises(DataError, match="is not in"):
            open_prepared("fashion_mnist", tmp_path)

    refused("--from is ", "which is not a folder")
    folder.mkdir()
    refused("which has none of the files t10k-images", max(checksums))
    for name in checksums:
        write(folder / name, b"others")
    wrong = folder / min(checksums)
    refused(
        f"'{wrong}' is not the file that TensorFlow Datasets expects under this name:",
        "; `ddpm-jax data convert fashion_mnist` reads its public files without it",
    )
    wrong.unlink()
    wrong.mkdir()
    refused(f"'{wrong}' cannot be read (Is a directory)")
    wrong.rmdir()
    monkeypatch.setattr("ddpm_jax.data.prepare._sha256", lambda path: checksums[path.name])
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    refused("'fashion_mnist' cannot be prepared (", f"which has no {wrong.name}")
    assert not list(tmp_path.glob(".preparing*"))


def test_without_a_network(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    assert main(["data", "prepare", "fashion_mnist", "--dir", str(tmp_path)]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("ddpm-jax: data set 'fashion_mnist' cannot be prepared (")
    assert "needs a connection; --from DIR takes the files from a folder" in said


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
    assert not (tmp_path / "tiny").exists()
    assert not list(tmp_path.glob(".preparing*"))
    with pytest.raises(DataError, match="'tiny' is not in"):
        open_prepared("tiny", tmp_path)


def test_to_overwrite_is_to_replace_when_all_is_well(tmp_path, registered):
    registered("tiny", good)
    lines = []
    there = prepare("tiny", tmp_path, report=lines.append)
    assert lines == []
    whole = rows(*all_of(open_prepared("tiny", tmp_path).train))
    assert whole == rows(GREY[:6], np.arange(6) % 3)

    registered("tiny", broken)
    with pytest.raises(DataError):
        prepare("tiny", tmp_path, overwrite=True)
    assert (
        rows(*all_of(open_prepared("tiny", tmp_path).train)) == whole
    )  # the old one is still there

    (there / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot be opened .*--overwrite"):
        open_prepared("tiny", tmp_path)
    registered("tiny", good)
    assert prepare("tiny", tmp_path, report=lines.append) == there
    assert lines[-1] == f"{there} exists already"
    assert prepare("tiny", tmp_path, overwrite=True) == there
    assert rows(*all_of(open_prepared("tiny", tmp_path).train)) == whole


def test_a_builder_that_needs_tensorflow(tmp_path, registered, monkeypatch):
    def flipped(split):
        from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

        yield {"image": tf.image.flip_left_right(GREY[0]), "label": 0}

    monkeypatch.setitem(sys.modules, "tensorflow", None)
    registered("tiny", flipped)
    with pytest.raises(DataError) as caught:
        prepare("tiny", tmp_path)
    one_sentence(
        caught, "'tiny' needs TensorFlow to be prepared, which is not installed", "--data folder"
    )


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
        said = capfd.readouterr().err
        assert f"ddpm-jax data needs convert, prepare or inception, {part}" in said
    assert main(["data", "--help"]) == 0
    assert "ddpm-jax data prepare NAME" in capfd.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["data", "prepare", "--help"])
    assert left.value.code == 0
    assert "--from" in capfd.readouterr().out
