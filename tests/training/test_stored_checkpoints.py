"""Checkpoints on the disk: what their manifests say, and what becomes of damaged ones."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from marks import thorough_but
from states import bits, make_state, save

from ddpm_jax.training import CheckpointError, Checkpoints, SaveError, manifest, newest_sound


@pytest.mark.parametrize("wreck", ["empty folder", "no manifest", "half written"])
def test_an_incomplete_newest_is_passed_over(tmp_path, wreck):
    save(tmp_path / "c", [(1, 1.0), (2, 1.0)])
    match wreck:
        case "empty folder":
            (tmp_path / "c" / "9").mkdir()
        case "no manifest":
            shutil.copytree(tmp_path / "c" / "2", tmp_path / "c" / "9")
            (tmp_path / "c" / "9" / "manifest.json").unlink()
        case "half written":
            shutil.copytree(tmp_path / "c" / "2", tmp_path / "c" / "9.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore(make_state()).step == 2
        # and it does not stand in the way of the real one
        checkpoints.save(9, make_state(), {}, held_out_loss=0.5)
    assert Checkpoints(tmp_path / "c", read_only=True).steps()[-1] == 9


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Three checkpoints of different states, at steps 1, 2 and 5; tests damage copies of them."""
    directory = tmp_path_factory.mktemp("pristine") / "c"
    with Checkpoints(directory, keep_latest=3, config={"seed": 3}) as checkpoints:
        for step in (1, 2, 5):
            checkpoints.save(step, make_state(seed=step), {"at": step}, held_out_loss=1.0)
    return directory


@pytest.fixture
def saved(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "c"))


def kinds_of_files(folder):
    """One file of each kind that Orbax writes, by what it is called with random names left out."""
    names = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            names.setdefault(re.sub(r"[0-9a-f]{32}", "*", name), name)
    return names


def flip(path):
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 4
    path.write_bytes(contents)


def swap(directory):
    """The newest two exchange their arrays, whose files are of one size."""
    first, second = (directory / str(step) / "state" for step in (2, 5))
    first.rename(directory / "between")
    second.rename(first)
    (directory / "between").rename(second)


def rewrite_manifest(folder, change):
    """With the right digest of itself."""
    body = json.loads((folder / "manifest.json").read_text())
    del body["sha256"]
    change(body)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({**body, "sha256": digest}))


def wrong_hash(folder):
    def change(body):
        body["files"]["state/_METADATA"]["sha256"] = "0" * 64

    rewrite_manifest(folder, change)


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE = {
    "arrays cut off": (
        lambda c: os.truncate(biggest_file(c / "5" / "state"), 50),
        r"5: state/\S+ has 50 bytes in place of \d+$",
    ),
    "a file of no length": (
        lambda c: os.truncate(c / "5" / "data" / "metadata", 0),
        r"5: data/metadata has 0 bytes in place of \d+$",
    ),
    "a longer file": (
        lambda c: os.truncate(c / "5/data/metadata", 1000),
        r"5: data/metadata has \d+ bytes in place of \d+$",
    ),
    "a file deleted": (
        lambda c: (c / "5" / "state" / "_METADATA").unlink(),
        r"5: state/_METADATA is missing$",
    ),
    "a file that is a folder": (
        lambda c: [(c / "5/data/metadata").unlink(), (c / "5/data/metadata").mkdir()],
        r"5: data/metadata is not a file$",
    ),
    "the arrays' folder deleted": (
        lambda c: shutil.rmtree(c / "5" / "state"),
        r"5: state/\S+ is missing, state/\S+ is missing, state/\S+ is missing and \d+ more$",
    ),
    "an empty folder": (lambda c: emptied(c / "5"), r"5: it is empty$"),
    "no manifest": (
        lambda c: (c / "5" / "manifest.json").unlink(),
        r"5: it has no manifest.json: its save was interrupted, or is in progress$",
    ),
    "another step's manifest": (
        lambda c: shutil.copy(c / "2" / "manifest.json", c / "5"),
        r"5: manifest.json is of step 2$",
    ),
    "a wrong hash in the manifest": (
        lambda c: wrong_hash(c / "5"),
        r"5: state/_METADATA has been altered$",
    ),
    "an edited manifest": (
        lambda c: (c / "5" / "manifest.json").write_text(
            (c / "5" / "manifest.json").read_text().replace('"seed": 3', '"seed": 4')
        ),
        r"5: manifest.json is damaged: its SHA-256 differs$",
    ),
    "a manifest that is no JSON": (
        lambda c: (c / "5" / "manifest.json").write_text("checkpoint"),
        r"5: manifest.json is not JSON$",
    ),
    "half a manifest": (
        lambda c: os.truncate(c / "5" / "manifest.json", 300),
        r"5: manifest.json is not JSON$",
    ),
    "a manifest of the future": (
        lambda c: rewrite_manifest(c / "5", lambda body: body.update(format=2)),
        r"5: manifest.json is of another version of ddpm_jax$",
    ),
    "a renamed folder": (
        lambda c: (c / "5").rename(c / "9"),
        r"9: manifest.json is of step 5$",
    ),
    "a copy under a later name": (
        lambda c: [shutil.copytree(c / "2", c / "9"), shutil.rmtree(c / "5")],
        r"9: manifest.json is of step 2$",
    ),
}


QUICK = ("arrays cut off", "no manifest")


@pytest.mark.parametrize("damage", thorough_but(QUICK, DAMAGE))
def test_damage_is_a_sentence_and_the_one_before_is_taken(saved, damage, capfd):
    do, sentence = DAMAGE[damage]
    do(saved)
    damaged = max(int(path.name) for path in saved.iterdir())
    choice = newest_sound(saved)
    assert choice.step == 2
    assert list(choice.refused) == [damaged]
    assert re.search(sentence, choice.refused[damaged])

    before = sorted(saved.rglob("*"))
    with Checkpoints(saved, read_only=True) as checkpoints:
        restored = checkpoints.restore(make_state())
        with pytest.raises(CheckpointError, match=sentence):
            checkpoints.restore(make_state(), damaged)
    assert sorted(saved.rglob("*")) == before
    assert (restored.step, restored.data_state) == (2, {"at": 2})
    assert restored.refused == choice.refused
    assert bits(restored.state) == bits(make_state(seed=2))

    with Checkpoints(saved) as checkpoints:
        assert checkpoints.restore(make_state()).step == 2
        checkpoints.save(damaged, make_state(seed=8), {}, held_out_loss=1.0)
    assert newest_sound(saved) == (damaged, {})
    assert len(list(saved.glob(f"{damaged}.unsound-*"))) == 1
    assert capfd.readouterr() == ("", "")  # nobody else says anything, now or in other threads


def test_a_flipped_bit_in_any_kind_of_file(saved):
    kinds = kinds_of_files(saved / "5")
    assert {"manifest.json", "_CHECKPOINT_METADATA", "data/metadata", "state/_METADATA"} < set(
        kinds
    )
    assert len(kinds) >= 10
    for name in kinds.values():
        whole = (saved / "5" / name).read_bytes()
        flip(saved / "5" / name)
        step, refused = newest_sound(saved)
        assert step == 2
        assert f"5: {name} " in refused[5]
        (saved / "5" / name).write_bytes(whole)
    assert newest_sound(saved) == (5, {})


def test_files_swapped_between_checkpoints(saved):
    swap(saved)
    step, refused = newest_sound(saved)
    assert step == 1
    assert list(refused) == [5, 2]
    assert all("state/" in sentence for sentence in refused.values())


def test_none_sound_is_one_sentence_that_names_them_all(saved):
    flip(biggest_file(saved / "1" / "state"))
    emptied(saved / "2")
    (saved / "5" / "manifest.json").unlink()
    with Checkpoints(saved) as checkpoints, pytest.raises(CheckpointError) as caught:
        checkpoints.restore(make_state())
    assert re.fullmatch(
        r"no checkpoint in \S+ is sound: \S+5: it has no manifest.json: [^;]*;"
        r" \S+2: it is empty; \S+1: state/\S+ has been altered",
        str(caught.value),
    )
    assert {path.name for path in saved.iterdir()} == {"1", "2", "5"}  # left for whoever mends it


def test_a_first_save_that_was_cut_off_is_no_loss(saved):
    for step in (1, 2):
        shutil.rmtree(saved / str(step))
    (saved / "5" / "manifest.json").unlink()
    choice = newest_sound(saved)
    assert choice.step is None
    assert "its save was interrupted" in choice.refused[5]
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.restore(make_state()) is None
        checkpoints.save(5, make_state(), {}, held_out_loss=1.0)
    assert newest_sound(saved) == (5, {})


def test_verification_can_be_turned_off(saved):
    flip(saved / "5" / "_CHECKPOINT_METADATA")
    assert newest_sound(saved).step == 2
    assert newest_sound(saved, verify=False).step == 5
    os.truncate(biggest_file(saved / "5" / "state"), 50)  # sizes cost nothing
    assert newest_sound(saved, verify=False).step == 2


def test_the_manifest_holds_what_is_needed_to_tell_runs_apart(saved):
    body = json.loads((saved / "5" / "manifest.json").read_text())
    assert body["step"] == 5
    assert body["config"] == {"seed": 3}
    assert body["notes"] == {"held_out_loss": 1.0}
    assert body["arrays"]["params/w"] == "float32[300, 5]"
    assert body["arrays"]["key"] == "key<fry>[]"
    assert set(body["files"]) == {
        path.relative_to(saved / "5").as_posix()
        for path in (saved / "5").rglob("*")
        if path.is_file()
    } - {"manifest.json"}


@pytest.mark.parametrize("loss", [float("nan"), None, "1.0", [1.0], True])
def test_an_odd_loss_in_a_manifest_is_the_worst_one(saved, loss):
    rewrite_manifest(saved / "1", lambda body: body["notes"].update(held_out_loss=loss))
    rewrite_manifest(saved / "2", lambda body: body["notes"].update(held_out_loss=3.0))
    with Checkpoints(saved, keep_latest=1, keep_best=1) as checkpoints:
        checkpoints.save(6, make_state(seed=6), {}, held_out_loss=9.0)
    assert checkpoints.steps() == [5, 6]
    with Checkpoints(saved, keep_latest=1, keep_best=3) as checkpoints:
        checkpoints.save(7, make_state(seed=7), {}, held_out_loss=float("inf"))
    assert checkpoints.steps() == [5, 6, 7]


@pytest.mark.parametrize("rest", [{}, {"other": 1}])
def test_no_loss_in_a_manifest(saved, rest):
    def change(body):
        body["notes"] = rest

    rewrite_manifest(saved / "1", change)
    with Checkpoints(saved, keep_latest=1, keep_best=1) as checkpoints:
        checkpoints.save(6, make_state(seed=6), {}, held_out_loss=9.0)
    assert checkpoints.steps() == [5, 6]


def test_a_checkpoint_deleted_while_it_is_read(saved, monkeypatch):
    """By the training beside; the newer one is there by then."""
    verify, seen = manifest.verify, []

    def while_training_goes_on(folder, step, **kwargs):
        seen.append(step)
        if len(seen) == 1:
            with Checkpoints(saved, keep_latest=1, keep_best=0) as training:
                training.save(6, make_state(seed=6), {}, held_out_loss=1.0)
        return verify(folder, step, **kwargs)

    monkeypatch.setattr(manifest, "verify", while_training_goes_on)
    with Checkpoints(saved, read_only=True) as checkpoints:
        restored = checkpoints.restore(make_state())
    assert seen[:2] == [5, 6]
    assert (restored.step, restored.refused) == (6, {})


def test_a_step_is_not_saved_twice_nor_an_earlier_one(saved):
    with Checkpoints(saved, keep_latest=9) as checkpoints:
        for step in (4, 5):
            with pytest.raises(SaveError, match=r"step \d is not saved .* steps \[1, 2, 5\] alr"):
                checkpoints.save(step, make_state(), {}, held_out_loss=1.0)
        checkpoints.save(6, make_state(seed=6), {}, held_out_loss=1.0)
        with pytest.raises(SaveError, match=r"there are steps .* already") as caught:
            checkpoints.save(6, make_state(seed=7), {}, held_out_loss=1.0)
        assert caught.value.steps == (6,)
        assert bits(checkpoints.restore(make_state(), 6).state) == bits(make_state(seed=6))
        assert bits(checkpoints.restore(make_state(), 5).state) == bits(make_state(seed=5))


def test_nothing_is_moved_aside_for_another_network(saved):
    (saved / "5" / "manifest.json").unlink()
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(CheckpointError, match=r"2 is of another network .*/b is float32\[5\]"),
    ):
        checkpoints.restore(make_state(width=6))
    assert {path.name for path in saved.iterdir()} == {"1", "2", "5"}


def biggest_file(directory):
    files = (path for path in directory.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)
