"""`ddpm-jax data convert`: every image is that of the original files, which the tests write."""

import gzip
import io
import os
import pathlib
import struct
import tarfile

import numpy as np
import pytest
from imagery import all_of, cats_and_dogs, one_sentence, random_images, write

from ddpm_jax.cli.main import main
from ddpm_jax.data import DataError, Preparation, convert, read_archive, read_folder

DEBIAN = pathlib.Path(
    os.environ.get("FASHION_MNIST_DIR", "/usr/share/datasets/fashion-mnist")
).expanduser()


def idx(values):
    """An IDX file: 0, 0, 8 for bytes, the number of axes, their lengths, big-endian."""
    return struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes()


def idx_set(folder, images, labels, *, held_out=4, packed=True):
    """The four files of a set; the last images are its test images."""
    for name, part in (("train", slice(-held_out)), ("t10k", slice(-held_out, None))):
        for kind, values in (("images-idx3", images[part, ..., 0]), ("labels-idx1", labels[part])):
            content = idx(values)
            path = folder / f"{name}-{kind}-ubyte{'.gz' if packed else ''}"
            write(path, gzip.compress(content) if packed else content)
    return folder


def cifar_files(images, labels):
    """Names and contents of the binary version: a label, then red, green and blue."""
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    rows = np.concatenate([labels[:, None], planes], axis=1)
    size = len(rows) // 6
    return {name: rows[i * size : (i + 1) * size].tobytes() for i, name in enumerate(names)}


def tar_gz(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


GREY, COLOURS = random_images(12, 5, 7, 1), random_images(18, 32, 32, 3)
LABELS = np.arange(18, dtype=np.uint8) % 10


@pytest.fixture
def small_batches(monkeypatch):
    """Files of CIFAR-10 with 3 images in place of 10,000."""
    monkeypatch.setattr(convert, "_BATCH", 3)


def assert_images(path, train, held_out, train_labels, held_out_labels):
    images = read_archive(path)
    for source, pixels, labels in (
        (images.train, train, train_labels),
        (images.held_out, held_out, held_out_labels),
    ):
        examples = all_of(source)
        np.testing.assert_array_equal(examples.images, pixels)
        np.testing.assert_array_equal(examples.labels, labels)
    return images


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["mnist", "fashion_mnist"])
def test_every_image_of_idx_files(tmp_path, kind, packed):
    labels = LABELS[:12]
    source = idx_set(tmp_path / "idx", GREY, labels, packed=packed)
    sentence = convert.convert(kind, source, tmp_path / "x.npz")
    images = assert_images(tmp_path / "x.npz", GREY[:8], GREY[8:], labels[:8], labels[8:])
    assert f"x.npz: images '{kind}': 8 images to train on ('train'); 4 held out" in sentence
    ankle_boot = 9
    assert images.classes[ankle_boot] == {"mnist": "9", "fashion_mnist": "Ankle boot"}[kind]


@pytest.mark.skipif(
    not DEBIAN.is_dir(),
    reason=f"no Fashion-MNIST in {DEBIAN}; Debian's package dataset-fashion-mnist has it, and"
    " FASHION_MNIST_DIR may say where it is",
)
@pytest.mark.thorough
def test_every_image_of_fashion_mnist(tmp_path, capfd):
    target = tmp_path / "fashion_mnist.npz"
    assert main(["data", "convert", "fashion_mnist", str(DEBIAN), str(target)]) == 0
    said = capfd.readouterr().out
    assert said.startswith(f"{target}: images 'fashion_mnist': 60,000 images to train on ('train')")
    expected = []
    for part in ("train", "t10k"):
        for kind, offset, shape in (("images-idx3", 16, (28, 28, 1)), ("labels-idx1", 8, ())):
            content = gzip.decompress((DEBIAN / f"{part}-{kind}-ubyte.gz").read_bytes())
            expected.append(np.frombuffer(content, np.uint8, offset=offset).reshape(-1, *shape))
    images, labels, held_out, held_out_labels = expected
    assert (len(images), len(held_out)) == (60_000, 10_000)
    assert_images(target, images, held_out, labels, held_out_labels)


@pytest.mark.parametrize("kind", ["tar.gz", "folder", "folder in a folder"])
def test_every_image_of_cifar10(tmp_path, small_batches, kind):
    files = cifar_files(COLOURS, LABELS)
    if kind == "tar.gz":
        source = tar_gz(tmp_path / "cifar-10-binary.tar.gz", {"readme.html": b"words", **files})
    else:
        source = tmp_path / "files"
        for name, content in files.items():
            write(source / ("cifar-10-batches-bin" if "in" in kind else "") / name, content)
    convert.convert("cifar10", source, tmp_path / "x.npz")
    images = assert_images(tmp_path / "x.npz", COLOURS[:15], COLOURS[15:], LABELS[:15], LABELS[15:])
    assert images.classes[:3] == ("airplane", "automobile", "bird")


def test_every_image_of_a_folder(tmp_path):
    pixels = random_images(40, 6, 5, 3)
    source = cats_and_dogs(tmp_path / "pets", pixels)
    arguments = ["data", "convert", "folder", str(source)]
    assert main([*arguments, str(tmp_path / "x.npz")]) == 0
    train, held_out = [*range(10), *range(20, 30)], [*range(10, 15), *range(30, 35)]
    labels = np.repeat([0, 1], 10), np.repeat([0, 1], 5)
    images = assert_images(tmp_path / "x.npz", pixels[train], pixels[held_out], *labels)
    assert images.classes == ("cat", "dog")
    smaller = ["--preparation.size", "4", "--preparation.grey"]
    assert main([*arguments, str(tmp_path / "y.npz"), *smaller]) == 0
    expected = read_folder(source, preparation=Preparation(grey=True, size=4))
    small = read_archive(tmp_path / "y.npz")
    np.testing.assert_array_equal(all_of(small.train).images, all_of(expected.train).images)


def test_a_folder_without_classes_has_no_labels(tmp_path):
    for number, image in enumerate(COLOURS):
        write(tmp_path / "loose" / f"{number:02}.png", image)
    convert.convert("folder", tmp_path / "loose", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as archive:
        assert set(archive) == {"train_images", "test_images"}


def refused(tmp_path, kind, source, *parts, **options):
    target = tmp_path / "never.npz"
    with pytest.raises(DataError) as caught:
        convert.convert(kind, source, target, **options)
    one_sentence(caught, *parts)
    assert not target.exists()


IMAGES = "train-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        (IMAGES, b"", "does not begin like an IDX file of bytes with 3 axes"),
        (IMAGES, b"words and words and words", "does not begin like an IDX file"),
        (IMAGES, idx(GREY[:8, ..., 0])[:-1], "ends before its last value"),
        (IMAGES, idx(GREY[:8, ..., 0]) + b"x", "longer than its header states"),
        (IMAGES, idx(GREY), "does not begin like an IDX file"),  # four axes
        (IMAGES, idx(GREY[:7, ..., 0]), "has 7 images and 8 labels"),
        (IMAGES, struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1), "cannot hold"),
        (f"{IMAGES}.gz", gzip.compress(idx(GREY[:8, ..., 0])[:-9]), "ends before its last value"),
        (f"{IMAGES}.gz", gzip.compress(idx(GREY[:8, ..., 0]))[:-9], "cannot be read"),
        (f"{IMAGES}.gz", gzip.compress(idx(GREY[:8, ..., 0]))[:-8] + bytes(8), "CRC check failed"),
        (f"{IMAGES}.gz", idx(GREY[:8, ..., 0]), "Not a gzipped file"),
        (
            "train-labels-idx1-ubyte",
            idx(np.full(8, 12, np.uint8)),
            "of fashion_mnist are 0 to 9",
        ),
        ("train-labels-idx1-ubyte", idx(GREY[:8, 0, :1, 0]), "IDX file of bytes with 1 axes"),
    ],
)
def test_idx_files_that_are_damaged(tmp_path, name, content, part):
    source = idx_set(tmp_path, GREY, LABELS[:12], packed=False)
    (source / name.removesuffix(".gz")).unlink()
    write(source / name, content)
    refused(tmp_path, "fashion_mnist", source, part, str(tmp_path))


def test_idx_files_that_are_missing_or_none(tmp_path):
    source = idx_set(tmp_path / "idx", GREY, LABELS[:12])
    gone = source / "t10k-labels-idx1-ubyte.gz"
    gone.unlink()
    refused(tmp_path, "mnist", source, f"has no file {gone.stem} or {gone.name}")
    gone.mkdir()
    refused(tmp_path, "mnist", source, "cannot be read (Is a directory)")
    gone.rmdir()
    os.mkfifo(gone)
    refused(tmp_path, "mnist", source, "cannot be read (it is not a regular file)")
    limit = "needs 2.8e-07 GB of memory, and data.memory_gb is 1e-07; set --data.memory-gb 1"
    refused(tmp_path, "mnist", source, limit, memory_gb=1e-7)


def test_files_of_cifar10_that_are_damaged_or_missing(tmp_path, small_batches):
    files = cifar_files(COLOURS, LABELS)
    path = tmp_path / "cifar.tar.gz"
    tar_gz(path, files | {"data_batch_2.bin": files["data_batch_2.bin"][:-1]})
    refused(tmp_path, "cifar10", path, "data_batch_2.bin' has 9,218 bytes; 3 images of CIFAR-10")
    tar_gz(path, {name: files[name] for name in list(files)[1:]} | {"data_batch_1": b"a pickle"})
    refused(tmp_path, "cifar10", path, "has no file data_batch_1.bin; they are in the binary")
    whole = tar_gz(path, files).read_bytes()
    for content in (whole[:-2000], whole[:-8] + bytes(8), b"", b"words", gzip.compress(b"words")):
        path.write_bytes(content)
        refused(tmp_path, "cifar10", path, f"'{path}' cannot be read (", "cifar-10-binary.tar.gz")
    refused(tmp_path, "cifar10", tmp_path / "nowhere", "cannot be read (No such file")
    for name, content in files.items():
        write(tmp_path / name, content)
    write(tmp_path / "test_batch.bin", files["test_batch.bin"] + b"x")
    refused(tmp_path, "cifar10", tmp_path, "test_batch.bin' has 9,220 bytes")
    bad = bytes([17]) + files["test_batch.bin"][1:]
    write(tmp_path / "test_batch.bin", bad)
    refused(tmp_path, "cifar10", tmp_path, "has the label 17; the labels of cifar10 are 0 to 9")


def test_folders_that_cannot_be_converted(tmp_path):
    pixels = random_images(40, 6, 5, 3)
    source = cats_and_dogs(tmp_path / "pets", pixels)
    limit = "pets, train needs 1.8e-06 GB of memory, and data.memory_gb is 1e-06"
    refused(tmp_path, "folder", source, limit, memory_gb=1e-6)
    bad = write(source / "train" / "cat" / "003.png", b"no image")
    refused(tmp_path, "folder", source, f"{bad} is not an image", "--data.on-bad-image skip")
    sentence = convert.convert("folder", source, tmp_path / "x.npz", on_bad_image="skip")
    assert "19 images to train on" in sentence
    refused(tmp_path, "folder", tmp_path / "nowhere", "does not exist")


def test_targets(tmp_path, capfd):
    source = idx_set(tmp_path / "idx", GREY, LABELS[:12])
    arguments = ["data", "convert", "mnist", str(source)]

    def said(target, *options):
        assert main([*arguments, str(target), *options]) == 2
        return capfd.readouterr().err

    assert "its name has to end in .npz" in said(tmp_path / "x.zip")
    there = write(tmp_path / "there.npz", b"mine")
    assert f"'{there}' exists; --overwrite replaces it" in said(there)
    assert there.read_bytes() == b"mine"
    assert main([*arguments, str(there), "--overwrite"]) == 0
    assert len(read_archive(there).train) == 8
    (tmp_path / "folder.npz").mkdir()
    assert "cannot be written (Is a directory)" in said(tmp_path / "folder.npz", "--overwrite")


def test_an_unknown_format(tmp_path, without_annotation_checks):
    refused(
        tmp_path, "svhn", tmp_path, "the format is 'svhn'; it has to be one of mnist, fashion_mnist"
    )
