"""Checkpoints: the same bits back, the right ones kept, and sentences for damage."""

import functools
import hashlib
import json
import os
import re
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import parallel, training
from ddpm_jax.training import CheckpointError, Checkpoints, SaveError, manifest, newest_sound


def make_state(seed=0, width=5):
    params = {"w": jax.random.normal(jax.random.key(seed), (300, width)), "b": jnp.zeros(width)}
    return training.init_state(params, optax.adam(1e-3), jax.random.key(7))


def bits(tree):
    def of(leaf):
        dtype = leaf.dtype
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return str(dtype), np.asarray(leaf).tobytes()

    return jax.tree.map(of, tree)


def save(directory, steps_and_losses, **policy):
    state = make_state()
    with Checkpoints(directory, **policy) as checkpoints:
        for step, loss in steps_and_losses:
            checkpoints.save(step, state, {"batches": step}, held_out_loss=loss)
    return state


def test_the_same_bits_come_back(tmp_path):
    state = save(tmp_path / "c", [(3, 1.0)])
    with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
        restored = checkpoints.restore(make_state(seed=1))
    assert restored.step == 3
    assert restored.data_state == {"batches": 3}
    assert bits(restored.state) == bits(state)


def test_a_save_in_the_background_survives_donation(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def overwrite(state):
        params = jax.tree.map(lambda leaf: leaf * 2.0 + 1.0, state.params)
        return state._replace(params=params, step=state.step + 1)

    state = make_state(width=2000)
    wanted = {}
    with Checkpoints(tmp_path / "c", keep_latest=5) as checkpoints:
        for step in range(1, 6):
            wanted[step] = bits(state)
            checkpoints.save(step, state, {}, held_out_loss=1.0)
            for _ in range(10):
                state = overwrite(state)
        like = state
    with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
        for step, expected in wanted.items():
            assert bits(checkpoints.restore(like, step).state) == expected


def test_a_save_compiles_nothing_for_what_all_devices_hold(tmp_path):
    """Orbax would have each of eight write an eighth of each array, and compile that."""
    mesh = parallel.make_mesh(8, 1)
    state = jax.device_put(make_state(width=8), parallel.replicated(mesh))
    jax.block_until_ready(jax.random.key_data(state.key))
    compiled = []

    def listen(event, seconds, **_):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with Checkpoints(tmp_path / "c") as checkpoints:
            checkpoints.save(1, state, {}, held_out_loss=1.0)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
    with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
        assert bits(checkpoints.restore(state).state) == bits(state)


def test_the_newest_and_the_best_are_kept(tmp_path):
    losses = [(1, 5.0), (2, 1.0), (3, 4.0), (4, 3.0), (5, 9.0)]
    save(tmp_path / "c", losses, keep_latest=2, keep_best=1)
    assert Checkpoints(tmp_path / "c", read_only=True).steps() == [2, 4, 5]


def test_keeping_the_best_never_deletes_the_newest(tmp_path):
    rising = [(step, float(step)) for step in range(1, 7)]
    save(tmp_path / "c", rising, keep_latest=1, keep_best=2)
    assert Checkpoints(tmp_path / "c", read_only=True).steps() == [1, 2, 6]


def test_the_best_is_remembered_by_the_next_process(tmp_path):
    save(tmp_path / "c", [(1, 5.0), (2, 1.0), (3, 4.0)], keep_latest=1, keep_best=1)
    save(tmp_path / "c", [(4, 4.0), (5, 3.0)], keep_latest=1, keep_best=1)
    assert Checkpoints(tmp_path / "c", read_only=True).steps() == [2, 5]


def test_nothing_saved_is_none(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore(make_state()) is None
    with Checkpoints(tmp_path / "absent", read_only=True) as checkpoints:
        assert checkpoints.restore(make_state()) is None
    assert not (tmp_path / "absent").exists()


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
        r"5: data/metadata is no file$",
    ),
    "the arrays' folder deleted": (
        lambda c: shutil.rmtree(c / "5" / "state"),
        r"5: state/\S+ is missing, state/\S+ is missing, state/\S+ is missing and \d+ more$",
    ),
    "an empty folder": (lambda c: emptied(c / "5"), r"5: it is empty$"),
    "no manifest": (
        lambda c: (c / "5" / "manifest.json").unlink(),
        r"5: it has no manifest.json: its save was cut off, or is under way$",
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
        r"5: manifest.json is damaged: it does not have its own sha256$",
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


@pytest.mark.parametrize(
    "damage",
    [pytest.param(d, marks=() if d in QUICK else pytest.mark.thorough) for d in DAMAGE],
)
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
    assert "its save was cut off" in choice.refused[5]
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


def test_hashing_does_not_hold_up_the_loop(tmp_path, monkeypatch):
    begun, go_on, write = threading.Event(), threading.Event(), manifest.write

    def slow(*args, **kwargs):
        begun.set()
        assert go_on.wait(60)
        return write(*args, **kwargs)

    monkeypatch.setattr(manifest, "write", slow)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, make_state(), {}, held_out_loss=1.0)
        assert begun.wait(60)
        assert (tmp_path / "c" / "1").is_dir()
        assert checkpoints.steps() == []
        assert newest_sound(tmp_path / "c").step is None
        go_on.set()
        checkpoints.wait()
        assert checkpoints.steps() == [1]


def test_notes_come_back(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, make_state(), {}, held_out_loss=2.0, notes={"missed": [3]})
        checkpoints.wait()
        assert checkpoints.restore(make_state()).notes == {"missed": [3], "held_out_loss": 2.0}
    assert training.newest_manifest(tmp_path / "c").notes["missed"] == [3]
    assert training.newest_manifest(tmp_path / "absent") is None


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


def test_nothing_is_deleted_before_the_newer_one_has_its_manifest(tmp_path, monkeypatch):
    there, write = [], manifest.write

    def noting(folder, **kwargs):
        there.append(sorted(path.name for path in folder.parent.iterdir()))
        return write(folder, **kwargs)

    monkeypatch.setattr(manifest, "write", noting)
    save(tmp_path / "c", [(1, 1.0), (2, 1.0), (3, 1.0)], keep_latest=1, keep_best=0)
    assert there == [["1"], ["1", "2"], ["2", "3"]]
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["3"]


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


def test_at_least_one_is_kept(tmp_path):
    with pytest.raises(CheckpointError, match="keep_latest is 0"):
        Checkpoints(tmp_path, keep_latest=0)


def biggest_file(directory):
    files = (path for path in directory.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def test_another_network_is_a_sentence(tmp_path):
    save(tmp_path / "c", [(2, 1.0)])
    with (
        Checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(CheckpointError, match=r"b is float32\[5\] there and float32\[6\] here"),
    ):
        checkpoints.restore(make_state(width=6))


def test_an_unknown_step_names_the_known_ones(tmp_path):
    save(tmp_path / "c", [(1, 1.0), (2, 1.0)])
    with (
        Checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(CheckpointError, match=r"step 7 has no checkpoint in .*\[1, 2\]"),
    ):
        checkpoints.restore(make_state(), 7)
