"""Saves in the background: what they report, what they leave behind, and what they keep quiet."""

import contextlib
import logging
import os
import shutil
import sys
import threading
import types
from pathlib import Path

import pytest
from states import make_state

from ddpm_jax.training import Checkpoints, SaveError, manifest, saver


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Two checkpoints, at steps 2 and 5; tests hurt copies of them."""
    directory = tmp_path_factory.mktemp("pristine") / "c"
    with Checkpoints(directory) as checkpoints:
        for step in (2, 5):
            checkpoints.save(step, make_state(seed=step), {"at": step}, held_out_loss=1.0)
    return directory


@pytest.fixture
def saved(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "c"))


def test_a_save_is_reported_when_its_manifest_is_there(tmp_path, monkeypatch):
    said, go_on, write = [], threading.Event(), manifest.write

    def slow(folder, **kwargs):
        assert go_on.wait(60)
        if kwargs["step"] == 2:
            raise OSError(28, os.strerror(28))
        return write(folder, **kwargs)

    monkeypatch.setattr(manifest, "write", slow)
    with Checkpoints(tmp_path / "c") as checkpoints:
        for step in (1, 2):

            def report(what, step=step):
                said.append((step, what, checkpoints.steps()))

            go_on.clear()
            checkpoints.save(step, make_state(), {}, held_out_loss=1.0, report=report)
            assert said[-1][:2] == (step, "under way")
            go_on.set()
            with contextlib.suppress(SaveError):
                checkpoints.wait()
    assert said == [
        (1, "under way", []),
        (1, "saved", [1]),
        (2, "under way", [1]),
        (2, "not saved", [1]),
    ]


def test_a_report_that_nobody_reads_ends_no_save(tmp_path):
    """The screen is a pipe, and its reader has left: the loop will meet it, the thread must not."""

    def report(what):
        if what == "saved":
            raise BrokenPipeError

    with Checkpoints(tmp_path / "c", keep_latest=1, keep_best=0) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(), {}, held_out_loss=1.0, report=report)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["2"]


class TestWhatInterruptedSavesLeave:
    def interrupted(self, directory, step):
        shutil.copytree(directory / "2", directory / str(step))
        (directory / str(step) / "manifest.json").unlink()

    def aside(self, directory):
        return sorted(path.name for path in directory.iterdir() if not path.name.isdecimal())

    def test_the_newest_alone_is_kept(self, saved):
        for step in (6, 7, 8):
            self.interrupted(saved, step)
            with Checkpoints(saved) as checkpoints:
                assert checkpoints.restore(make_state()).step == 5
            (name,) = self.aside(saved)
            assert name.startswith(f"{step}.unsound-")

    def test_many_of_an_earlier_version(self, saved):
        for step, time in ((6, 12), (9, 11), (7, 10)):
            self.interrupted(saved, step)
            (saved / str(step)).rename(saved / f"{step}.unsound-{time:018}0")
        (saved / "7.orbax-checkpoint-tmp").mkdir()
        (saved / "8.orbax-checkpoint-tmp-1700000000").mkdir()
        shutil.copytree(saved / "2", saved / "3.deleted")
        Checkpoints(saved)
        assert self.aside(saved) == [f"6.unsound-{12:018}0"]

    def test_what_was_whole_is_left_for_a_person_to_mend(self, saved):
        for step in (6, 7):
            shutil.copytree(saved / "2", saved / str(step))  # with the manifest of step 2
        with Checkpoints(saved) as checkpoints:
            assert checkpoints.restore(make_state()).step == 5
        Checkpoints(saved)
        assert [name.partition("-")[0] for name in self.aside(saved)] == ["6.unsound", "7.unsound"]

    def test_what_is_called_alike_is_somebody_else_s(self, saved, tmp_path):
        mine = ["my.deleted", "5.unsound-mine", "6.unsound-1", "7.unsound-2", "old.unsound-1234"]
        mine += ["5.deleted.too", "best.orbax-checkpoint-tmp", "x5.orbax-checkpoint-tmp-1"]
        mine += ["5.orbax-checkpoint-tmp-old"]
        for name in mine:
            (saved / name).mkdir()
            (saved / name / "file").write_text("mine")
        (saved / "9.deleted").symlink_to(saved / "my.deleted")
        (saved / "8.deleted").write_text("a file")
        before = self.aside(saved)
        with Checkpoints(saved) as checkpoints:
            checkpoints.restore(make_state())
            checkpoints.save(6, make_state(), {}, held_out_loss=1.0)
        assert self.aside(saved) == before
        assert all((saved / name / "file").exists() for name in mine)

    def test_none_is_kept_on_a_disk_that_refuses(self, saved, monkeypatch):
        def no_space(folder, **kwargs):
            raise OSError(28, os.strerror(28))

        self.interrupted(saved, 6)
        with Checkpoints(saved) as checkpoints:
            checkpoints.restore(make_state())
            assert len(self.aside(saved)) == 1
            monkeypatch.setattr(manifest, "write", no_space)
            checkpoints.save(6, make_state(), {}, held_out_loss=1.0)
            with pytest.raises(SaveError):
                checkpoints.wait()
        assert self.aside(saved) == []


class TestOrbaxIsHushed:
    def unraisable(self, error):
        return types.SimpleNamespace(object=None, exc_value=error, exc_type=type(error))

    def test_once_however_often(self, monkeypatch):
        heard = []
        monkeypatch.setattr(sys, "unraisablehook", heard.append)
        loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
        saver.hush_orbax()
        once = sys.unraisablehook, [list(logger.filters) for logger in loggers]
        for _ in range(1000):
            saver.hush_orbax()
        assert (sys.unraisablehook, [list(logger.filters) for logger in loggers]) == once
        assert [filters.count(saver._is_news) for filters in once[1]] == [1, 1]
        other = self.unraisable(ValueError("somebody else's"))
        sys.unraisablehook(other)
        sys.unraisablehook(self.unraisable(RuntimeError("Event loop is closed")))
        assert heard == [other]

    def test_a_read_that_orbax_abandons(self, monkeypatch):
        """When another has failed: it is a coroutine of Orbax's code, whose error nobody awaits."""
        heard, awaited = [], "async def read(): pass"
        monkeypatch.setattr(sys, "unraisablehook", heard.append)
        saver.hush_orbax()
        for place in ("/packages/orbax/checkpoint/read.py", "/home/me/read.py"):
            names = {}
            exec(compile(awaited, place, "exec"), names)
            coroutine = names["read"]()
            ignored = self.unraisable(ValueError("zstd"))
            ignored.object = coroutine
            sys.unraisablehook(ignored)
            coroutine.close()
        assert [ignored.object.cr_code.co_filename for ignored in heard] == ["/home/me/read.py"]

    def test_over_hooks_that_others_set_meanwhile(self, monkeypatch):
        heard = []
        monkeypatch.setattr(sys, "unraisablehook", heard.append)
        saver.hush_orbax()
        before = sys.unraisablehook

        def theirs(ignored):
            heard.append("theirs")
            before(ignored)

        other = self.unraisable(ValueError("somebody else's"))
        for _ in range(1000):
            sys.unraisablehook = theirs
            saver.hush_orbax()
        sys.unraisablehook(other)
        assert heard == ["theirs", other]

    def test_also_where_checkpoints_are_read(self, saved, monkeypatch):
        heard = []
        monkeypatch.setattr(sys, "unraisablehook", heard.append)
        with Checkpoints(saved, read_only=True) as checkpoints:
            checkpoints.restore(make_state())
        sys.unraisablehook(self.unraisable(RuntimeError("Event loop is closed")))
        assert heard == []
