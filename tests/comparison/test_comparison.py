"""What runs have in common: their files side by side, with a note for what is missing."""

import json
import struct

import numpy as np
import pytest
from compared import make_run, metric

from ddpm_jax import config as configs
from ddpm_jax.comparison import comparison as comparisons
from ddpm_jax.comparison.comparison import bits_rows, compare, field_rows, run_names
from ddpm_jax.comparison.metrics import metric_rows, number_text
from ddpm_jax.comparison.pictures import series_of, terms_of
from ddpm_jax.comparison.run_summary import logged_hours, old_results, read_summary
from ddpm_jax.config import Affects
from ddpm_jax.data import ImageSpec
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import Run, RunDirectory


def read(*paths):
    return [read_summary(letter, path, "ema") for letter, path in zip("ABC", paths, strict=False)]


def test_fields_that_differ_come_with_what_they_change(tmp_path):
    runs = read(
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", averages=configs.EMA(decays=(0.5,))),
        make_run(tmp_path / "c", sampler=configs.DDIM(), seed=1),
    )
    assert [tuple(row) for row in field_rows(runs)] == [
        ("seed", Affects.MODEL, ["0", "0", "1"]),
        ("averages.decays", Affects.TRAINING, ["[0.9]", "[0.5]", "[0.9]"]),
        ("sampler", Affects.REPORTS, ["Ancestral", "Ancestral", "DDIM"]),
    ]
    assert field_rows(runs[:1]) == []


def test_a_field_that_a_run_does_not_have_is_empty(tmp_path):
    schedule = configs.Cosine(num_steps=8, offset=0.25)
    other = configs.Cosine(num_steps=8)
    runs = read(
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", schedule=schedule),
        make_run(tmp_path / "c", schedule=other),
    )
    rows = {row.field: row.values for row in field_rows(runs)}
    assert rows["schedule"] == ["LinearLogSNR", "Cosine", "Cosine"]
    assert rows["schedule.offset"] == ["", "0.25", str(other.offset)]


def test_bits_of_single_images_are_compared_with_the_first_run(tmp_path):
    runs = read(
        make_run(tmp_path / "a", bits=[2.0, 3.0]),
        make_run(tmp_path / "b", bits=[1.5, 2.5]),
        make_run(tmp_path / "c", bits=[1.5, 2.5], about={"preparation": "flip"}),
    )
    first, second, third = bits_rows(runs)
    assert first.difference is None
    assert (first.value, first.origin) == (2.5, "step 24, 2 images")
    assert second.difference.difference.value == -0.5
    assert "preparation is not the same" in third.difference


def test_without_bits_of_single_images_the_mean_is_shown_and_the_reason_named(tmp_path):
    rows = bits_rows(read(make_run(tmp_path / "a"), make_run(tmp_path / "b", bits=[1.0, 2.0])))
    assert (rows[0].value, rows[0].standard_error) == (2.5, 0.25)
    assert rows[1].difference == "no bits/dim of single images of A"


def test_metrics_share_a_row_if_name_and_reference_are_the_same(tmp_path):
    name = "precision, digits classifier, 40 samples"
    old, new = metric(name, 0.5, spread=0.125), metric(name, 0.75, low=0.5, high=0.875, note="n")
    paths = [
        make_run(tmp_path / "a", metrics=[old]),
        make_run(tmp_path / "b", metrics=[new, metric("FID", 3.0)]),
        make_run(tmp_path / "c", metrics=[new], network="other weights"),
    ]
    rows = metric_rows(read(*paths))
    assert [(row.name, row.reference) for row in rows] == [
        (name, "the reference of A, B"),
        (name, "the reference of C"),
        ("FID", ""),
    ]
    texts = [["" if v is None else number_text(v) for v in row.values] for row in rows]
    assert texts == [
        ["0.5 ± 0.12", "0.75 [0.5, 0.875]", ""],
        ["", "", "0.75 [0.5, 0.875]"],
        ["", "3", ""],
    ]
    assert (rows[0].held_out, rows[0].halves) == (1.0, 0.5)


def test_damaged_files_are_notes_and_the_rest_is_compared(tmp_path):
    paths = [make_run(tmp_path / name, bits=[1.0, 2.0], metrics=[{"value": 1}]) for name in "ab"]
    broken = RunDirectory(paths[1])
    broken.metrics.write_text('{"step": 1}\nno JSON\n{"step": 2}\n')
    broken.results.write_text("{}")
    (bits,) = broken.evaluation.glob("*/bits_per_image_ema.npz")
    bits.write_bytes(b"")
    comparison = compare(paths, num=0)
    notes = "\n".join(comparison.notes)
    for part in (
        "A: it is not finished: step 0 of 24",
        "A: its metrics of step 24 are damaged",
        "B: its metrics of step 24 are damaged",
        "metrics.jsonl' is damaged: line 2",
        "results.json' has been altered",
        "bits_per_image_ema.npz' cannot be read",
    ):
        assert part in notes
    assert [row.letter for row in comparison.bits] == ["A", "B"]
    assert comparison.bits[1].value == 2.5


def test_a_damaged_config_leaves_the_rest(tmp_path):
    paths = [make_run(tmp_path / name, bits=[1.0, 2.0]) for name in "ab"]
    RunDirectory(paths[1]).config.write_text("{")
    comparison = compare(paths, num=1)
    assert any("is not JSON" in note for note in comparison.notes)
    assert comparison.bits[1].difference.difference.value == 0.0
    assert [row.images for row in comparison.samples] == [None, None]
    assert "has no checkpoint yet" in comparison.samples[0].text


def test_runs_of_another_shape_and_images_that_are_not_finite_are_left_out(tmp_path, monkeypatch):
    """A double stands for each run: it draws grey images, and NaN if its seed is 1."""

    def load_run(path, params, report):
        config = RunDirectory(path).read_config()
        shape = (4, 4, 1) if path.name == "small" else (8, 8, 1)
        value = np.nan if config.seed == 1 else 0.0
        double = {
            "__init__": lambda self: None,
            "config": config,
            "images": ImageSpec("digits", shape, 17),
            "step": 24,
            "process": configs.make_process(config.schedule, config.process, shape),
            "sample": lambda self, key, num, **how: np.full((num, *shape), value, np.float32),
        }
        return type("Double", (Run,), double)()

    monkeypatch.setattr(comparisons, "load_run", load_run)
    seeds = {"nan": 1, "first": 0, "small": 0, "last": 0}
    paths = [make_run(tmp_path / name, seed=seed) for name, seed in seeds.items()]
    broken, first, small, last = compare(paths, num=2).samples
    assert broken.images is small.images is None
    assert "not finite" in broken.text
    assert small.text == "its images are 4x4x1, and those of the runs above 8x8x1"
    assert first.images.shape == last.images.shape == (2, 8, 8, 1)
    assert set(last.images.ravel()) == {128}


def test_the_same_run_is_compared_once_and_the_number_of_runs_is_bounded(tmp_path):
    paths = [make_run(tmp_path / name) for name in "abcdefghi"]
    names, notes = run_names([paths[0], paths[1], tmp_path / "b" / ".." / "a"])
    assert list(names) == ["A", "B"]
    assert "is the same run as" in notes[0]
    for wrong, number in ((paths, 9), (paths[:1], 1), ([paths[0]] * 2, 1), ([], 0)):
        with pytest.raises(UserError, match=f"the number of runs is {number}"):
            run_names(wrong)
    with pytest.raises(UserError, match="is not a run directory"):
        run_names([paths[0], tmp_path / "absent"])


def test_results_of_an_older_step_are_named(tmp_path):
    (run,) = read(make_run(tmp_path / "a", bits=[1.0], step=16))
    assert old_results(run) == []
    run.step = 24
    assert [note[: note.index(",")] for note in old_results(run)] == [
        "its results are of step 16",
        "its bits/dim of single images are of step 16",
    ]


def test_fractions_near_training_images_are_metrics(tmp_path):
    path = make_run(tmp_path / "a")
    (results,) = RunDirectory(path).evaluation.glob("*/results.json")
    values = json.loads(results.read_text())
    near = {"distance": "pixels", "value": 0.25, "low": 0.125, "high": 0.5, "note": "covers"}
    values["params"]["ema"]["memorization"] = [near]
    results.write_text(json.dumps(values))
    (row,) = metric_rows(read(path))
    assert row.name == "fraction of samples near training images, pixels"
    assert number_text(row.values[0]) == "0.25 [0.125, 0.5]"


def test_curves_are_those_of_each_run_and_standard_errors_are_bands(tmp_path):
    runs = read(make_run(tmp_path / "a", steps=3), make_run(tmp_path / "b", steps=2))
    RunDirectory(runs[0].path).metrics.write_text('{"step": 2, "bits": 1.5, "bits_error": 0.25}\n')
    runs[0] = read_summary("A", runs[0].path, "ema")
    curves = series_of(runs)
    assert list(curves) == ["loss", "bits", "gradient_norm"]
    assert [(one.letter, one.y.tolist()) for one in curves["loss"]] == [("B", [2.0, 1.5])]
    assert curves["bits"][0].error.tolist() == [0.25]


def test_terms_of_the_elbo_are_times_their_number(tmp_path):
    (terms,) = terms_of(read(make_run(tmp_path / "a")))
    assert terms.x.tolist() == [0.0, 0.25, 0.75]
    assert terms.y.tolist() == [12.0, 4.0, 2.0]


def test_hours_are_from_the_first_to_the_last_event_of_each_file(tmp_path):
    for name, times in (("1.a", [0.0, 1800.0]), ("2.a", [9000.0, 9900.0, 10800.0])):
        data = b""
        for time in times:
            event = struct.pack("<Bd", 0x09, time) + b"some more"
            data += struct.pack("<QI", len(event), 0) + event + struct.pack("<I", 0)
        (tmp_path / f"events.out.tfevents.{name}").write_bytes(data + b"cut off")
    assert logged_hours(tmp_path) == 1.0
    assert logged_hours(tmp_path / "absent") is None
