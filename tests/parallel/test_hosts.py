"""Several real processes on this machine: told to stop, killed, stopped, and told different things.

They meet on loopback and compute over gloo, two devices in all: what two devices add does not
depend on who has them, so runs of one process and of two are compared bit for bit.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import elastic
import numpy as np
import pytest
import starter
from elastic import Leg
from imagery import examples, prepare, random_images
from paths import MIXED, ROOT
from runs import CACHE, contents, ended, finish, free_port, kill_and_resume, start, wait_for_file
from runs import wait_for_checkpoint as wait_for

from ddpm_jax.training import newest_sound

HEARTBEAT = 5
ARGUMENTS = [MIXED, "--train.steps", "90", "--train.save-every", "6", "--train.draw-every", "1000"]
ARGUMENTS += ["--hosts.heartbeat-seconds", str(HEARTBEAT)]
# Each process measures the spectrum anew: what follows from it has to be the same, too.
ARGUMENTS += ["--process", "equal-snr"]
ENDLESS = ["--train.steps", "100000", "--train.save-every", "10"]
"""Not from the beginning of a run that has to end."""
ONWARDS = "the same command on all hosts continues from what is saved"
MET = rf"another process of the run died or cannot be reached \(.*\); {ONWARDS}"
SILENT = rf"process(es)? .* of the run.* (died or does|died or do) not answer; {ONWARDS}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run of two processes leaves that nothing befell."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish([*ARGUMENTS, "--workdir", str(run)], hosts=2)
    return contents(run)


def ends(processes, victim, number, *, code=4):
    """Sends a signal to one process; what the others say, and the seconds until the last ends."""
    others = [process for process in processes if process is not victim]
    began = time.monotonic()
    victim.send_signal(number)
    try:
        for process in others:
            process.wait(60)
    finally:
        seconds = time.monotonic() - began
        if number in (signal.SIGKILL, signal.SIGSTOP):
            victim.kill()
        all_ended = ended(processes)
    said = [end for process, end in zip(processes, all_ended, strict=True) if process in others]
    print([(end.code, end.errors) for end in said], f"{seconds:.1f} s")
    for end in said:
        assert end.code == code, end
        assert re.fullmatch(rf"ddpm-jax: ({MET}|{SILENT})\n", end.errors) or code != 4, end
    assert seconds < HEARTBEAT + 5
    return all_ended


def wait_for_a_save(processes, run, step):
    """Until one is under way, and `step` is saved."""
    wait_for(processes, run, step)
    wait_for_file(processes, run / "checkpoints", "*.orbax-checkpoint-tmp*", every=0.001)


@pytest.mark.thorough
def test_whatever_befalls_one_process_the_run_ends_with_the_same_bits(tmp_path, whole):
    """Each signal is of a run that goes on from where the one before it ended."""
    run = tmp_path / "run"
    arguments = [*ARGUMENTS, "--workdir", str(run)]

    # Told to stop: both save the same step.
    step = 0
    for victim, number, codes in ((1, "SIGTERM", [143, 143]), (0, "SIGINT", [130, 143])):
        processes = start(arguments, hosts=2)
        wait_for(processes, run, step + 1)
        both = ends(processes, processes[victim], getattr(signal, number), code=143)
        assert [end.code for end in both] == codes
        assert "the same command resumes from there" in both[0].out
        assert f"resuming from step {step}\n" in both[0].out or not step
        said = rf"ddpm-jax: stopped by {number}; step (\d+) is saved\n"
        step = int(re.fullmatch(said, both[victim].errors)[1])
        assert both[1 - victim].errors == f"ddpm-jax: stopped by SIGTERM; step {step} is saved\n"

    # Killed in the middle of a save: what was saved before is not lost.
    for victim in (0, 1):
        processes = start(arguments, hosts=2)
        wait_for_a_save(processes, run, step + 1)
        ends(processes, processes[victim], signal.SIGKILL)
        step = newest_sound(run / "checkpoints").step

    processes = start(arguments, hosts=2)
    wait_for(processes, run, step + 1)
    first, _ = ends(processes, processes[1], signal.SIGSTOP)
    assert f"resuming from step {step}\n" in first.out
    assert "resuming from step" in finish(arguments, hosts=2)
    assert contents(run) == whole


@pytest.mark.thorough
def test_kills_at_random_change_nothing(tmp_path, whole):
    resumed = kill_and_resume(
        ARGUMENTS,
        tmp_path / "run",
        kills=3,
        rng=random.Random(2),
        later=0.5,
        hosts=(1, 2),
    )
    assert resumed, "no process went on from a checkpoint"
    assert contents(tmp_path / "run") == whole


@pytest.mark.thorough
@pytest.mark.parametrize(("victim", "number"), [(0, signal.SIGSTOP), (2, signal.SIGKILL)])
def test_three_others_end(tmp_path, victim, number):
    run = tmp_path / "run"
    processes = start([*ARGUMENTS, *ENDLESS, "--workdir", str(run)], hosts=4)
    wait_for(processes, run, 10)
    ends(processes, processes[victim], number)


class TestOneProcessCannot:
    """It says why in its own words, with its own exit code; the other ends, too."""

    def refused(self, tmp_path, *own, arguments=(), codes=(4, 2), out=""):
        arguments = [*ARGUMENTS, *arguments, "--workdir", str(tmp_path / "run")]
        began = time.monotonic()
        both = ended(start(arguments, hosts=2, own=[[], own]), timeout=120)
        print(both, f"{time.monotonic() - began:.1f} s")
        assert [end.code for end in both] == list(codes), both
        assert not (tmp_path / "run").exists()
        assert [end.out for end in both] == [out, ""]
        return [end.errors for end in both]

    def test_use_the_same_config(self, tmp_path):
        own = ["--train.batch-size", "32", "--seed", "3", "--compilation-cache", "elsewhere"]
        first, second = self.refused(tmp_path, *own, codes=(2, 2))
        assert first == second
        assert first == (
            "ddpm-jax: process 1 of the run has another config (train.batch_size is 32 there and 16"
            " in process 0; seed is 3 there and 0 in process 0)\n"
        )

    @pytest.mark.thorough
    def test_find_the_data(self, tmp_path):
        images = random_images(25, 8, 8, 1)
        splits = {"train": examples(images[:20]), "test": examples(images[20:])}
        prepare(tmp_path, "tiny_grey", splits, shape=(8, 8, 1))
        arguments = ["--data", "tensor-flow-dataset", "--data.name", "tiny_grey"]
        arguments += ["--data.dir", str(tmp_path)]
        first, second = self.refused(
            tmp_path,
            *("--data.dir", str(tmp_path / "none")),
            arguments=arguments,
            out="reading the images of tiny_grey\n",
        )
        assert second.startswith("ddpm-jax: data set 'tiny_grey'")
        assert first == f"ddpm-jax: process 1 of the run has stopped: {second[10:]}"


@pytest.mark.thorough
def test_a_disk_that_refuses_ends_both(tmp_path):
    run = tmp_path / "run"
    arguments = [*ARGUMENTS, *ENDLESS, "--train.missed-saves", "0", "--workdir", str(run)]
    processes = start(arguments, hosts=2)
    wait_for(processes, run, 10)
    (run / "checkpoints").rename(run / "away")
    (run / "checkpoints").touch()
    both = ended(processes, timeout=60)
    assert [end.code for end in both] == [3, 3], both
    for end in both:
        assert re.match(r"ddpm-jax: step \d+ (is not saved|was saved, but is missing)", end.errors)
        assert end.errors.count("\n") == 1


SERVICE = "E1122 11:56:03.698590   25893 coordination_service_agent.cc:288] Polled an error"
FATAL = "F1122 11:56:03.699220   25904 client.h:86] Terminating process because the JAX distributed"
FATAL += " service detected fatal errors. This most likely indicates that another task died;"
SILENT_WORDS = " The following tasks are unhealthy (stopped sending heartbeats):"
OTHER = "F1122 11:56:03.699220   25904 literal.cc:86] Check failed: size == 3"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            [SERVICE, FATAL + SILENT_WORDS, "1", "12", "They crashed"],
            4,
            [f"ddpm-jax: processes 1, 12 of the run died or do not answer; {ONWARDS}"],
        ),
        (
            ["unrelated", FATAL + SILENT_WORDS, "/job:jax_worker/replica:0/task:1", "They crashed"],
            4,
            ["unrelated", f"ddpm-jax: process 1 of the run died or does not answer; {ONWARDS}"],
        ),
        ([SERVICE, OTHER], -signal.SIGABRT, [OTHER, SERVICE]),
    ],
)
def test_an_abort_is_told_in_one_sentence_if_it_is_of_the_service(words, code, said):
    program = "import os\nfrom ddpm_jax.parallel import watchdog\n"
    program += "watchdog.install()\nwatchdog.all_joined.set()\n"
    program += f"for line in {words}:\n    os.write(2, (line + '\\n').encode())\nos.abort()"
    process = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert process.returncode == code
    assert process.stderr.splitlines() == said


@pytest.mark.thorough
def test_pmap_and_a_missing_process_are_refused(tmp_path):
    arguments = [*ARGUMENTS, "--workdir", str(tmp_path / "run"), "--mesh", "pmap"]
    for end in ended(start(arguments, hosts=2)):
        assert end.code == 2
        assert end.errors == (
            "ddpm-jax: mesh is pmap, which runs in one process, and there are 2; take jit or"
            " shard-map\n"
        )
    own = [["--hosts.start-seconds", "3"]] * 2
    processes = start(arguments, hosts=2, own=own)
    processes[1].kill()
    began = time.monotonic()
    first, _ = ended(processes, timeout=120)
    assert time.monotonic() - began < 3 + HEARTBEAT + 5
    assert first.code == 4
    never = "not all processes of the run started in time"
    assert first.errors == f"ddpm-jax: {never}; {ONWARDS}\n"


HALF, STOP, END = 3, 6, 8
ONE_PROCESS = [
    *(("jit", 8, 1), ("jit", 1, 1), ("jit", 4, 2), ("jit", 1, 8)),
    *(("shard_map", 4, 2), ("shard_map", 8, 1), ("pmap", 8, 1)),
]
SEVERAL = [("jit", 4, 2), ("shard_map", 4, 2)]


def legs(origin, forms, prefix, start, stop):
    return [
        Leg(f"{prefix} {form} {data}x{fsdp}", origin, form, data, fsdp, start, stop)
        for form, data, fsdp in forms
    ]


def several(count, folder, legs):
    """What the legs leave that so many processes run, 8 devices together."""
    told = [str(count), str(free_port()), str(folder), json.dumps(legs)]
    processes = [
        starter.start(
            "elastic:main",
            str(index),
            *told,
            jax_num_cpu_devices=8 // count,
            jax_compilation_cache_dir=str(CACHE),
            jax_persistent_cache_min_compile_time_secs=0,
        )
        for index in range(count)
    ]
    all_ended = ended(processes)
    assert [end.code for end in all_ended] == [0] * count, all_ended
    told = [elastic.Told(*json.loads(line), []) for line in all_ended[0].out.splitlines()]
    return {leg.name: leg for leg in told}


@pytest.mark.thorough
def test_a_run_goes_from_mesh_to_mesh(tmp_path):
    whole = elastic.go(Leg("whole", None, "jit", 8, 1, 0, END), tmp_path)
    stop = elastic.go(Leg("stop", None, "jit", 8, 1, 0, STOP), tmp_path)
    elastic.go(Leg("half", None, "jit", 8, 1, 0, HALF), tmp_path)
    ones = [elastic.go(leg, tmp_path) for leg in legs("half", ONE_PROCESS, 1, HALF, STOP)]
    found = {
        count: several(count, tmp_path, legs("half", SEVERAL, count, HALF, STOP))
        for count in (2, 4)
    }
    every = ones + [told for several_told in found.values() for told in several_told.values()]
    for told in every:
        np.testing.assert_allclose(
            told.losses, whole.losses[HALF:STOP], rtol=1e-6, err_msg=told.name
        )
    # and back, and its arrays are compared
    for told in every:
        data = 8 if told.name.endswith("2") else 4
        leg = Leg(f"{told.name} and back", told.name, "jit", data, 8 // data, STOP, END)
        back = elastic.go(leg, tmp_path)
        np.testing.assert_allclose(back.losses, whole.losses[STOP:], rtol=1e-6, err_msg=leg.name)
        for one, other in zip(back.state, whole.state, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6, err_msg=leg.name)
    print({told.name: told.digest[:8] for told in [stop, *every]})
    # Bit for bit where the order of the sums is the same: on the mesh that it had; and on several
    # processes however many devices each has, but gloo sums in another order than one process.
    assert ones[0].digest == stop.digest
    assert [told.digest for told in found[2].values()] == [
        told.digest for told in found[4].values()
    ]
