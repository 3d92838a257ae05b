"""Values that are kept in files, and what may have happened to these."""

import json

import pytest

from ddpm_jax.experiment import cache


def test_kept_values_are_of_what_they_follow_from(tmp_path):
    made = []

    def compute():
        made.append(len(made))
        return {"number": made[-1]}

    for follows_from, number in [(["a", 1], 0), (["a", 2], 1), (["a", 1], 0)]:
        assert cache.cached_json(tmp_path, "count", follows_from, compute) == {"number": number}
    assert len(list(tmp_path.glob("count_*.json"))) == 2


DAMAGE = {
    "a digit": lambda text: text.replace(b"0.125", b"0.135"),
    "half": lambda text: text[: len(text) // 2],
    "nothing": lambda text: b"",
    "a list": lambda text: b"[1, 2]",
    "another object": lambda text: b'{"number": 3}',
    "a field of another type": lambda text: text.replace(b"0.125", b'"0.125"'),
    "a field more": lambda text: text.replace(b"{", b'{"more": 1,', 1),
    "no sha256": lambda text: json.dumps({"number": json.loads(text)["number"]}).encode(),
    "a sha256 that is none": lambda text: text.replace(b'"sha256": "', b'"sha256": [], "b": "'),
    "bits": lambda text: bytes(255 - byte for byte in text),
    "too deep": lambda text: b"[" * 100_000,
    "digits": lambda text: b'{"number": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_kept_values_that_are_not_as_written_are_computed_again(tmp_path, damage):
    told, good = [], {"number": 0.125}
    cache.cached_json(tmp_path, "value", ["a"], lambda: good)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert cache.cached_json(tmp_path, "value", ["a"], lambda: good, told.append) == good
    assert len(told) == 1
    assert str(path) in told[0]
    assert "\n" not in told[0]
    assert path.read_bytes() == whole
    cache.cached_json(tmp_path, "value", ["a"], lambda: {"other": 1}, told.append)
    assert path.read_bytes() == whole
    assert len(told) == 1


def test_kept_values_in_the_place_of_others_are_computed_again(tmp_path):
    for setting in ("a", "b"):
        cache.cached_json(tmp_path, "value", [setting], lambda setting=setting: {"of": setting})
    first, second = tmp_path.iterdir()
    both = first.read_bytes(), second.read_bytes()
    first.write_bytes(both[1])
    second.write_bytes(both[0])
    for setting in ("a", "b"):
        good = {"of": setting}
        assert cache.cached_json(tmp_path, "value", [setting], lambda good=good: good) == good


def test_a_folder_in_the_place_of_a_kept_file_is_moved_aside(tmp_path):
    told = []
    for _ in range(2):
        assert cache.cached_json(tmp_path, "value", ["a"], lambda: {"n": 1}, told.append) == {
            "n": 1
        }
        (path,) = tmp_path.glob("*.json")
        path.unlink()
        path.mkdir()
        (path / "mine").write_text("")
    cache.cached_json(tmp_path, "value", ["a"], lambda: {"n": 1}, told.append)
    assert len(told) == 2
    assert len(list(tmp_path.glob("*/mine"))) == 2
