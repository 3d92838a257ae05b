"""Two real processes that save into one folder: one manifest, one choice, and errors on both."""

import resource
from pathlib import Path

import jax
import numpy as np
import pytest
import starter
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from runs import ended, free_port

from ddpm_jax.training import Checkpoints, SaveError, TrainState, manifest, newest_sound, saver


def main(process, port, directory, one_sided, timeout):
    """What each process does."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    directory = Path(directory)
    mesh = jax.make_mesh((2,), ("fsdp",), (AxisType.Auto,))
    split, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), ()))

    def state_of(step):
        whole = np.random.default_rng(step).standard_normal((400, 300)).astype(np.float32)
        zero = jax.device_put(np.int32(0), everywhere)
        params = jax.make_array_from_callback(whole.shape, split, lambda index: whole[index])
        return TrainState(**dict.fromkeys(TrainState._fields, zero))._replace(params=params)

    def same(state, step):
        wanted = state_of(step).params.addressable_data(0)
        return bool((np.asarray(state.params.addressable_data(0)) == np.asarray(wanted)).all())

    def save(step):
        checkpoints.save(step, state_of(step), {"at": step}, held_out_loss=1.0)

    def missed(call, *arguments):
        try:
            call(*arguments)
        except SaveError as error:
            print("missed", error.steps, error)
        else:
            print("nothing missed")

    def choose():
        step = newest_sound(directory).step if process == 0 else 0
        return int(multihost_utils.broadcast_one_to_all(np.int32(step)))

    written, write = [], manifest.write
    manifest.write = lambda folder, **kw: (written.append(kw["step"]), write(folder, **kw))[1]
    with Checkpoints(directory, keep_latest=1, keep_best=0, save_timeout=timeout) as checkpoints:
        save(1)
        save(2)
        checkpoints.wait()
        restored = checkpoints.restore(state_of(0), choose(), verify=False)
        print("restored", restored.step, same(restored.state, 2), restored.data_state)
        print("wrote", written)

        # the disk refuses both
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        save(3)
        missed(checkpoints.wait)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        print("chosen", choose())

        if one_sided:  # the second process fails in the background, and the first waits for it
            if process == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
            save(4)
            missed(checkpoints.wait)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            print("chosen", choose())

        # only the first process notices, before the save begins
        move_aside_non_file = saver._make_way
        if process == 0:

            def refuse(folder):
                raise OSError(30, "Read-only file system")

            saver._make_way = refuse
        missed(save, 5)
        saver._make_way = move_aside_non_file

        # only the first process notices, after Orbax is done
        if process == 0:

            def refuse(folder, **kwargs):
                raise OSError(28, "No space left on device")

            manifest.write, kept = refuse, manifest.write
        save(6)
        missed(checkpoints.wait)
        if process == 0:
            manifest.write = kept
        print("chosen", choose())

        save(7)
        missed(checkpoints.wait)
        restored = checkpoints.restore(state_of(0), choose(), verify=False)
        print("restored", restored.step, same(restored.state, 7), restored.data_state)
    return 0


def run(directory, *, one_sided=False, timeout=20):
    """What each of two processes prints; gloo's own lines left out."""
    told = (free_port(), str(directory), one_sided, timeout)
    processes = [
        starter.start("test_shared_folder:main", number, *told, jax_num_cpu_devices=1)
        for number in range(2)
    ]
    both = ended(processes, timeout=240)
    assert [(end.code, end.errors) for end in both] == [(0, ""), (0, "")], both
    where = f" in {directory}"
    return [
        [line.replace(where, "") for line in end.out.splitlines() if not line.startswith("[Gloo]")]
        for end in both
    ]


ELSEWHERE = "another process of the run could not"


def test_two_processes_share_a_folder(tmp_path):
    first, second = run(tmp_path / "c")
    assert first == [
        "restored 2 True {'at': 2}",
        "wrote [1, 2]",
        "missed (3,) step 3 is not saved: File too large",
        "chosen 2",
        "missed (5,) step 5 is not saved: Read-only file system",
        "missed (6,) step 6 is not saved: No space left on device",
        "chosen 2",
        "nothing missed",
        "restored 7 True {'at': 7}",
    ]
    assert second == [
        "restored 2 True {'at': 2}",
        "wrote []",
        "missed (3,) step 3 is not saved: File too large",
        "chosen 2",
        f"missed (5,) step 5 is not saved: {ELSEWHERE}",
        f"missed (6,) step 6 is not saved: {ELSEWHERE}",
        "chosen 2",
        "nothing missed",
        "restored 7 True {'at': 7}",
    ]


@pytest.mark.thorough  # it waits for a time-out
def test_one_of_two_processes_cannot_write(tmp_path):
    first, second = run(tmp_path / "c", one_sided=True, timeout=6)
    too_long = "it took too long, or another process of the run could not write its part"
    assert f"missed (4,) step 4 is not saved: {too_long}" in first
    assert "missed (4,) step 4 is not saved: File too large" in second
    for lines in (first, second):
        assert [line for line in lines if line.startswith("chosen")] == ["chosen 2"] * 3
        assert lines[-1] == "restored 7 True {'at': 7}"
