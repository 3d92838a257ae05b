"""Snapshots: averages that come back bit for bit, on any mesh, or with a sentence."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ddpm_jax.training import CheckpointError, SaveError, manifest
from ddpm_jax.training.saver import Saver
from ddpm_jax.training.snapshots import list_snapshots, load_snapshot, save_snapshot

WIDTHS = (0.05, 0.1)


def params_of(seed, width=8):
    rng = np.random.default_rng(seed)
    weights = jnp.asarray(rng.standard_normal((16, width), np.float32))
    return {"dense": {"kernel": weights, "bias": weights[0]}}


def averages_of(step, width=8):
    return params_of(step, width), params_of(1000 + step, width)


def bits(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), tree)


def test_the_same_bits_come_back_and_none_is_deleted(tmp_path):
    for step in (3, 12, 100):
        save_snapshot(tmp_path / "s", step, averages_of(step), WIDTHS, config={"seed": 1})
    assert list(list_snapshots(tmp_path / "s").items()) == [(n, WIDTHS) for n in (3, 12, 100)]
    for step in (3, 12, 100):
        found = load_snapshot(tmp_path / "s", step, params_of(0))
        assert (found.step, found.sigma_rels) == (step, WIDTHS)
        assert bits(found.averages) == bits(averages_of(step))
    assert manifest.read(tmp_path / "s" / "3", 3).config == {"seed": 1}


def test_like_may_be_shapes_of_another_type(tmp_path):
    save_snapshot(tmp_path, 1, averages_of(1)[:1], (0.1,))
    like = jax.eval_shape(lambda: jax.tree.map(lambda a: a.astype(jnp.bfloat16), params_of(0)))
    found = load_snapshot(tmp_path, 1, like)
    assert bits(found.averages) == bits(averages_of(1)[:1])


def test_from_one_mesh_to_another(tmp_path):
    def spread(size, axis):
        mesh = jax.make_mesh((size,), ("fsdp",), (AxisType.Auto,), devices=jax.devices()[:size])
        spec = PartitionSpec(*([None] * axis), "fsdp")
        return lambda leaf: jax.device_put(
            leaf, NamedSharding(mesh, spec if leaf.ndim == 2 else PartitionSpec())
        )

    save_snapshot(tmp_path, 1, jax.tree.map(spread(8, 0), averages_of(1)), WIDTHS)
    like = jax.tree.map(spread(4, 1), params_of(0))
    found = load_snapshot(tmp_path, 1, like)
    assert bits(found.averages) == bits(averages_of(1))
    assert found.averages[1]["dense"]["kernel"].sharding == like["dense"]["kernel"].sharding


def test_a_step_come_by_again_is_left_alone(tmp_path):
    save_snapshot(tmp_path, 1, averages_of(1), WIDTHS)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    save_snapshot(tmp_path, 1, averages_of(2), WIDTHS)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_damaged_one_is_saved_again(tmp_path):
    save_snapshot(tmp_path, 1, averages_of(1), WIDTHS)
    (tmp_path / "1" / "manifest.json").unlink()
    assert list_snapshots(tmp_path) == {}
    save_snapshot(tmp_path, 1, averages_of(1), WIDTHS)
    assert list_snapshots(tmp_path) == {1: WIDTHS}
    assert len(list(tmp_path.glob("1.unsound-*"))) == 1


def test_damage_is_a_sentence(tmp_path):
    save_snapshot(tmp_path, 1, averages_of(1), WIDTHS)
    files = [path for path in (tmp_path / "1" / "averages").rglob("*") if path.is_file()]
    victim = max(files, key=lambda path: path.stat().st_size)
    contents = bytearray(victim.read_bytes())
    contents[len(contents) // 2] ^= 1
    victim.write_bytes(contents)
    with pytest.raises(CheckpointError, match=r"1: averages/\S+ has been altered$"):
        load_snapshot(tmp_path, 1, params_of(0))
    shutil.rmtree(tmp_path / "1" / "averages")
    with pytest.raises(CheckpointError, match=r"1: averages/\S+ is missing"):
        load_snapshot(tmp_path, 1, params_of(0), verify=False)


def test_what_is_not_there(tmp_path):
    assert list_snapshots(tmp_path / "absent") == {}
    save_snapshot(tmp_path, 4, averages_of(4), WIDTHS)
    with pytest.raises(CheckpointError, match=r"step 5 has no snapshot in .*; there are \[4\]"):
        load_snapshot(tmp_path, 5, params_of(0))
    with pytest.raises(CheckpointError, match=r"another network .* 0/dense/bias is float32\[8\]"):
        load_snapshot(tmp_path, 4, params_of(0, width=9))


def test_guards(tmp_path):
    with pytest.raises(ValueError, match="2 averages and 1 sigma_rels; each"):
        save_snapshot(tmp_path, 1, averages_of(1), (0.1,))
    with pytest.raises(ValueError, match="0 averages and 0 sigma_rels; each"):
        save_snapshot(tmp_path, 1, (), ())
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params_of(1))
    with pytest.raises(ValueError, match=r"0/dense/bias is bfloat16\[8\]"):
        save_snapshot(tmp_path, 1, (half,), (0.1,))


def test_in_the_background(tmp_path):
    """The arrays may be donated, and the snapshot is whole when the saver says so."""
    saver = Saver("snapshot", tree="averages")
    for step in (1, 2):
        averages = averages_of(step)
        wanted = bits(averages)
        save_snapshot(tmp_path, step, averages, WIDTHS, saver=saver)
        jax.tree.map(lambda leaf: leaf.delete(), averages)
        saver.wait()
        assert bits(load_snapshot(tmp_path, step, params_of(0)).averages) == wanted
    saver.close()


def test_a_disk_that_refuses(tmp_path, monkeypatch):
    def no_space(folder, **kwargs):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write", no_space)
        with pytest.raises(SaveError, match=r"step 1 is not saved in .*: No space left"):
            save_snapshot(tmp_path, 1, averages_of(1), WIDTHS)
    assert list(tmp_path.iterdir()) == []
    save_snapshot(tmp_path, 1, averages_of(1), WIDTHS)
    assert list_snapshots(tmp_path) == {1: WIDTHS}
