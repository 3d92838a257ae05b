"""Disks that refuse and processes that are killed: what was sound stays, and the run can go on."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from disks import UNAWAITED_WRITES, fill

from ddpm_jax import training
from ddpm_jax.training import CheckpointError, Checkpoints, SaveError, manifest, newest_sound

pytestmark = UNAWAITED_WRITES

ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(sys.path),
    "JAX_PLATFORMS": "cpu",
}


def state_of(step, width=2000):
    """300 x `width` numbers that follow from the step, nine times as many bytes in a checkpoint."""
    rng = np.random.default_rng(step)
    array = jnp.asarray(rng.standard_normal((300, width), np.float32))
    return training.TrainState(
        **{name: jnp.zeros((), jnp.int32) for name in training.TrainState._fields}
    )._replace(params={"w": array, "b": -array})


def same(state, step):
    wanted = state_of(step, width=state.params["w"].shape[1])
    return jax.tree.all(
        jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), state, wanted)
    )


def assert_sound(directory, step):
    assert newest_sound(directory) == (step, {})
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert same(checkpoints.restore(state_of(0)).state, step)


def save(checkpoints, step):
    checkpoints.save(step, state_of(step), {"at": step}, held_out_loss=1.0)


class TestADiskThatFillsUp:
    def test_says_so_keeps_what_is_sound_and_recovers(self, disk, capfd):
        directory = disk / "c"
        with Checkpoints(directory, keep_latest=1, keep_best=0) as checkpoints:
            save(checkpoints, 1)
            checkpoints.wait()
            fill(disk, leaving=2_000_000)
            save(checkpoints, 2)  # fails in the background
            with pytest.raises(
                SaveError, match=r"step 2 is not saved in \S+/c: No space"
            ) as caught:
                save(checkpoints, 3)  # under way, and fails in its turn
            assert caught.value.steps == (2,)
            with pytest.raises(
                SaveError, match=r"step 3 is not saved in .* No space left"
            ) as caught:
                checkpoints.wait()
            assert caught.value.steps == (3,)
            assert [path.name for path in directory.iterdir()] == ["1"]
            assert_sound(directory, 1)

            (disk / "other people's").unlink()
            save(checkpoints, 4)
            checkpoints.wait()
            assert_sound(directory, 4)
            assert checkpoints.steps() == [4]
        assert capfd.readouterr() == ("", "")

    def test_to_the_last_byte(self, disk):
        """Not even a folder can be made: the save does not begin."""
        directory = disk / "c"
        with Checkpoints(directory) as checkpoints:
            save(checkpoints, 1)
            checkpoints.wait()
            fill(disk, leaving=0)
            for step in (2, 3):
                with pytest.raises(SaveError, match="No space left on device") as caught:
                    save(checkpoints, step)
                assert caught.value.steps == (step,)
        assert_sound(directory, 1)

    def test_when_the_manifest_is_written(self, tmp_path, monkeypatch):
        """The arrays fit, and the manifest does not: so they are deleted again."""

        def no_space(folder, **kwargs):
            raise OSError(28, os.strerror(28), str(folder / manifest.NAME))

        with Checkpoints(tmp_path / "c", keep_latest=1, keep_best=0) as checkpoints:
            save(checkpoints, 1)
            checkpoints.wait()
            with monkeypatch.context() as patch:
                patch.setattr(manifest, "write", no_space)
                save(checkpoints, 2)
                with pytest.raises(SaveError, match=r"step 2 is not saved .* No space left"):
                    checkpoints.wait()
            assert [path.name for path in (tmp_path / "c").iterdir()] == ["1"]
            save(checkpoints, 2)
        assert_sound(tmp_path / "c", 2)

    def test_another_try_at_the_same_step(self, tmp_path, monkeypatch):
        """A run that is told to stop saves the step at hand, and its last save may have failed."""
        write, calls = manifest.write, []

        def at_the_second_try(folder, **kwargs):
            calls.append(folder)
            if len(calls) == 1:
                raise OSError(28, os.strerror(28))
            return write(folder, **kwargs)

        monkeypatch.setattr(manifest, "write", at_the_second_try)
        with Checkpoints(tmp_path / "c") as checkpoints:
            save(checkpoints, 1)
            save(checkpoints, 1)
        assert len(calls) == 2
        assert_sound(tmp_path / "c", 1)

    def test_a_limit_on_the_size_of_files(self, tmp_path, capfd):
        """What a quota does, without a mount: EFBIG."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        with Checkpoints(tmp_path / "c", keep_latest=1) as checkpoints:
            save(checkpoints, 1)
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
            try:
                save(checkpoints, 2)
                with pytest.raises(SaveError, match=r"step 2 is not saved .* File too large"):
                    checkpoints.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert_sound(tmp_path / "c", 1)
            save(checkpoints, 3)
        assert_sound(tmp_path / "c", 3)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("other", [None, KeyboardInterrupt()])
    def test_the_last_save_of_a_run_is_not_lost_in_silence(self, disk, other):
        """And what ended the run for another reason goes before it."""

        def train():
            with Checkpoints(disk / "c") as checkpoints:
                fill(disk, leaving=2_000_000)
                save(checkpoints, 1)
                if other:
                    raise other

        with pytest.raises(type(other) if other else SaveError) as caught:
            train()
        said = caught.value.__notes__[0] if other else str(caught.value)
        assert "step 1 is not saved" in said


@pytest.mark.thorough
def test_a_disk_that_turns_read_only(disk, capfd):
    directory = disk / "c"

    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)

    with Checkpoints(directory, keep_latest=1, keep_best=0) as checkpoints:
        save(checkpoints, 1)
        checkpoints.wait()
        remount("ro")
        for step in (2, 3):
            with pytest.raises(SaveError, match="Read-only file system") as caught:
                save(checkpoints, step)
            assert caught.value.steps == (step,)
        assert_sound(directory, 1)
        remount("rw")
        save(checkpoints, 4)
    assert_sound(directory, 4)
    assert capfd.readouterr() == ("", "")


@pytest.mark.thorough
def test_reading_needs_no_permission_to_write(disk):
    with Checkpoints(disk / "c") as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
    (disk / "c" / "2" / "data" / "metadata").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with Checkpoints(disk / "c", read_only=True) as checkpoints:
        restored = checkpoints.restore(state_of(0))
    assert restored.step == 1
    assert "data/metadata is missing" in restored.refused[2]
    with (
        Checkpoints(disk / "c") as checkpoints,
        pytest.raises(CheckpointError, match="c/2 cannot be moved aside: Read-only file system"),
    ):
        checkpoints.restore(state_of(0))


class TestAFolderThatVanishes:
    def test_is_said_and_made_again(self, tmp_path):
        directory = tmp_path / "run" / "c"
        with Checkpoints(directory) as checkpoints:
            save(checkpoints, 1)
            checkpoints.wait()
            shutil.rmtree(tmp_path / "run")
            with pytest.raises(SaveError, match="step 1 was saved, but is missing in") as caught:
                save(checkpoints, 2)
            assert caught.value.steps == (1,)
            save(checkpoints, 3)  # nothing is wrong any more
        assert newest_sound(directory) == (3, {})
        assert_sound(directory, 3)

    def test_during_a_save(self, tmp_path, monkeypatch):
        directory, write = tmp_path / "run" / "c", manifest.write

        def gone(folder, **kwargs):
            shutil.rmtree(tmp_path / "run")
            return write(folder, **kwargs)

        with Checkpoints(directory) as checkpoints:
            with monkeypatch.context() as patch:
                patch.setattr(manifest, "write", gone)
                save(checkpoints, 1)
                with pytest.raises(SaveError, match=r"step 1 is not saved .* No such file or dir"):
                    checkpoints.wait()
            save(checkpoints, 2)
        assert_sound(directory, 2)

    def test_into_a_file(self, tmp_path):
        with Checkpoints(tmp_path / "c") as checkpoints:
            (tmp_path / "c").touch()
            with pytest.raises(SaveError, match=r"step 1 is not saved .* File exists"):
                save(checkpoints, 1)
            (tmp_path / "c").unlink()
            save(checkpoints, 2)
        assert_sound(tmp_path / "c", 2)


# Imports once, then forks a process for each kill: JAX has no threads yet when they are forked.
SAVE_FOR_EVER = """
import os, shutil, signal, sys, warnings
from pathlib import Path
import jax
import test_disk
from ddpm_jax.training import Checkpoints, manifest

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def go_on(directory, moment):
    with Checkpoints(directory, keep_latest=1, keep_best=0) as checkpoints:
        restored = checkpoints.restore(test_disk.state_of(0, width=200))
        step = restored.step if restored else 0
        assert restored is None or test_disk.same(restored.state, step)
        print("ready", step, flush=True)
        while True:
            step += 1
            if step % 3 == 0 or not restored:
                if moment == "before the manifest":
                    manifest.write = die
                elif moment == "before the manifest's name":
                    type(directory).replace = die
                elif moment == "before older ones are deleted":
                    shutil.rmtree = die
            state = test_disk.state_of(step, width=200)
            checkpoints.save(step, state, {"at": step}, held_out_loss=1.0)

warnings.simplefilter("ignore")  # of forking
for line in sys.stdin:
    directory, moment = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        go_on(Path(directory), moment)
    print("started", child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def killable():
    with subprocess.Popen(
        [sys.executable, "-c", SAVE_FOR_EVER],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        yield process
        process.stdin.close()


def run_and_kill(process, directory, *, moment="", after=None, until=None):
    """Saves in a process of its own until it is killed: by itself at `moment`, or from here.

    Returns the step that it went on from.
    """
    process.stdin.write(f"{directory}\t{moment}\n")
    lines = {}
    while "ready" not in lines or "started" not in lines:
        word, number = process.stdout.readline().split()
        lines[word] = int(number)
    if not moment:
        time.sleep(after or 0.0)
        while until is not None and not (directory / str(until) / manifest.NAME).exists():
            time.sleep(0.001)
        os.kill(lines["started"], signal.SIGKILL)
    assert process.stdout.readline() == "ended\n"
    return lines["ready"]


MOMENTS = {
    "before the manifest": "no manifest",
    "before the manifest's name": "no manifest",
    "before older ones are deleted": "sound",
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.thorough
def test_a_kill_at_the_worst_moment(killable, tmp_path, moment):
    directory = tmp_path / "c"
    run_and_kill(killable, directory, moment=moment)  # during the very first save, or after it
    run_and_kill(killable, directory, until=(newest_sound(directory).step or 0) + 4)
    sound = newest_sound(directory).step
    assert run_and_kill(killable, directory, moment=moment) == sound
    choice = newest_sound(directory)
    assert choice.step >= sound
    if MOMENTS[moment] == "sound":
        assert choice.refused == {}
    else:
        (refused,) = choice.refused.items()
        assert refused[0] == choice.step + 1
        assert "it has no manifest.json: its save was interrupted" in refused[1]
    with Checkpoints(directory) as checkpoints:
        restored = checkpoints.restore(state_of(0, width=200))
        assert restored.data_state == {"at": restored.step}
        assert same(restored.state, restored.step)
        save_next = state_of(restored.step + 1, width=200)
        checkpoints.save(restored.step + 1, save_next, {}, held_out_loss=1.0)
    assert newest_sound(directory) == (restored.step + 1, {})
    assert not list(directory.glob("*.deleted"))


def kill_often(process, directory, kills):
    """Kills at random moments; after each the newest sound checkpoint is whole and not older."""
    began = time.monotonic()
    run_and_kill(process, directory, until=4)
    longest = time.monotonic() - began  # of four saves, on this machine, today
    rng, sound, left = random.Random(0), newest_sound(directory).step, set()
    for _ in range(kills):
        assert run_and_kill(process, directory, after=rng.uniform(0.0, longest)) == sound
        left |= {path.name.partition(".")[2].split("-")[0] for path in directory.iterdir()}
        choice = newest_sound(directory)
        assert choice.step >= sound
        sound = choice.step
        with Checkpoints(directory, read_only=True) as checkpoints:
            restored = checkpoints.restore(state_of(0, width=200))
        assert same(restored.state, sound)
        assert restored.data_state == {"at": sound}
    assert sound > 4, "no process got further than the first"
    assert "orbax" in left, "no kill came in the middle of a save"


@pytest.mark.thorough
def test_twenty_kills(killable, tmp_path):
    kill_often(killable, tmp_path / "c", 20)
