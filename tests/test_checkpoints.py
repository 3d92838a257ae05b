"""Checkpoints: the same bits back, the right ones kept, and sentences for damage."""

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import training
from ddpm_jax.training import CheckpointError, Checkpoints


def make_state(seed=0, width=5):
    params = {"w": jax.random.normal(jax.random.key(seed), (300, width)), "b": jnp.zeros(width)}
    return training.init_state(params, optax.adam(1e-3), jax.random.key(7))


def bits(tree):
    def of(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf).tobytes()

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


@pytest.mark.parametrize("wreck", ["empty folder", "no commit mark", "half written"])
def test_an_incomplete_newest_is_passed_over(tmp_path, wreck):
    save(tmp_path / "c", [(1, 1.0), (2, 1.0)])
    match wreck:
        case "empty folder":
            (tmp_path / "c" / "9").mkdir()
        case "no commit mark":
            shutil.copytree(tmp_path / "c" / "2", tmp_path / "c" / "9")
            (tmp_path / "c" / "9" / "_CHECKPOINT_METADATA").unlink()
        case "half written":
            shutil.copytree(tmp_path / "c" / "2", tmp_path / "c" / "9.orbax-checkpoint-tmp-1")
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore(make_state()).step == 2
        # and it does not stand in the way of the real one
        checkpoints.save(9, make_state(), {}, held_out_loss=0.5)
    assert Checkpoints(tmp_path / "c", read_only=True).steps()[-1] == 9


def biggest_file(directory):
    files = (path for path in directory.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def test_a_truncated_file_is_a_sentence_that_says_what_to_do(tmp_path):
    """In a process of its own: Orbax abandons its other reads, which complain at any later time."""
    save(tmp_path / "c", [(1, 1.0), (2, 1.0)])
    victim = biggest_file(tmp_path / "c" / "2" / "state")
    victim.write_bytes(victim.read_bytes()[:50])
    program = """
import sys
from pathlib import Path
from test_checkpoints import CheckpointError, Checkpoints, make_state
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    try:
        checkpoints.restore(make_state())
    except CheckpointError as error:
        print(error)
"""
    here = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "c")],
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(r".*c/2 cannot be read .* go on from step 1\n", run.stdout)


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
        pytest.raises(CheckpointError, match=r"step 7 has no complete checkpoint .*\[1, 2\]"),
    ):
        checkpoints.restore(make_state(), 7)
