"""NumPy arrays of a pickle: every protocol, within the size of the file, nothing else."""

import pickle

import numpy as np
import pytest
from torch_pickles import Call, Named, pickled

from ddpm_jax.weights import WeightsError
from ddpm_jax.weights.pickles import read_pickle

ARRAYS = {
    "matrix": np.arange(6.0).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "number": np.array(7, np.int32),
    "empty": np.zeros((0, 3), np.float32),
    "bytes": np.array([0, 127, 128, 255], np.uint8),
    "flags": np.array([True, False]),
}


def read(tmp_path, content):
    path = tmp_path / "arrays.pkl"
    path.write_bytes(content)
    return read_pickle(path, most_bytes=2**20)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_gives_back_every_array(tmp_path, protocol):
    value = {"n": 5, "inside": [("a", None, True, 2.5)], **ARRAYS, "again": ARRAYS["matrix"]}
    made = read(tmp_path, pickle.dumps(value, protocol))
    assert list(made) == list(value)
    assert (made["n"], made["inside"]) == (value["n"], value["inside"])
    for name, array in (ARRAYS | {"again": ARRAYS["matrix"]}).items():
        assert made[name].dtype == array.dtype
        np.testing.assert_array_equal(made[name], array)
        assert made[name].shape == array.shape


def check_refused(tmp_path, content, message):
    with pytest.raises(WeightsError, match=message) as caught:
        read(tmp_path, content)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array(["text"]), "has the dtype U4; it has to be numbers"),
        (np.array([{}]), "has the dtype O8; it has to be numbers"),
        (np.zeros(2, ">f8"), "not written as little-endian numbers"),
        (np.zeros(2, [("x", "f8")]), "has the dtype V8"),
        (np.ma.zeros(2), "names numpy.ma.* it was not called"),
        (np.random.default_rng, "names numpy.random.* it was not called"),
    ],
)
def test_other_objects_of_numpy(tmp_path, value, message):
    check_refused(tmp_path, pickle.dumps(value, 4), message)


RECONSTRUCT, NDARRAY = Named("numpy.core.multiarray", "_reconstruct"), Named("numpy", "ndarray")
FROM_BUFFER, ENCODE = Named("numpy.core.numeric", "_frombuffer"), Named("_codecs", "encode")
BYTES, FLOAT64 = Call(ENCODE, ("12345678", "latin1")), Call(Named("numpy", "dtype"), ("f8",))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Call(FROM_BUFFER, (BYTES, FLOAT64, (2,), "C")), r"shape \(2,\) has 8 bytes"),
        (Call(FROM_BUFFER, (BYTES, FLOAT64, (-1,), "C")), "a shape that no array can have"),
        (Call(FROM_BUFFER, (BYTES, FLOAT64, (1,) * 33, "C")), "no shape or no order"),
        (Call(FROM_BUFFER, (BYTES, FLOAT64, (1,), "K")), "no shape or no order"),
        (Call(FROM_BUFFER, (BYTES, "f8", (1,), "C")), "no bytes or no dtype"),
        (Call(FROM_BUFFER, ("12345678", FLOAT64, (1,), "C")), "no bytes or no dtype"),
        (Call(RECONSTRUCT, (Named("numpy", "dtype"), (0,), "b")), "a class that is not NumPy's"),
        (Call(ENCODE, ("a", "zip")), "not the bytes of an array"),
        (Call(Named("__builtin__", "bytes"), (10**9,)), "makes bytes of something"),
        (Call(Named("numpy", "load"), ("x",)), "names numpy.load"),
        (Call(NDARRAY, ((3,),)), "is not a pickle of arrays"),
    ],
)
def test_arrays_written_by_hand(tmp_path, call, message):
    check_refused(tmp_path, pickled(call), message)


def test_text_does_not_become_more_bytes_than_the_file_has(tmp_path):
    # The text once, then read from the memo again and again.
    text = b"X" + (1000).to_bytes(4, "little") + b"a" * 1000 + b"q\x00"
    again = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    check_refused(tmp_path, b"\x80\x02]" + text + again * 50 + b".", "more bytes than the file")


def test_a_file_that_is_missing_or_too_large(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        read_pickle(tmp_path / "absent.pkl", most_bytes=10)
    (tmp_path / "large.pkl").write_bytes(bytes(11))
    with pytest.raises(WeightsError, match="11 bytes, and at most 10 are read"):
        read_pickle(tmp_path / "large.pkl", most_bytes=10)
