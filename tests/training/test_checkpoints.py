"""Checkpoints: the same bits back, and the right ones kept."""

import functools
import threading

import jax
import pytest
from states import bits, make_state, save

from ddpm_jax import parallel, training
from ddpm_jax.training import CheckpointError, Checkpoints, manifest, newest_sound


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


def test_nothing_is_deleted_before_the_newer_one_has_its_manifest(tmp_path, monkeypatch):
    there, write = [], manifest.write

    def noting(folder, **kwargs):
        there.append(sorted(path.name for path in folder.parent.iterdir()))
        return write(folder, **kwargs)

    monkeypatch.setattr(manifest, "write", noting)
    save(tmp_path / "c", [(1, 1.0), (2, 1.0), (3, 1.0)], keep_latest=1, keep_best=0)
    assert there == [["1"], ["1", "2"], ["2", "3"]]
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["3"]


def test_at_least_one_is_kept(tmp_path):
    with pytest.raises(CheckpointError, match="keep_latest is 0"):
        Checkpoints(tmp_path, keep_latest=0)


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
