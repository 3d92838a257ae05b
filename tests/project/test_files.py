"""JSON files that an earlier process wrote: whatever happened to them since is one sentence."""

import math
import os

import pytest

from ddpm_jax.files import JsonFileError, parse_json, read_json

DAMAGED = {
    b"": "is empty",
    b" \n": "is empty",
    b"{": "is not JSON (",
    b'{"a": 1} {': "is not JSON (Extra data",
    b"\x00" * 20: "is not JSON (",
    b'{"a": "\xff"}': "is not UTF-8 (byte 7 is 0xff)",
    b'{"a": "\xed\xa0\x80"}': "is not UTF-8 (byte 7 is 0xed)",
    '{"a": 1}'.encode("utf-16"): "is not UTF-8 (byte 0 is 0xff)",
    b'{"a": ' * 100_000: "is nested too deeply",
    b"[" * 100_000: "is nested too deeply",
    b'{"a": ' + b"9" * 5000 + b"}": "holds an integer of thousands of digits",
    b'{"b": {"a": 1, "a": 2}}': "has the field 'a' twice in one object",
    b"[1]": "holds a list, not an object",
    b"null": "holds a NoneType, not an object",
    b"7": "holds a int, not an object",
}


@pytest.mark.parametrize("text", DAMAGED, ids=[text[:24].decode("latin-1") for text in DAMAGED])
def test_a_damaged_file_is_one_sentence_with_its_path(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(JsonFileError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{str(path)!r} {DAMAGED[text]}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 120


def test_what_is_not_a_file_is_one_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, what in {
        "folder": "is a folder, not a file",
        "pipe": "is not a regular file",
        "absent": "does not exist",
        "loop": "does not exist",
    }.items():
        with pytest.raises(JsonFileError, match=f"{name}' {what}"):
            read_json(tmp_path / name)


def test_a_disk_that_cannot_read_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text("{}")
    for error, what in ((OSError(5, "Input/output error"), "Input/output"), (MemoryError(), "fit")):

        def read(self, error=error):
            raise error

        monkeypatch.setattr(type(path), "read_bytes", read)
        with pytest.raises(JsonFileError, match=what):
            read_json(path)


def test_what_is_whole_is_given_back(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, -Infinity, null], "\xc3\xa9": true}\r\n')
    assert read_json(path) == {"a": [1, 2.5, -math.inf, None], "é": True}
    assert math.isnan(parse_json(b"NaN", "line 3"))
