"""Manifests: whatever happens to a saved folder, a sentence says what and where."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import pytest
from manifests import rewrite

import ddpm_jax
from ddpm_jax.training import manifest
from ddpm_jax.training.manifest import CheckpointError, DamageError, UnfinishedError

FILES = {"state/d/big": bytes(range(256)) * 40, "state/_METADATA": b"{}", "data/metadata": b"x"}


@pytest.fixture
def folder(tmp_path):
    """A folder of step 7 with three files and a manifest."""
    folder = tmp_path / "7"
    for name, contents in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents)
    manifest.write(
        folder,
        step=7,
        arrays={"w": "float32[3, 5]"},
        notes={"held_out_loss": 0.1},
        config={"seed": 0, "betas": (1, 2)},
    )
    return folder


def test_what_is_in_it(folder):
    found = manifest.verify(folder, 7)
    assert found == manifest.read(folder, 7)
    assert found.step == 7
    assert found.arrays == {"w": "float32[3, 5]"}
    assert found.notes == {"held_out_loss": 0.1}
    assert found.config == {"seed": 0, "betas": [1, 2]}
    assert {name: tuple(record) for name, record in found.files.items()} == {
        name: (len(contents), hashlib.sha256(contents).hexdigest())
        for name, contents in FILES.items()
    }
    assert found.versions["ddpm_jax"] == ddpm_jax.__version__
    assert found.versions["jax"] == jax.__version__
    assert found.versions["jaxlib"] == jaxlib.__version__
    assert found.versions["python"] == platform.python_version()
    assert {"flax", "optax", "orbax-checkpoint"} <= set(found.versions)


def test_the_system_tool_agrees(folder):
    """`sha256sum` is another implementation, where there is one."""
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("there is no sha256sum here")
    run = subprocess.run([tool, *FILES], cwd=folder, capture_output=True, text=True, check=True)
    files = manifest.read(folder, 7).files
    assert [line.split()[0] for line in run.stdout.splitlines()] == [
        files[name].sha256 for name in FILES
    ]


@pytest.mark.parametrize("name", [*FILES, manifest.NAME])
def test_any_flipped_bit_is_found(folder, name):
    path = folder / name
    whole = path.read_bytes()
    stride = max(1, len(whole) // 40)
    for at in range(0, len(whole), stride):
        altered = bytearray(whole)
        altered[at] ^= 1 << (at % 8)
        path.write_bytes(altered)
        if name == manifest.NAME:
            try:
                same = json.loads(altered) == json.loads(whole)  # space for space
            except ValueError:
                same = False
            if same:
                continue
        with pytest.raises(DamageError, match=f"7: {name} (has been altered|is not JSON|is damag)"):
            manifest.verify(folder, 7)
    path.write_bytes(whole)
    manifest.verify(folder, 7)


@pytest.mark.parametrize("cut", [0, 1, 5000])
def test_a_truncated_file(folder, cut):
    with (folder / "state/d/big").open("r+b") as file:
        file.truncate(cut)
    for contents in (True, False):
        with pytest.raises(DamageError, match=f"state/d/big has {cut} bytes in place of 10240$"):
            manifest.verify(folder, 7, contents=contents)


def test_all_missing_files_are_counted(folder):
    shutil.rmtree(folder / "state")
    with pytest.raises(DamageError, match=r"state/d/big is missing, state/_METADATA is missing$"):
        manifest.verify(folder, 7)
    many = {f"f{number}": b"" for number in range(10)}
    for name in many:
        (folder / name).touch()
    manifest.write(folder, step=7, arrays={})
    for name in many:
        (folder / name).unlink()
    with pytest.raises(DamageError, match=r"f0 is missing, f1 is missing, f2 is missing and 7 mor"):
        manifest.verify(folder, 7)


def test_without_contents_only_sizes_count(folder):
    (folder / "data/metadata").write_bytes(b"y")
    manifest.verify(folder, 7, contents=False)
    with pytest.raises(DamageError, match=r"data/metadata has been altered$"):
        manifest.verify(folder, 7)


def test_files_that_it_does_not_know_are_no_damage(folder):
    (folder / "state" / "notes.txt").write_text("mine")
    manifest.verify(folder, 7)


def test_of_another_step(folder):
    moved = folder.rename(folder.with_name("9"))
    with pytest.raises(DamageError, match=r"9: manifest.json is of step 7$"):
        manifest.verify(moved, 9)


def test_with_a_wrong_hash(folder):
    rewrite(folder, lambda body: body["files"]["data/metadata"].update(sha256="0" * 64))
    with pytest.raises(DamageError, match=r"data/metadata has been altered$"):
        manifest.verify(folder, 7)


@pytest.mark.parametrize("text", ["", "{", "\xff", "[]", "{}", '{"sha256": 3}', "null"])
def test_that_is_something_else(folder, text):
    (folder / manifest.NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(DamageError, match=r"7: manifest.json is (not JSON|damaged)"):
        manifest.verify(folder, 7)


def test_of_a_later_version(folder):
    rewrite(folder, lambda body: body.update(format=2))
    with pytest.raises(DamageError, match=r"manifest.json is of another version of ddpm_jax$"):
        manifest.verify(folder, 7)


def test_fields_of_a_later_version_are_left_alone(folder):
    before = manifest.verify(folder, 7)
    rewrite(folder, lambda body: body.update(host="a", notes_of_hosts=[1]))
    rewrite(folder, lambda body: body["files"]["data/metadata"].update(crc32c="0"))
    assert manifest.verify(folder, 7) == before


def put(value, *fields):
    """Alters one value of a manifest; None is deleted."""

    def change(body):
        for field in fields[:-1]:
            body = body[field]
        body[fields[-1]] = value
        if value is None:
            del body[fields[-1]]

    return change


RECORD = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put(None, "step"), "step is None; it has to be an integer, 0 or more"),
        (put("7", "step"), "step is '7'; it has to be an integer, 0 or more"),
        (put(True, "step"), "step is True"),
        (put(7.0, "step"), "step is 7.0"),
        (put(None, "format"), "of another version"),
        (put(True, "format"), "of another version"),
        (put(None, "arrays"), "arrays is None; it has to be an object"),
        (put(["w"], "arrays"), "arrays is ['w']"),
        (put(3, "arrays", "w"), "arrays['w'] is 3; it has to be a string"),
        (put("loss", "notes"), "notes is 'loss'"),
        (put([], "config"), "config is []"),
        (put(None, "versions"), "versions is None"),
        (put(1, "versions", "jax"), "versions['jax'] is 1"),
        (put([{}], "files"), "files is [{}]"),
        (put([1], "files", "data/metadata"), "files['data/metadata'] is [1]"),
        (put(-1, "files", "data/metadata", "size"), "size is -1"),
        (put("1", "files", "data/metadata", "size"), "size is '1'"),
        (put(5, "files", "data/metadata", "sha256"), "sha256 is 5; it has to be a string"),
        (put(None, "files", "data/metadata", "sha256"), "sha256 is None"),
        (put(RECORD, "files", "../f"), "'../f'; it has to be a path inside the folder"),
        (put(RECORD, "files", "/etc/passwd"), "'/etc/passwd'; it has to be a path inside"),
        (put(RECORD, "files", "a\0b"), r"'a\x00b'; it has to be a path inside"),
        (put(RECORD, "files", "\ud800"), r"'\ud800'; it has to be a path inside"),
    ],
)
def test_odd_fields_under_a_right_digest_are_a_sentence(folder, change, sentence):
    rewrite(folder, change)
    with pytest.raises(DamageError) as caught:
        manifest.verify(folder, 7)
    assert f"7: {manifest.NAME}" in str(caught.value)
    assert sentence in str(caught.value)


def as_link(path):
    path.symlink_to(path.with_name("nowhere"))


def sparse(path):
    path.touch()
    os.truncate(path, 2**40)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (Path.mkdir, "is not a file"),
        (os.mkfifo, "is not a file"),  # whose reader would wait for ever
        (as_link, "is a broken link"),
        (sparse, "has 1099511627776 bytes"),
        (lambda path: path.write_text("[" * 10**5 + "]" * 10**5), "is not JSON"),
        (lambda path: path.write_text('{"a":' * 3000 + "1" + "}" * 3000), "is (not JSON|damaged)"),
        (lambda path: path.write_text("1" * 5000), "is not JSON"),
    ],
)
def test_something_else_in_the_place_of_it(folder, make, sentence):
    (folder / manifest.NAME).unlink()
    make(folder / manifest.NAME)
    with pytest.raises(DamageError, match=rf"7: manifest.json {sentence}") as caught:
        manifest.verify(folder, 7)
    assert not isinstance(caught.value, UnfinishedError)


def test_missing_is_unfinished(folder, tmp_path):
    (folder / manifest.NAME).unlink()
    with pytest.raises(UnfinishedError, match=r"has no manifest.json: its save was interrupted"):
        manifest.verify(folder, 7)
    (tmp_path / "8").mkdir()
    with pytest.raises(UnfinishedError, match=r"8: it is empty$"):
        manifest.verify(tmp_path / "8", 8)


def test_a_cut_off_manifest_is_none(folder, monkeypatch):
    """The process ends when all is written and nothing renamed."""
    (folder / manifest.NAME).unlink()

    def end(self, target):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "replace", end)
        with pytest.raises(SystemExit):
            manifest.write(folder, step=7, arrays={})
    with pytest.raises(UnfinishedError):
        manifest.verify(folder, 7)
    manifest.write(folder, step=7, arrays={})
    assert set(manifest.verify(folder, 7).files) == set(FILES)


def test_everything_is_on_the_disk_before_the_manifest(folder, monkeypatch):
    (folder / manifest.NAME).unlink()
    flushed, fsync, replace = [], os.fsync, type(folder).replace

    def note_fsync(descriptor):
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def note_replace(self, target):
        flushed.append("renamed")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(type(folder), "replace", note_replace)
    manifest.write(folder, step=7, arrays={})
    wanted = {str(folder / name) for name in (*FILES, "state/d", "state", "data", "")}
    wanted |= {str(folder), str(folder.parent), str(folder / "manifest.json.partial")}
    wanted.discard(f"{folder}/")
    at = flushed.index("renamed")
    assert set(flushed[:at]) == wanted
    assert flushed[at + 1 :] == [str(folder)]


def test_describe_names_arrays_and_keys():
    tree = {"w": jnp.zeros((3, 5)), "k": (jax.random.key(0), jnp.zeros((), jnp.bfloat16))}
    assert manifest.describe(tree) == {
        "w": "float32[3, 5]",
        "k/0": "key<fry>[]",
        "k/1": "bfloat16[]",
    }


def test_step_folders_are_numbers(tmp_path):
    for name in ("3", "12", "007", "²", "x", "4.unsound-1", "5.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "8").touch()
    assert manifest.step_folders(tmp_path) == {3: tmp_path / "3", 12: tmp_path / "12"}
    assert manifest.step_folders(tmp_path / "absent") == {}
    assert manifest.step_folders(tmp_path / "8") == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="files without permission stop root from nothing")
def test_no_permission_is_a_sentence(as_nobody):
    folder = as_nobody / "7"
    folder.mkdir()
    (folder / "f").write_bytes(b"abc")
    manifest.write(folder, step=7, arrays={})
    (folder / "f").chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(DamageError, match=r"7: f cannot be read \(Permission denied\)$"):
            manifest.verify(folder, 7)
        manifest.verify(folder, 7, contents=False)
        os.seteuid(0)
        (folder / manifest.NAME).chmod(0)
        os.seteuid(65534)
        with pytest.raises(DamageError, match=r"7: manifest.json cannot be read \(Permission den"):
            manifest.verify(folder, 7)
        os.seteuid(0)
        folder.parent.chmod(0)
        os.seteuid(65534)
        with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)$"):
            manifest.step_folders(folder.parent)
    finally:
        os.seteuid(0)


@pytest.fixture
def as_nobody():
    """A folder that another user can enter; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        inside = Path(name) / "c"
        inside.mkdir()
        yield inside
