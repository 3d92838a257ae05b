"""Files that are written whole or not at all, by whoever writes at the same time."""

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

from ddpm_jax.evaluation import save_png
from ddpm_jax.experiment import RunDirectory
from ddpm_jax.files import is_partial, whole_file, whole_files, whole_folder

PACKAGE = ROOT / "ddpm_jax"


def write(path, content):
    with whole_file(path) as file:
        file.write(content)


def names(folder):
    return sorted(item.name for item in folder.iterdir())


@pytest.fixture
def script(tmp_path):
    """Runs Python text in a process that has `whole_file` and starts within a tenth of a second."""

    def start(text):
        head = "import sys, types; sys.modules['ddpm_jax'] = p = types.ModuleType('ddpm_jax')\n"
        head += f"p.__path__ = [{str(PACKAGE)!r}]\n"
        head += "import pathlib; from ddpm_jax.files import whole_file\n"
        return subprocess.Popen([sys.executable, "-c", head + text], stdout=subprocess.PIPE)

    return start


def test_writers_of_one_file_do_not_meet(tmp_path, script):
    """Each writes a content of its own, in two parts; a reader sees one of them, and all of it."""
    path, errors, done = tmp_path / "a.json", [], threading.Event()
    write(path, b"x" * 20_000)
    text = f"""
for i in range(60):
    with whole_file(pathlib.Path({str(path)!r})) as file:
        for part in range(2):
            file.write(bytes([65 + i % 26]) * 10_000)
            file.flush()
"""

    def read():
        while not done.is_set():
            content = path.read_bytes()
            if len(content) != 20_000 or len(set(content)) != 1:
                errors.append(content[:10])

    def write_many(letter):
        try:
            for _ in range(60):
                write(path, letter * 20_000)
        except OSError as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    processes = [script(text) for _ in range(3)]
    writers = [threading.Thread(target=write_many, args=[letter]) for letter in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    codes = [process.communicate() and process.returncode for process in processes]
    done.set()
    reader.join()
    assert (codes, errors) == ([0, 0, 0], [])
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_writer_that_fails_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "a"
    write(path, b"old")

    def write_half():
        with whole_file(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path, script):
    path = tmp_path / "a"
    process = script(
        f"import time\nwith whole_file(pathlib.Path({str(path)!r})) as file:\n"
        "    print('open', flush=True); time.sleep(60)"
    )
    assert process.stdout.readline() == b"open\n"
    (partial,) = names(tmp_path)
    assert is_partial(partial, "a")
    write(path, b"one")
    assert names(tmp_path) == ["a", partial]  # its writer is alive
    process.send_signal(signal.SIGKILL)
    process.communicate()
    write(path, b"two")
    assert names(tmp_path) == ["a"]


def test_only_partial_files_of_this_target_are_removed(tmp_path):
    others = ["a.partial", "b.0123456789abcdef.partial", "a.0123456789abcdef", "a.0123.partial"]
    others += ["a.0123456789abcdeg.partial", "0123456789abcdef", "aa.0123456789abcdef.partial"]
    for name in (*others, "a.0123456789abcdef.partial"):
        (tmp_path / name).write_bytes(b"")
    write(tmp_path / "a", b"")
    assert names(tmp_path) == sorted(["a", *others])


@pytest.mark.parametrize("name", ["n" * 255, "ä" * 127, "x" * 251 + ".png", "a.b" * 40])
def test_a_name_may_be_as_long_as_the_disk_takes(tmp_path, name):
    with whole_file(tmp_path / name) as file:
        file.write(b"content")
        (partial,) = names(tmp_path)
        assert is_partial(partial, name)
        assert len(os.fsencode(partial)) <= 143
        assert not is_partial(partial, name[:-1] + "y")
    assert (tmp_path / name).read_bytes() == b"content"


def test_permissions_stay_and_new_ones_are_those_of_open(tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    other.write_bytes(b"")
    write(path, b"1")
    assert path.stat().st_mode == other.stat().st_mode
    for mode in (0o600, 0o640, 0o444, 0o777):
        path.chmod(mode)
        write(path, b"2")
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_link_stays_a_link(tmp_path):
    there = tmp_path / "disk" / "a"
    link = tmp_path / "link"
    link.symlink_to(there)
    with pytest.raises(FileNotFoundError):  # such as a disk that is not mounted
        write(link, b"1")
    there.parent.mkdir()
    for content in (b"1", b"2"):
        write(link, content)
        assert link.is_symlink()
        assert there.read_bytes() == content
        assert names(there.parent) == ["a"]


def test_devices_and_pipes_are_written_to_and_not_replaced(tmp_path):
    write(Path("/dev/null"), b"1")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write(pipe, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert names(tmp_path) == ["pipe"]


def test_a_folder_in_the_place_is_an_error_before_anything_is_written(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError, match=r"/a'"), whole_file(tmp_path / "a"):
        raise AssertionError
    assert names(tmp_path) == ["a"]


def test_folders_that_others_remove_are_made_again(tmp_path):
    path, done = tmp_path / "x" / "y" / "a", threading.Event()

    def remove():
        while not done.is_set():
            for folder in (path.parent, path.parent.parent):
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only where it is empty
                time.sleep(0.0001)

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for content in (b"1", b"2") * 50:
            write(path, content)
            path.unlink()
    finally:
        done.set()
        remover.join()


def test_a_folder_that_goes_while_a_file_is_written_is_an_error_of_the_disk(tmp_path):
    path = tmp_path / "x" / "a"

    def write_and_remove():
        with whole_file(path):
            shutil.rmtree(path.parent)

    with pytest.raises(FileNotFoundError):
        write_and_remove()


def test_no_module_writes_files_in_another_way():
    """Each alternative is a way to write to a path, not to the file that `whole_file` gives."""
    other_way = re.compile(
        r"\.write_(text|bytes)\(|open\([^()]*[\"'][wx]b?[\"']|savefig\((?!file)|savez\w*\((?!file)"
    )
    # Folders that nobody else knows yet, a pipe, and the function itself.
    exempt = {"training/manifest.py", "parallel/watchdog.py", "files.py"}
    for path in PACKAGE.rglob("*.py"):
        if str(path.relative_to(PACKAGE)) not in exempt:
            assert not other_way.search(path.read_text()), path


def test_pictures_and_runs_are_written_by_it(tmp_path):
    save_png(tmp_path / "a.png", np.zeros((2, 2, 1), np.uint8))
    RunDirectory(tmp_path).write_results({})
    assert names(tmp_path) == ["a.png", "results.json"]


class TestFolder:
    def test_is_there_when_it_is_whole(self, tmp_path):
        (tmp_path / "a").mkdir()
        with whole_folder(tmp_path / "a") as folder:
            (folder / "b").write_text("b")
            assert names(tmp_path / "a") == []
        assert names(tmp_path) == ["a"]
        assert names(tmp_path / "a") == ["b"]

    def test_leaves_nothing_after_an_error(self, tmp_path):
        def fill_and_fail():
            with whole_folder(tmp_path / "new" / "a") as folder:
                (folder / "b").write_text("b")
                raise OSError("full")

        with pytest.raises(OSError, match="full"):
            fill_and_fail()
        assert names(tmp_path / "new") == []

    def test_does_not_replace_what_holds_something(self, tmp_path):
        write(tmp_path / "a" / "b", b"mine")
        with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "a"):
            pass
        assert names(tmp_path) == ["a"]
        assert (tmp_path / "a" / "b").read_bytes() == b"mine"

    def test_removes_what_a_killed_process_left_and_nothing_of_one_that_lives(self, tmp_path):
        left = tmp_path / f"a.{'0' * 16}.partial"
        (left / "b").mkdir(parents=True)
        with whole_folder(tmp_path / "a") as first:
            assert not left.exists()
            with whole_folder(tmp_path / "a") as second:
                assert first.exists()
            (first / "b").touch()
            shutil.rmtree(tmp_path / "a")
        assert names(tmp_path / "a") == ["b"]
        assert not second.exists()


class TestFiles:
    def test_are_there_when_all_are_whole_and_replace_others(self, tmp_path):
        write(tmp_path / "a" / "b", b"old")
        with whole_files(tmp_path / "a") as folder:
            (folder / "b").write_text("new")
            (folder / "c").write_text("c")
            assert names(tmp_path / "a") == ["b"]
        assert names(tmp_path) == ["a"]
        assert names(tmp_path / "a") == ["b", "c"]
        assert (tmp_path / "a" / "b").read_text() == "new"

    def test_leave_nothing_after_an_error(self, tmp_path):
        def fill_and_fail():
            with whole_files(tmp_path / "new" / "a") as folder:
                (folder / "b").write_text("b")
                raise OSError("full")

        with pytest.raises(OSError, match="full"):
            fill_and_fail()
        assert names(tmp_path / "new") == []

    def test_remove_what_a_killed_process_left_and_nothing_of_one_that_lives(self, tmp_path):
        left = tmp_path / f"a.{'0' * 16}.partial"
        (left / "b").mkdir(parents=True)
        with whole_files(tmp_path / "a") as first:
            assert not left.exists()
            (first / "b").touch()
            with whole_files(tmp_path / "a") as second:
                (second / "c").touch()
        assert names(tmp_path) == ["a"]
        assert names(tmp_path / "a") == ["b", "c"]
