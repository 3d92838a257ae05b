"""Small files that would fill the memory or compute without end: each ends in one sentence."""

import gzip
import io
import json
import os
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from imagery import ends_in_one_sentence, open_archive, random_images, write

from ddpm_jax import config
from ddpm_jax.data import DataError, convert
from ddpm_jax.evaluation.classifier import load_classifier
from ddpm_jax.evaluation.inception_weights import inception_network
from ddpm_jax.evaluation.references import load_reference
from ddpm_jax.experiment import image_spec_of
from ddpm_jax.npz import save_npz
from ddpm_jax.weights import WeightsError

IMAGES = random_images(30, 6, 5, 1)
BOMB = 2**26
"""Bytes that some kilobytes unpack to: enough to be seen, and quick to be made."""
READERS = {
    "images": lambda path: open_archive(path, memory_gb=0.001),
    "classifier": load_classifier,
    "reference": load_reference,
    "inception": lambda path: inception_network(path, other_weights=True),
}


def header(shape, dtype="|u1", *, version=b"\x01\x00", order=False, size=None):
    """Of an .npy, with whatever it states."""
    text = repr({"descr": dtype, "fortran_order": order, "shape": shape}).encode() + b"\n"
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", size or len(text))
    return b"\x93NUMPY" + version + length + text


def zipped(path, members):
    """A file of members, some of which may have one name; contents are bytes or (bytes, more)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in members:
            archive.writestr(name, contents)
    return path


def as_npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def stating(path, name, size):
    """Alters the size that the archive's directory states of a member."""
    contents = bytearray(path.read_bytes())
    place = contents.rindex(name.encode()) - 46
    assert contents[place : place + 4] == b"PK\x01\x02"
    contents[place + 24 : place + 28] = struct.pack("<I", size)
    path.write_bytes(contents)
    return path


# ---- .npz


def test_arrays_that_nobody_asks_for_are_not_read(tmp_path):
    path = tmp_path / "x.npz"
    members = [("images.npy", as_npy(IMAGES)), ("notes.txt", b"no array"), ("images", b"nor this")]
    zipped(path, [*members, ("unused.npy", header((BOMB,)) + bytes(BOMB))])
    tracemalloc.start()
    try:
        found = open_archive(path, memory_gb=0.001)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(found.train), len(found.held_out)) == (27, 3)
    assert peak < 2**24


def test_images_beyond_the_memory_are_refused_before_they_are_read(tmp_path):
    path = tmp_path / "x.npz"
    zipped(path, [("images.npy", header((BOMB // 64, 8, 8, 1)) + bytes(BOMB))])
    limit = "need 0.0671 GB of memory, and data.memory_gb is 0.001; set --data.memory-gb 1"
    ends_in_one_sentence(READERS["images"], path, limit, error=DataError)
    spec = image_spec_of(config.Config(data=config.Archive(str(path))))
    assert (spec.shape, spec.levels) == ((8, 8, 1), 256)
    for name in ("labels", "levels", "class_names"):
        numbers = ("images.npy", as_npy(IMAGES)), (f"{name}.npy", header((BOMB,)) + bytes(BOMB))
        ends_in_one_sentence(READERS["images"], zipped(path, numbers), error=DataError)


HEADERS = [
    header((10**30, 8, 8)),
    header((-5, 8, 8)),
    header((2**63, 2)),
    header((2**32, 2**32, 1)),
    header((10**6, 8, 8)) + bytes(10),
    header((0, 10**40)),
    header((1,) * 200) + b"x",
    header((30,), "|O") + bytes(240),
    header((), "<U1000000000") + bytes(10),
    header((5,), "<U0"),
    header((3,), "|V1000000000"),
    header((3,), "(1000000,1000)f4"),
    header((3,), [("a", "<f4")]) + bytes(12),
    header((3,), size=65535) + bytes(3),
    header((3,), version=b"\x02\x00", size=2**32 - 1) + bytes(3),
    header((3,), version=b"\x03\x00") + bytes(3),
    header((3,), version=b"\x02\x00", size=2**25) + bytes(2**25),
    b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10000,
    b"no array at all",
    b"",
]


def test_headers_that_lie(tmp_path):
    names = {"images": "images", "classifier": "params/a/b", "reference": "format"}
    for number, member in enumerate(HEADERS):
        for reader in READERS if number in (0, 4) else ["images"]:
            path = tmp_path / f"{number}.npz"
            zipped(path, [(f"{names.get(reader, 'source')}.npy", member)])
            ends_in_one_sentence(READERS[reader], path, str(path))


@pytest.mark.parametrize("reader", READERS)
def test_directories_that_lie_and_members_of_one_name(tmp_path, reader):
    name = {"images": "images", "classifier": "params/a/b"}.get(reader, "format") + ".npy"
    short = header((BOMB, 1, 1)) + bytes(1000)
    path = zipped(tmp_path / "x.npz", [(name, short)])
    ends_in_one_sentence(READERS[reader], stating(path, name, len(header((BOMB, 1, 1))) + BOMB))
    long = header((4,)) + bytes(BOMB)
    path = zipped(tmp_path / "y.npz", [(name, long)])
    ends_in_one_sentence(READERS[reader], path)
    ends_in_one_sentence(READERS[reader], stating(path, name, len(header((4,))) + 4))
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "z.npz", [(name, as_npy(IMAGES)), (name, as_npy(IMAGES))])
    ends_in_one_sentence(READERS[reader], path, "two members with the same name")
    with zipfile.ZipFile(tmp_path / "lzma.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr(name, as_npy(IMAGES))
    ends_in_one_sentence(READERS[reader], tmp_path / "lzma.npz")


@pytest.mark.parametrize("reader", READERS)
def test_files_without_arrays_or_with_very_many(tmp_path, reader):
    path = zipped(tmp_path / "x.npz", [("notes.txt", b"words"), ("images", b"words")])
    ends_in_one_sentence(READERS[reader], path)
    path = zipped(tmp_path / "y.npz", ((f"{number}.npy", b"") for number in range(5000)))
    ends_in_one_sentence(READERS[reader], path)
    os.mkfifo(tmp_path / "pipe.npz")  # whoever opens it waits for ever
    ends_in_one_sentence(READERS[reader], tmp_path / "pipe.npz")


@pytest.mark.parametrize("reader", ["classifier", "reference", "inception"])
def test_arrays_have_limits_together(tmp_path, reader, monkeypatch):
    for module in ("classifier._", "references._", "inception_weights._"):
        monkeypatch.setattr(f"ddpm_jax.evaluation.{module}MOST_BYTES", BOMB // 2)
    names = ["params/a/b", "params/a/c"] if reader == "classifier" else ["format", "features"]
    half = header((BOMB // 16,), "<f4") + bytes(BOMB // 4)
    path = zipped(tmp_path / "x.npz", [(f"{name}.npy", half * 2) for name in names])
    ends_in_one_sentence(READERS[reader], path, most_bytes=BOMB)


def test_statistics_with_their_own_sha256_that_are_none(tmp_path):
    from ddpm_jax.evaluation import references

    def refused(part, **changes):
        arrays = {"pooled_mean": np.zeros(2), "pooled_covariance": np.zeros((2, 2))}
        moments = {"rows": np.array(3), "mean": np.zeros(2), "scatter": np.zeros((2, 2))}
        arrays |= {f"{half}_{name}": a for half in ("even", "odd") for name, a in moments.items()}
        about = dict.fromkeys(references.Provenance._fields, "x") | {"images": 6}
        arrays |= {
            "format": np.array(references._FORMAT),
            "provenance": np.array(json.dumps(about)),
        }
        arrays = {name: a for name, a in (arrays | changes).items() if a is not None}
        path = tmp_path / "x.npz"
        save_npz(path, arrays)
        ends_in_one_sentence(load_reference, path, str(path), part)

    refused("no mean and covariance of the pooled", pooled_mean=None)
    refused("pooled_covariance", pooled_covariance=None)
    refused("spatial mean and covariance have other shapes", **spatial(np.zeros((2, 3))))
    refused("spatial mean and covariance are not float64", **spatial(np.zeros((2, 2), "f4")))
    refused("even_mean", even_mean=None)
    refused("'odd' have other shapes", odd_scatter=np.zeros((3, 2)))
    refused("'odd' have other shapes", odd_mean=np.array(1.0))
    refused("rows of 'even' is not an integer", even_rows=np.array(1.0))
    refused("not float64", even_mean=np.zeros(2, np.float32))
    refused("features have dtype int64", features=np.zeros((2, 2), np.int64))
    refused("is not a file of statistics", provenance=np.array("[" * 100_000))
    refused("is not a file of statistics", provenance=np.array('{"network": 1}'))
    about = dict.fromkeys(references.Provenance._fields, "x")
    refused("images of its provenance is 'x'", provenance=np.array(json.dumps(about)))
    about["images"] = True
    refused("images of its provenance is 'True'", provenance=np.array(json.dumps(about)))


def spatial(covariance):
    return {"spatial_mean": np.zeros(len(covariance)), "spatial_covariance": covariance}


# ---- Public files that are converted


def test_public_files_that_unpack_to_more_than_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "_BATCH", 3)
    target = tmp_path / "x.npz"
    name = "train-images-idx3-ubyte.gz"
    for lengths, part in (
        ((BOMB, 1, 1), "needs 0.0671 GB of memory, and data.memory_gb is 0.001"),
        ((2**31, 1, 1), "cannot hold"),
        ((3, 1, 1), "is longer than its header states"),
    ):
        content = struct.pack(">4I", 0x803, *lengths) + bytes(BOMB)
        write(tmp_path / name, gzip.compress(content))
        ends_in_one_sentence(
            lambda folder: convert.convert("mnist", folder, target, memory_gb=0.001), tmp_path, part
        )
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        member = tarfile.TarInfo("data_batch_1.bin" if kind == tarfile.XHDTYPE else "readme.html")
        member.size, member.type = BOMB, kind
        path = write(tmp_path / "x.tar.gz", gzip.compress(member.tobuf() + bytes(BOMB)))
        ends_in_one_sentence(lambda path: convert.convert("cifar10", path, target), path, str(path))


# ---- Weights of Inception-v3


def test_weights_that_have_no_end(tmp_path):
    path, read = tmp_path / "large.pth", READERS["inception"]
    with path.open("wb") as file:
        file.truncate(2**30)  # sparse: it takes no room on the disk
    ends_in_one_sentence(read, path, "it has 1,073,741,824 bytes", error=WeightsError)
    os.mkfifo(tmp_path / "pipe.pth")
    ends_in_one_sentence(read, tmp_path / "pipe.pth", "not a regular file", error=WeightsError)
