"""A whole run on a disk that fills up, or whose folder vanishes, and which gets well again."""

import dataclasses
import os
import shutil
import signal

import pytest
import tiny
from disks import UNAWAITED_WRITES, fill
from rich.console import Console

from ddpm_jax.config import PostHocEMA
from ddpm_jax.experiment import RunDirectory, build, post_hoc_params, train
from ddpm_jax.training import SaveError, manifest, newest_sound

pytestmark = [*UNAWAITED_WRITES, pytest.mark.thorough]  # quick: test_disk.py
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Watching(Console):
    """Does something when a line is printed that holds some text."""

    def __init__(self, *events):
        super().__init__(quiet=True)
        self.events, self.said = list(events), []

    def print(self, text="", **how):
        self.said.append(text)
        if self.events and isinstance(text, str) and self.events[0][0] in text:
            _, act = self.events.pop(0)
            act()


def config_in(workdir, averages=None, **changed):
    config = tiny.get_config()
    return dataclasses.replace(
        config,
        workdir=str(workdir),
        compilation_cache=None,
        averages=averages or config.averages,
        train=dataclasses.replace(config.train, **changed),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run on a good disk leaves."""
    place = tmp_path_factory.mktemp("whole")
    results = train(config_in(place / "run"), console=Console(quiet=True))
    return results, RunDirectory(place / "run").metrics.read_bytes()


def assert_as_if_nothing_had_happened(workdir, results, whole):
    assert (results, RunDirectory(workdir).metrics.read_bytes()) == whole
    assert newest_sound(RunDirectory(workdir).checkpoints) == (24, {})


def test_what_is_said_of_saves_and_of_a_snapshot_that_the_disk_refused(tmp_path, monkeypatch):
    run, write = RunDirectory(tmp_path / "run"), manifest.write

    def refuse(folder, **values):
        if folder == run.snapshots / "6":
            raise OSError(28, os.strerror(28))
        return write(folder, **values)

    class Looking(Console):
        def print(self, text="", **how):
            lines.append(text)
            if text.endswith(" saved"):
                _, step, kind, _ = text.replace(":", "").split()
                assert (run.path / f"{kind}s" / step / manifest.NAME).exists()

    lines = []
    monkeypatch.setattr(manifest, "write", refuse)
    config = config_in(run.path, PostHocEMA(decays=(0.9,), every=6), steps=12)
    train(config, console=Looking(quiet=True))
    for step in (4, 8, 12):
        (begun,) = (line for line in lines if line.startswith(f"step {step}: held-out loss"))
        assert begun.endswith(", checkpoint under way")
        assert lines.index(begun) < lines.index(f"step {step}: checkpoint saved")
    assert [line for line in lines if "snapshot saved" in line] == ["step 12: snapshot saved"]
    assert any("step 6 is not saved in" in line and "1 of 3" in line for line in lines)
    heard = []
    _, step = post_hoc_params(build(config), run, 0.07, report=heard.append)
    assert step == 12
    assert heard == [
        "the snapshots of steps 6 could not be saved during training; the average is without them"
    ]


def test_a_disk_that_is_full_for_a_while(disk, whole):
    console = Watching(
        ("step 8: held-out loss", lambda: fill(disk, leaving=0)),
        ("2 of 3 allowed failures", lambda: (disk / "other people's").unlink()),
    )
    results = train(config_in(disk / "run"), console=console)
    said = [line for line in console.said if isinstance(line, str)]
    assert any("is not saved in" in line and "No space left" in line for line in said)
    assert not console.events
    assert_as_if_nothing_had_happened(disk / "run", results, whole)


@pytest.fixture
def _handlers_as_before():
    """A run that was asked to stop leaves the signals ignored, for it is about to end."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers_as_before")
def test_a_run_that_is_asked_to_stop_does_not_say_that_a_refused_save_is_there(disk):
    """At a step at which it saves anyway, and of which the disk may refuse some."""

    def fill_and_stop():
        fill(disk, leaving=0)
        os.kill(os.getpid(), signal.SIGTERM)

    console = Watching(("step 12: drawing", fill_and_stop))
    with pytest.raises(SaveError, match="No space left on device"):
        train(config_in(disk / "run"), console=console)
    assert not console.events
    (disk / "other people's").unlink()
    assert newest_sound(disk / "run" / "checkpoints").step in (4, 8)


def test_a_disk_that_stays_full_ends_the_run_and_keeps_what_is_sound(disk, whole):
    console = Watching(("step 8: held-out loss", lambda: fill(disk, leaving=0)))
    with pytest.raises(SaveError, match="No space left on device"):
        train(config_in(disk / "run", missed_saves=1), console=console)
    (disk / "other people's").unlink()
    step, refused = newest_sound(disk / "run" / "checkpoints")
    assert (step, refused) in [(4, {}), (8, {})]
    results = train(config_in(disk / "run"), console=Console(quiet=True))
    assert_as_if_nothing_had_happened(disk / "run", results, whole)


def test_a_folder_that_vanishes_is_made_again(tmp_path, whole):
    run = tmp_path / "run"

    def remove():
        while run.exists():  # a save may be writing to it
            shutil.rmtree(run, ignore_errors=True)

    console = Watching(("step 8: held-out loss", remove))
    results = train(config_in(run), console=console)
    assert_as_if_nothing_had_happened(run, results, whole)
    assert RunDirectory(run).read_config() == config_in(run)
    assert RunDirectory(run).read_results() == results
    said = [line for line in console.said if isinstance(line, str)]
    assert any("step 8" in line and "1 of 3 allowed failures" in line for line in said)
