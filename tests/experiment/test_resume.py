"""Kill -9 at any moment, run the same command again: the same bits as if nothing had happened."""

import re
import signal
import subprocess
import sys
import time

import pytest
from paths import ROOT, TINY
from runs import contents, ended, finish, start

pytestmark = pytest.mark.usefixtures("mixers")


def until(process, text):
    """Its lines until one of them holds `text`."""
    for line in process.stdout:
        if text in line:
            return


def test_a_run_that_is_stopped_and_killed_ends_with_the_same_bits(tiny_run, tmp_path):
    """While it draws, between its saves; beside a run in another process that nothing befell."""
    run = tmp_path / "run"
    arguments = [TINY, "--mesh.data", "1", "--workdir", str(run)]
    (process,) = start(arguments, devices=8)
    until(process, "step 12: drawing")
    process.send_signal(signal.SIGTERM)
    (end,) = ended([process], timeout=60)
    assert (end.code, end.errors) == (143, "ddpm-jax: stopped by SIGTERM; step 12 is saved\n")
    assert "the same command resumes from there" in end.out

    (process,) = start(arguments, devices=8)
    until(process, "step 24: drawing")
    process.send_signal(signal.SIGKILL)
    (end,) = ended([process], timeout=60)
    assert end.code == -signal.SIGKILL
    assert not (run / "results.json").exists()
    assert re.search(r"resuming from step (16|20)\n", finish(arguments, devices=8))
    assert contents(run) == contents(tiny_run)


@pytest.mark.thorough
def test_a_signal_saves_the_step_at_hand_and_changes_nothing(tmp_path):
    arguments = [TINY, "--train.save-every", "1000", "--train.steps", "300"]
    finish([*arguments, "--workdir", str(tmp_path / "whole")])
    arguments += ["--workdir", str(tmp_path / "stopped")]
    saved = 0
    for asked, times in ((signal.SIGTERM, 10), (signal.SIGINT, 1), (signal.SIGHUP, 3)):
        (process,) = start(arguments)
        for line in process.stdout:
            if line.startswith(f"step {saved // 5 * 5 + 25}/"):
                break
        for _ in range(times):  # a scheduler repeats itself
            process.send_signal(asked)
            time.sleep(0.02)
        (end,) = ended([process], timeout=60)
        assert end.code == 128 + asked, end
        assert "finishing step" in end.out
        assert "the same command resumes from there" in end.out
        said = rf"^ddpm-jax: stopped by {asked.name}; step (\d+) is saved$"
        before, (saved,) = saved, map(int, re.findall(said, end.errors))
        assert before + 20 <= saved < 300
    assert f"resuming from step {saved}\n" in finish(arguments)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.thorough
def test_a_signal_before_the_first_step_leaves_at_once(tmp_path):
    """Also of a run that goes on and has done no new step: there is nothing to save."""
    arguments = [TINY, "--train.steps", "300", "--workdir", str(tmp_path / "run")]
    for asked, said in (
        (signal.SIGTERM, "stopped by SIGTERM; nothing was trained, and nothing is lost"),
        (signal.SIGINT, "interrupted"),
    ):
        (process,) = start(arguments, cache=tmp_path / "empty")  # so that it compiles
        for line in process.stdout:
            if line.startswith("compiling the train step"):
                break
        began = time.monotonic()
        process.send_signal(asked)
        (end,) = ended([process], timeout=60)
        assert (end.code, end.errors) == (128 + asked, f"ddpm-jax: {said}\n")
        assert time.monotonic() - began < 3
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


@pytest.mark.thorough
def test_an_interrupt_while_jax_is_imported_is_one_line():
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    program += "from ddpm_jax.cli import main; print(flush=True);"
    program += "sys.exit(main(['train', 'absent.py']))"
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen([sys.executable, "-c", program], **how) as process:
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        (end,) = ended([process], timeout=60)
    assert end == (130, "", "ddpm-jax: interrupted\n")


@pytest.mark.thorough
def test_a_second_interrupt_does_not_wait(tmp_path):
    """While pictures are drawn, for which the first one waits."""
    arguments = [TINY, "--train.steps", "100000"]
    arguments += ["--train.draw-every", "5", "--evaluation.num-samples", "4096"]
    arguments += ["--train.save-every", "100000"]
    (process,) = start([*arguments, "--workdir", str(tmp_path / "run")])
    for line in process.stdout:
        if line.startswith("step 5/"):
            break
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    (end,) = ended([process], timeout=60)
    assert end.code == 130, end
    assert "the same command resumes from the last checkpoint" in end.out
    assert end.errors == "ddpm-jax: interrupted\n"
