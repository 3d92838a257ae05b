"""Whatever happens to a file of a run, its reader gives the same result or says one sentence.

Every file is hurt in every way below, one at a time, and read in this process; the random numbers
are the same each time. `pytest -rP tests/experiment/test_fuzz_run.py` prints how many cases there
were.
"""

import collections
import dataclasses
import json
import os
import random
import shutil

import jax
import pytest
import tiny
from marks import thorough_but
from snapshots import WIDTHS, checkpoint, snapshot

from ddpm_jax.config import PostHocEMA
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import RunDirectory, build, post_hoc, read_data_record
from ddpm_jax.experiment.cache import cached_json
from ddpm_jax.experiment.data_record import record_of, write_data_record
from ddpm_jax.training import CheckpointError, Checkpoints, manifest, newest_sound

pytestmark = pytest.mark.usefixtures("mixers")
FOLLOWS_FROM, EVALUATED = {"step": 20}, {"bits_per_dim": [3.5, 4.0], "num": 2}
METRICS = [{"step": step, "loss": 1.0 / step} for step in range(1, 21)]
RESULTS = {"dataset": "digits", "step": 20, "images": 360, "levels": 17, "num_steps": 8}
RESULTS |= {"num_times": 8, "histogram_images": 1437, "standard_error": 0.01}
RESULTS |= dict.fromkeys(("uniform", "histogram", "bits_per_dim", "prior", "kl", "decoder"), 3.75)


@pytest.fixture(scope="module")
def experiment():
    config = tiny.get_config()
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=20),
        averages=PostHocEMA(decays=(0.9,), widths=WIDTHS, every=10),
    )
    return build(config, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    """A finished run, written by what writes runs; nothing is trained."""
    run = RunDirectory(tmp_path_factory.mktemp("fuzz") / "run")
    run.make(experiment.config)
    for step in (10, 20):
        snapshot(experiment, run.snapshots, step)
        checkpoint(experiment, run, step)
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    run.write_results(RESULTS)
    write_data_record(run.images, record_of(experiment))
    run.update_config(dataclasses.replace(experiment.config, workdir="elsewhere"), 20)
    cached_json(run.evaluation, "likelihood", FOLLOWS_FROM, lambda: EVALUATED)
    return run


def read_snapshots(experiment, run):
    found = post_hoc._find_snapshots(experiment.config, run, verify=True, skip_missing=False)
    return found.widths, found.sentences


def read_cached(experiment, run):
    lines = []
    values = cached_json(
        run.evaluation, "likelihood", FOLLOWS_FROM, lambda: EVALUATED, lines.append
    )
    return values, lines


def read_record(experiment, run):
    record = read_data_record(run.images)
    if record is None:
        return None, ["the data set is read instead"]
    return vars(record), []


def read_results(experiment, run):
    results = run.read_results()
    return results, [] if results else ["not finished: evaluated again"]


# What of a run is read by whom: each gives a result, and the sentences that it says beside it.
CHECKSUMMED = {
    "checkpoints/20": lambda experiment, run: newest_sound(run.checkpoints),
    "snapshots/20": read_snapshots,
    "evaluation": read_cached,
    "images.json": read_record,
    "results.json": read_results,
}
"""Files with a digest: another result without a sentence is a fault."""

PLAIN = {
    "config.json": lambda experiment, run: (run.read_config(), []),
    "metrics.jsonl": lambda experiment, run: (run.read_metrics(), []),
    "config_history.jsonl": lambda experiment, run: (run.past_values("workdir"), []),
}
"""Files without one: other values of the right types may be what somebody has written."""

JSON = {
    **{name: name.encode() for name in ("[]", "{}", "null", "true", "3", '"x"', "1e999", "NaN")},
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "digits": b"1" * 5_000,
    "not UTF-8": b'{"a": "\xff"}',
    "spaces": b" \n",
}
OTHER_TYPES = [None, True, -1, 2.5, float("nan"), "x", "", [], {}, [1], {"a": 1}, "\ud800", 10**30]


def with_one_value_of_another_type(values, rng):
    """A copy, and whether there was one to change."""
    values = json.loads(json.dumps(values))
    place = values
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = rng.choice(keys)
        inside = place[key]
        if not isinstance(inside, dict | list) or not inside or rng.random() < 0.3:
            place[key] = rng.choice(OTHER_TYPES)
            return values
        place = inside
    return rng.choice(OTHER_TYPES)


def contents_to_try(path, whole, others, rng):
    """Names and contents of damaged files; few where a digest makes all of them alike."""
    few = path.parent.name != "run" and path.suffix != ".json"
    for number in range(1 if few else 8):
        altered = bytearray(whole)
        altered[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        yield f"bit {number}", bytes(altered)
    for number in range(1 if few else 4):
        yield f"cut {number}", whole[: rng.randrange(len(whole))]
    yield "empty", b""
    yield "longer", whole + whole[:7]
    yield "another file", rng.choice(others)
    for name, contents in JSON.items():
        if not few or name == "{}":
            yield name, contents
    if not few:
        for number in range(12):
            lines = whole.splitlines() if whole.count(b"\n{") > 1 else [whole]
            which = rng.randrange(len(lines))
            altered = with_one_value_of_another_type(json.loads(lines[which]), rng)
            lines[which] = json.dumps(altered).encode()
            yield f"type {number}", b"\n".join(lines) + b"\n"


def damages(path, others, rng):
    """Hurts the file in one way after the other, and mends it after the last."""
    whole = path.read_bytes()
    try:
        for name, contents in contents_to_try(path, whole, others, rng):
            path.write_bytes(contents)
            yield name
        for name, put in {
            "removed": lambda: None,
            "a folder": path.mkdir,
            "a pipe": lambda: os.mkfifo(path),
            "a link to nothing": lambda: path.symlink_to("nowhere"),
        }.items():
            clear(path)
            put()
            yield name
    finally:
        clear(path)
        path.write_bytes(whole)


def clear(path):
    """Removes what is there: a reader may have put a file in its place."""
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)


def files_of(run, name):
    place = run.path / name
    return [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())


def fuzz(experiment, run, name, read, *, checksummed):
    rng = random.Random(name)
    sound, said = read(experiment, run)
    assert not said
    cases = collections.Counter()
    everything = [path.read_bytes() for path in files_of(run, "")]
    for path in files_of(run, name):
        for damage in damages(path, everything, rng):
            where = f"{path.relative_to(run.path)}: {damage}"
            try:
                found, said = read(experiment, run)
            except UserError as error:
                sentence = str(error)
                cases["refused"] += 1
            except Exception as error:
                raise AssertionError(f"{where} is a {type(error).__name__}: {error}") from error
            else:
                sentence = " ".join(map(str, said.values() if isinstance(said, dict) else said))
                kind = "said" if sentence else "harmless" if found == sound else "other values"
                assert not checksummed or kind != "other values", where
                cases[kind] += 1
            assert "\n" not in sentence, where
            sentence.encode()  # can be printed
    assert read(experiment, run)[0] == sound
    print(f"{name}: {cases.total()} cases, {dict(cases)}")
    return cases


QUICK = ("images.json", "config.json")


@pytest.mark.parametrize("name", thorough_but(QUICK, CHECKSUMMED))
def test_files_with_a_digest(experiment, run, name):
    cases = fuzz(experiment, run, name, CHECKSUMMED[name], checksummed=True)
    assert cases.total() > 30
    # White space of a manifest; and of an evaluation, what is moved aside or was not there.
    assert cases["harmless"] <= max(3, cases.total() / 50)


@pytest.mark.parametrize("name", thorough_but(QUICK, PLAIN))
def test_files_without_one(experiment, run, name):
    assert fuzz(experiment, run, name, PLAIN[name], checksummed=False).total() > 30


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["data/metadata", "state/_METADATA", "_CHECKPOINT_METADATA"])
def test_odd_files_of_orbax_under_a_right_manifest(experiment, run, tmp_path, name, capfd):
    """As an error between the look at the files and their reading would have it."""
    state = jax.tree.map(lambda leaf: jax.numpy.zeros((), int), experiment.abstract_state)
    directory = tmp_path / "c"
    shutil.copytree(run.checkpoints / "20", directory / "20")
    folder, rng, cases = directory / "20", random.Random(name), collections.Counter()
    whole, values = (folder / name).read_bytes(), json.loads((folder / name).read_bytes())
    stored = manifest.read(folder, 20)
    odd = [None, b"", *(JSON[kind] for kind in ("[]", "{}", "null", '"x"', "deep"))]
    for _ in range(3):
        odd.append(json.dumps(with_one_value_of_another_type(values, rng)).encode())
    for contents in odd:
        (folder / name).unlink(missing_ok=True)
        if contents is not None:
            (folder / name).write_bytes(contents)
        (folder / manifest.NAME).unlink()
        manifest.write(folder, step=20, arrays=stored.arrays, notes=stored.notes)
        try:
            with Checkpoints(directory, read_only=True) as checkpoints:
                restored = checkpoints.restore(state)
        except CheckpointError:
            cases["refused"] += 1
        else:
            assert jax.tree.all(jax.tree.map(lambda a, b: bool(a == b), restored.state, state))
            assert isinstance(restored.data_state, dict)
            cases["read"] += 1
    (folder / name).write_bytes(whole)
    captured = capfd.readouterr()
    assert captured == ("", "")
    print(f"{name}: {cases.total()} cases, {dict(cases)}")
