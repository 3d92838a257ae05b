"""A whole run on a disk that fills up, or whose folder vanishes, and which gets well again."""

import dataclasses
import json
import shutil

import pytest
import tiny
from disks import UNAWAITED_WRITES, fill
from rich.console import Console

from ddpm_jax.experiment import RunDirectory, train
from ddpm_jax.training import SaveError, newest_sound

pytestmark = UNAWAITED_WRITES


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


def config_in(workdir, **changed):
    config = tiny.get_config()
    return dataclasses.replace(
        config,
        workdir=str(workdir),
        compilation_cache=None,
        train=dataclasses.replace(config.train, **changed),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run on a good disk leaves."""
    place = tmp_path_factory.mktemp("whole")
    results = train(config_in(place / "run"), Console(quiet=True))
    return results, RunDirectory(place / "run").metrics.read_bytes()


def assert_as_if_nothing_had_happened(workdir, results, whole):
    assert (results, RunDirectory(workdir).metrics.read_bytes()) == whole
    assert newest_sound(RunDirectory(workdir).checkpoints) == (24, {})


def test_a_disk_that_is_full_for_a_while(disk, whole):
    console = Watching(
        ("step 8: held-out", lambda: fill(disk, leaving=0)),
        ("2 of 3 saves missed that may be", lambda: (disk / "other people's").unlink()),
    )
    results = train(config_in(disk / "run"), console)
    said = [line for line in console.said if isinstance(line, str)]
    assert any("is not saved in" in line and "No space left" in line for line in said)
    assert not console.events
    assert_as_if_nothing_had_happened(disk / "run", results, whole)


def test_a_disk_that_stays_full_ends_the_run_and_keeps_what_is_sound(disk, whole):
    console = Watching(("step 8: held-out", lambda: fill(disk, leaving=0)))
    with pytest.raises(SaveError, match="No space left on device"):
        train(config_in(disk / "run", missed_saves=1), console)
    (disk / "other people's").unlink()
    step, refused = newest_sound(disk / "run" / "checkpoints")
    assert (step, refused) in [(4, {}), (8, {})]
    results = train(config_in(disk / "run"), Console(quiet=True))
    assert_as_if_nothing_had_happened(disk / "run", results, whole)


def test_a_folder_that_vanishes_is_made_again(tmp_path, whole):
    run = tmp_path / "run"

    def remove():
        while run.exists():  # a save may be writing to it
            shutil.rmtree(run, ignore_errors=True)

    console = Watching(("step 8: held-out", remove))
    results = train(config_in(run), console)
    assert_as_if_nothing_had_happened(run, results, whole)
    assert RunDirectory(run).read_config() == config_in(run)
    assert json.loads((run / "results.json").read_text()) == results
    said = [line for line in console.said if isinstance(line, str)]
    assert any("step 8" in line and "1 of 3 saves missed" in line for line in said)
