"""The benchmarks as people run them, at sizes that take seconds, and what their numbers rest on."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import thorough_but
from paths import SCALED, TINY
from suites import run

from benchmarks import (
    columns,
    forward,
    kl_pairs,
    machinery,
    moments,
    overhead,
    peer_noising,
    peers,
    results,
    train_step,
)
from benchmarks.__main__ import SUITES, main
from benchmarks.results import Report, Row
from ddpm_jax import config as configs
from ddpm_jax import schedules, training
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import classifier
from ddpm_jax.experiment import image_spec_of, make_network

FEW = ["--repeats", "4", "--seconds", "0.1"]
ARGUMENTS = {
    "forward": [
        *("--sizes", "2x2x1", "4x4x3", "--batches", "2", "--times", "3", "6"),
        *("--num-steps", "6", "--affine-dims", "4"),
    ],
    "kl": [
        *(
            "--samples",
            "1",
            "100",
            "--nodes",
            "2",
            "--at-once",
            "65536",
            "--config",
            SCALED,
            "--chains",
            "config",
        ),
        *("--batch", "4", "--num-times", "2", "--keys", "4", "--whole-keys", "2"),
        *("--ways", "history", "estimate_uniform"),
    ],
    "data": [
        "--config",
        SCALED,
        "--images",
        "32",
        "--side",
        "8",
        "--channels",
        "4",
        "--batch",
        "16",
        "--steps",
        "3",
    ],
    "train_step": ["--configs", SCALED, "--batches", "2"],
    "peers": [
        *("--sizes", "2x2x1", "--batches", "2", "--config", SCALED, "--batch", "2"),
        *("--networks", TINY, "--network-batches", "2", "--sample-batches", "2"),
        *("--sample-steps", "2", "--chain-steps", "4", "--compile", "none", "--memory", "none"),
        *("--network-repeats", "4", "--network-seconds", "0.1"),
    ],
    "accelerator": [
        *("--config", TINY, "--batch", "2", "--dtypes", "float32", "--compile", "none"),
        *("--sample-steps", "2", "--chain-steps", "4"),
    ],
    "relatives": [
        *("--config", TINY, "--names", "linear in log SNR", "rectified flow", "--times", "2"),
        *("--train-steps", "2", "--samples", "80", "--steps", "2"),
    ],
    "scaling": [
        *("--topologies", "v5e:2x2", "--config", SCALED, "--channels", "4"),
        *("--batch", "2", "--fsdp", "2"),
        *("--timed-config", SCALED, "--timed-channels", "4", "--timed-batch", "8"),
        *("--devices", "4", "--processes", "1", "--forms", "jit", "pmap"),
    ],
}


def here(question):
    """What `overhead.ask` would hear from processes; simulated devices take their places."""
    return json.loads(json.dumps(machinery.answer(question)))


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A suite's JSON file, run once."""
    found = {}

    def report(suite):
        if suite == "peers":
            pytest.importorskip("diffusers", reason="diffusers comes with the extra 'peers'")
        if suite not in found:
            out = tmp_path_factory.mktemp(suite)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(overhead, "ask", here)
                patch.setattr(classifier, "_STEPS", 20)
                assert main([suite, *ARGUMENTS[suite], *FEW, "--out", str(out)]) == 0
            found[suite] = out / f"{suite}.json"
        return found[suite]

    return report


def report_of(suite="forward", *rows, **changed):
    """A report that nobody measured."""
    machine = {"platform": "cpu", "processor": "abacus", "load_before": 0.0}
    made = Report(suite, {}, {"seed": 0}, machine, {"jax": "1"}, "now", 1.0, list(rows), [])
    return dataclasses.replace(made, **changed)


# The command.


def test_the_suites_are_listed(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    for name, (what, took) in SUITES.items():
        (line,) = (line for line in out.splitlines() if line.split()[:1] == [name])
        assert what in line
        assert took in line
    assert "compare" in out


@pytest.mark.parametrize("suite", SUITES)
def test_help_says_what_is_measured_and_what_is_not(suite, capsys):
    code, out, _ = run(capsys, suite, "--help")
    assert code == 0
    assert "What it does not measure" in out or "What is not measured" in out
    assert "--repeats" in out


each = pytest.mark.parametrize(
    "suite",
    thorough_but(["forward"], SUITES),
)


@each
def test_a_suite_leaves_numbers_that_load(suite, reports):
    plain = json.loads(reports(suite).read_text())
    assert {"platform", "device_kind", "devices", "processor", "cores"} <= set(plain["machine"])
    assert {"python", "jax", "jaxlib", "numpy", "ddpm_jax"} <= set(plain["versions"])
    assert plain["seeds"] == {"seed": 0}
    assert plain["arguments"]["repeats"] == 4
    assert plain["notes"]
    timed = [row for row in plain["rows"] if row["seconds"]]
    assert timed
    for row in timed:
        assert set(row["spread"]) == {"median", "lower", "upper"}
        assert row["spread"]["lower"] <= row["spread"]["median"] <= row["spread"]["upper"]
        assert min(row["seconds"]) > 0.0
    assert any(row["compile_seconds"] for row in plain["rows"])
    report = results.load(reports(suite))
    assert len({json.dumps(row.case, sort_keys=True) for row in report.rows}) == len(report.rows)
    assert report.suite == suite


@each
def test_a_suite_draws(suite, reports):
    picture = reports(suite).with_suffix(".png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(picture) > 10_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sideways"], "there is no suite 'sideways'; it has to be one of forward, kl"),
        (["forward", "--sizes", "8x8"], "--sizes has '8x8'; a size is height x width x channels"),
        (["forward", "--sizes", "8x0x1"], "--sizes has '8x0x1'"),
        (["forward", "--times", "5000"], "--times has 5000; the chain has --num-steps 4000"),
        (["forward", "--times"], "--times is empty"),
        (["forward", "--times", "5", "5"], "--times is 5 5; give each value once"),
        (["forward", "--batches", "0"], "--batches is 0; it has to be above 0"),
        (["forward", "--num-steps", "1", "--times", "1"], "--num-steps is 1"),
        (["forward", "--seconds", "nan"], "--seconds is nan"),
        (["forward", "--seed", "-1"], "--seed is -1"),
        (["forward", "--size", "8x8x1"], "--sizes"),
        (["forward", "--batches", "many"], "many"),
        (["kl", "--samples", "12345"], "--samples has 12345"),
        (["relatives", "--samples", "64"], "--samples is 64; with 64 features"),
        (["relatives", "--names", "variance"], "--names has 'variance'; there are linear in"),
        (["relatives", "--steps", "8", "4"], "--steps is 8 4; it has to rise"),
        (["kl", "--keys", "1"], "at least 2"),
        (["kl", "--config", "absent.py"], "'absent.py' does not exist"),
        (
            ["kl", "--config", TINY, "--batch", "361"],
            "--batch is 361; there are 360 held-out images",
        ),
        (["train_step", "--batches", "3"], "--configs has 2 entries and --batches 1"),
        (["scaling", "--parts", "guessed"], "guessed"),
        (["scaling", "--topologies", "v5e:8"], "--topology is 'v5e:8'"),
        (["scaling", "--timed-batch", "12"], "--timed-batch is 12; 8 devices cannot share it"),
        (["scaling", "--processes", "3"], "--timed-batch is 32; 3 devices cannot share it"),
        (["scaling", "--timed-channels", "5"], "network.channels is 5"),
        (["compare"], "compare wants two files, and got 0"),
        (["compare", "absent.json", "absent.json"], "absent.json does not exist"),
        (["compare", TINY, TINY], "is not a result of python -m benchmarks"),
    ],
)
def test_bad_input_is_a_sentence(arguments, said, capsys, tmp_path):
    out = [] if arguments[0] in ("compare", "sideways") else ["--out", tmp_path]
    code, _, error = run(capsys, *arguments, *out)
    assert code == 2
    assert said in error
    assert "Traceback" not in error


# Comparing.


@pytest.mark.thorough
def test_compare_prints_a_ratio_for_each_timed_row(reports, capsys):
    path = reports("train_step")
    code, out, _ = run(capsys, "compare", path, path)
    assert code == 0
    timed = [row for row in results.load(path).rows if row.seconds]
    assert sum("1.000" in line for line in out.splitlines()) == len(timed)
    assert "Different" not in out


def test_compare_tells_slower_from_spread():
    case = {"method": "a"}
    steady = [1.0 + 0.01 * i for i in range(12)]
    before = report_of("forward", Row(case, steady))
    verdicts = {}
    for name, runs in {
        "slower": [2.0 * s for s in steady],
        "faster": [0.5 * s for s in steady],
        "within the spread": [1.005 * s for s in steady],
        "too few runs (3)": [2.0, 2.0, 2.0],
    }.items():
        (found,) = results.compare(before, report_of("forward", Row(case, runs)))
        assert found.lower <= found.ratio <= found.upper
        verdicts[name] = found.verdict
    assert verdicts == {name: name for name in verdicts}


@pytest.mark.parametrize("runs", [4, 5, 9, 10, 30])
@pytest.mark.thorough
def test_compare_seldom_sees_a_difference_that_is_none(runs):
    """2,000 pairs of one skewed distribution: at most 5 %, 3 standard errors allowed."""
    rng, pairs = np.random.default_rng(runs), 2000
    seen = 0
    for one, other in rng.lognormal(size=(pairs, 2, runs)):
        before, after = (report_of("kl", Row({}, list(map(float, x)))) for x in (one, other))
        (found,) = results.compare(before, after)
        seen += found.verdict in ("slower", "faster")
    assert seen / pairs < 0.05 + 3.0 * math.sqrt(0.05 * 0.95 / pairs)


def test_compare_refuses_other_suites_and_says_what_differs():
    row, other = Row({"a": 1}, [1.0] * 4), Row({"a": 2}, [1.0] * 4)
    before = report_of("forward", row, other)
    with pytest.raises(UserError, match="of the suite 'forward' and the second of 'kl'"):
        results.compare(before, report_of("kl", row))
    with pytest.raises(UserError, match="no timed row in common"):
        results.compare(before, report_of("forward", Row({"a": 3}, [1.0])))
    machine = {"platform": "cpu", "processor": "slide rule", "load_before": 3.0}
    after = report_of("forward", row, machine=machine, versions={"jax": "2"})
    said = results.conclusions(before, after, results.compare(before, after))
    assert said == [
        "1 rows: 1 within the spread.",
        "1 rows are in one of the files only.",
        "Different machine: processor was abacus and is slide rule.",
        "Different versions: jax was 1 and is 2.",
    ]


def test_a_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "a.json"
    results.save(report_of("kl", Row({}, [1.0])), path)
    assert results.load(path).rows == [Row({}, [1.0])]
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match="has format 2; this version reads 1"):
        results.load(path)


# Timing.


@pytest.mark.thorough
def test_scaling_times_each_form_beside_one_device(reports):
    timed = [row for row in results.load(reports("scaling")).rows if row.seconds]
    cases = {
        (row.case["channels"], row.case["on"]): [
            (other.case["form"], other.case["mesh of"])
            for other in results.find(timed, channels=row.case["channels"], on=row.case["on"])
        ]
        for row in timed
    }
    one = ("none", "")
    assert cases == {
        (4, "1 device"): [one, ("jit", "1x1"), ("pmap", "1x1")],
        (4, "4 devices"): [one, ("jit", "4x1"), ("pmap", "4x1"), ("jit", "2x2")],
    }
    for row in timed:
        assert len(row.seconds) in (3, 4)
        assert row.numbers["difference"] < 1e-5 < row.numbers["moved"]
        (alone,) = results.find(
            timed, on=row.case["on"], channels=row.case["channels"], form="none"
        )
        assert row.numbers["over_one_device"] == row.median / alone.median


def test_forward_has_all_methods_and_right_moments(reports):
    report = results.load(reports("forward"))
    rows = results.find(report.rows, size="2x2x1", batch=2)
    methods = dict.fromkeys(row.case["method"] for row in rows)
    assert set(methods) | {"affine set-up"} == set(forward.METHODS)
    assert not results.find(report.rows, size="4x4x3", method="affine")
    for row in rows:
        assert row.numbers["gigabytes_per_second"] > 0.0
        assert row.numbers["peak_bytes"] > 0
        if row.case["method"] != "x + y":
            assert row.numbers["far"] is False
    (closed, _) = results.find(report.rows, size="4x4x3", method="closed form")
    assert closed.numbers["image_kernels"] == 1
    loops = {r.case["t"]: r for r in results.find(report.rows, size="4x4x3", method="Python loop")}
    assert loops[6].numbers["launches"] == 2 * loops[3].numbers["launches"]


def test_long_loops_are_left_out_and_said(monkeypatch):
    settings = forward.Settings(times=(2, 50), num_steps=50, repeats=3, longest=1e-9)
    x0 = jnp.zeros((2, 2, 2, 1))
    rows = forward._loops(settings, schedules.cosine(50), "2x2x1", x0, jax.random.key(0), 0.0)
    assert all(row.numbers["left_out_seconds"] > 0.0 and not row.seconds for row in rows)
    assert "4 rows in brackets were not run" in " ".join(forward.notes(rows))
    assert "(about " in columns.of_rows(rows, forward.COLUMNS)


@pytest.mark.thorough
def test_kl_errors_are_those_of_the_methods(reports):
    report = results.load(reports("kl"))
    for name in kl_pairs.PAIRS:
        rows = {
            (row.case["method"], row.case.get("n")): row.numbers
            for row in results.find(report.rows, pair=name)
        }
        assert rows["closed form", None]["relative_error"] < 5e-7
        one, hundred = rows["Monte Carlo", 1]["rms_error"], rows["Monte Carlo", 100]["rms_error"]
        assert one / hundred == pytest.approx(10.0, rel=0.2)  # of 655 dimensions or more
    assert kl_pairs._exact(*map(np.float64, (0.0, 1.0, 1.0, 4.0))) == pytest.approx(
        math.log(2.0) + (1.0 + 1.0) / 8.0 - 0.5
    )
    ways = [row.case["way"] for row in report.rows if "way" in row.case]
    assert ways == ["all", "history", "estimate_uniform"]


@pytest.mark.thorough
def test_the_step_is_that_of_training():
    """With the closed form, the loss is the library's own for this objective and these times."""
    config = configs.load(SCALED)
    state, images = train_step.state_and_images(config, 4, 0)
    ours = train_step.make_objective(config, "closed form")
    schedule = configs.make_schedule(config.schedule)
    theirs = training.Objective(
        configs.Uniform().make(schedule),
        training.make_losses(
            make_network(config, image_spec_of(config)).apply,
            schedule,
            configs.Simple().make(),
            predicts="eps",
            levels=256,
        ),
    )
    key, x0 = jax.random.key(5), train_step.to_model_range(images, 256)
    one, other = (
        jax.jit(functools.partial(training.weighted_losses, objective))(state.params, key, batch)
        for objective, batch in ((ours, images), (theirs, x0))
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_loop_of_a_step_has_the_closed_forms_moments():
    """20,000 examples at four times each: mean and variance of x_t, 5 standard errors."""
    schedule = schedules.cosine(8)
    loop = train_step._noisings(schedule)["loop"]
    t = jnp.tile(jnp.array([0, 3, 6, 7], jnp.int32), 5000)
    x0 = jnp.broadcast_to(jnp.array([[0.5, -1.0]]), (t.size, 2))
    x_t, eps = jax.jit(loop)(jax.random.split(jax.random.key(0), t.size), x0, t)
    alpha_bar = moments.cosine_alpha_bar(8)
    for time_ in (0, 3, 6, 7):
        here = np.asarray(t) == time_
        found = moments.distance(
            *moments.white_isotropic(alpha_bar[time_], np.asarray(x0)[here], np.asarray(x_t)[here])
        )
        assert not found.far, (time_, found)
    assert float(jnp.var(eps)) == pytest.approx(1.0, abs=5.0 * math.sqrt(2.0 / eps.size))


def test_peers_say_who_wins_and_what_is_missing():
    def rows(ours, theirs):
        case = {"size": "1x1x1", "batch": 1}
        timed = [
            Row({"what": what, "by": by, **case}, [seconds] * 3, None, {"torch_threads": 1})
            for what in peer_noising.WHATS
            for by, seconds in (("ddpm_jax", ours), ("diffusers", theirs))
        ]
        missing = Row(
            {"what": "noise given", "by": "diffusers, compiled", **case},
            numbers={"unavailable": "there is no compiler"},
        )
        step = [
            Row({"what": what, "by": by, "step": True, **case}, [seconds] * 3)
            for what, by, seconds in (
                ("train step", "ddpm_jax", 10.0),
                ("its normals", "ddpm_jax", ours),
                ("its normals", "diffusers", theirs),
            )
        ]
        tables = [
            Row({"table": "beta", "schedule": "linear", "by": by}, numbers={"relative_error": 0.5})
            for by in ("ddpm_jax", "diffusers")
        ]
        return [*timed, missing, *step, *tables]

    lost = " ".join(peers.notes(rows(2.0, 1.0)))
    assert lost.count("ddpm_jax takes 2 of the time (the peer wins)") == 3
    assert "the difference is 10.00% of it" in lost
    assert "No compiled mode of diffusers' is in the table: there is no compiler." in lost
    won = " ".join(peers.notes(rows(1.0, 2.0)))
    assert won.count("ddpm_jax takes 0.5 of the time") == 3
    assert "wins" not in won


def test_notes_follow_from_the_numbers():
    """Twice the time is half the bandwidth, whatever was measured here."""

    def rows(closed, loop):
        parts = {
            "closed form": closed,
            "loop": loop,
            "none": 1.0,
            "loop, alone": 1.0,
            "closed form, alone": 0.5,
        }
        return [
            Row({"network": "n", "batch": 1, "noising": name}, [seconds] * 3)
            for name, seconds in parts.items()
        ]

    # Half a second of 1 s of noising, in a step of 1 s: a third of a day with the loop is saved.
    apart, whole = train_step.notes(rows(1.0, 2.0))
    assert "that is 8 hours saved" in apart
    assert "50.00% of its step" in apart
    assert "whole steps say 12 hours" in whole
    assert "18 hours" in train_step.notes(rows(1.0, 4.0))[1]
    assert "2 s with the loop." in whole
    assert "1 s with the loop, which is within the spread" in train_step.notes(rows(1.0, 1.0))[1]
