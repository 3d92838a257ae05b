"""Images drawn by several processes: those of one process, and none is lost when one dies."""

import signal

import pytest
from paths import MIXED
from runs import ended, start, wait_for_file

HEARTBEAT = 5
NUM = 1200


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    (end,) = ended(start([MIXED, "--train.steps", "2", "--workdir", str(folder)]))
    assert end.code == 0, end
    return folder


def sample(run, out, *arguments, count, own=None):
    """The processes of a draw, each with one device."""
    options = ["--num", str(NUM), "--batch-size", str(100 * count), "--sampler.steps", "2"]
    options += ["--out", str(out), *arguments]
    if count > 1:
        options += ["--hosts.heartbeat-seconds", str(HEARTBEAT)]
    return start([str(run), *options], command="sample", hosts=count, devices=1, own=own)


def finish(processes):
    all_ended = ended(processes, timeout=200)
    assert [end.code for end in all_ended] == [0] * len(processes), all_ended
    assert [end.out for end in all_ended[1:]] == [""] * (len(processes) - 1)
    return all_ended[0].out


def contents(folder):
    """Every file, as bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """What one process draws."""
    out = tmp_path_factory.mktemp("whole") / "out"
    finish(sample(run, out, count=1))
    files = contents(out)
    assert len(files) == NUM + 1
    return files


def test_two_processes_draw_the_images_of_one(run, tmp_path, whole):
    said = finish(sample(run, tmp_path / "out", count=2))
    assert f"{NUM} images of step 2 in" in said
    assert contents(tmp_path / "out") == whole


@pytest.mark.thorough
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_three_go_on(run, tmp_path, whole, victim):
    out = tmp_path / "out"
    processes = sample(run, out, count=2)
    wait_for_file(processes, out, "*/*.png")
    processes[victim].send_signal(signal.SIGKILL)
    other = ended(processes)[1 - victim]
    assert other.code == 4, other
    assert other.errors.endswith("the same command on all hosts continues from what is saved\n")
    assert "Traceback" not in other.errors
    finish(sample(run, out, count=3))
    assert contents(out) == whole


@pytest.mark.thorough
def test_three_processes_write_the_archive_of_one(run, tmp_path):
    for count in (1, 3):
        finish(sample(run, tmp_path / f"{count}.npz", count=count))
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "3.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.npz", "3.npz"]


def test_a_grid_and_other_options_are_refused_in_a_sentence(run, tmp_path):
    both = ended(sample(run, tmp_path / "grid.png", count=2))
    assert [end.code for end in both] == [2, 2]
    assert "a grid, which one process draws; leave out --hosts" in both[0].errors
    both = ended(sample(run, tmp_path / "out", count=2, own=[[], ["--seed", "1"]]))
    assert [end.code for end in both] == [2, 2]
    for end in both:
        assert end.errors.endswith(
            "\nddpm-jax: process 1 has other arguments (--seed is 1 there and 0 in process 0)\n"
        )
    assert not (tmp_path / "out").exists()
