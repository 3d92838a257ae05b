"""What the suite for accelerators reads and concludes; that it runs is in test_benchmarks.py."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import TINY
from suites import run

from benchmarks import accelerator, accelerator_exact, profile, results
from benchmarks.results import Row

LINES = {1: ("/host:CPU", {1: "python"}), 2: ("/device:GPU:0", {1: "Stream #7", 2: "XLA Ops"})}


def events(*launches):
    """A trace of launches `(process, thread, name, instruction, microseconds)`."""
    names = [
        {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": process}}
        for pid, (process, _) in LINES.items()
    ] + [
        {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": thread}}
        for pid, (_, threads) in LINES.items()
        for tid, thread in threads.items()
    ]
    return names + [
        {"ph": "X", "pid": pid, "tid": tid, "name": name, "dur": dur, "args": {"hlo_op": op}}
        for pid, tid, name, op, dur in launches
    ]


def test_kernels_are_summed_by_instruction_and_counted_once():
    hlo = '  %conv.1 = f32[8]{0} custom-call(%a), metadata={op_name="jit(step)/conv" x=1}\n'
    traced = events(
        (2, 1, "cudnn_fprop", "conv.1", 30.0),
        (2, 1, "cudnn_short", "conv.1", 10.0),
        (2, 1, "loop_add", "fusion.2", 10.0),
        (2, 2, "conv.1", "conv.1", 41.0),  # the same once more, by operations
        (2, 1, "while", "while.3", 50.0),  # what is inside is there, too
        (2, 1, "memset", "", 1.0),
    )
    del traced[-1]["args"]["hlo_op"]
    first, second = profile.expensive(traced, hlo)
    assert first[:4] == ("conv.1", "cudnn_fprop", "jit(step)/conv", 2)
    assert second[:4] == ("fusion.2", "loop_add", "", 1)
    np.testing.assert_allclose([first[4:], second[4:]], [[4e-5, 0.8], [1e-5, 0.2]])


def test_kernels_that_a_cuda_graph_replays_are_told_apart():
    hlo = '  %fusion.2 = f32[8]{0} fusion(%a), metadata={op_name="jit(step)/add"}\n'
    kernels = profile.expensive(
        events(
            (2, 1, "nvjet", "command_buffer_7", 30.0),
            (2, 1, "fusion_2", "command_buffer_7", 5.0),
            (2, 1, "fusion_2", "command_buffer_8", 5.0),
        ),
        hlo,
    )
    assert [kernel[:4] for kernel in kernels] == [
        ("nvjet", "nvjet", "", 1),
        ("fusion_2", "fusion_2", "jit(step)/add", 2),
    ]


def test_traces_are_read_from_their_folder(tmp_path):
    inside = tmp_path / "plugins" / "profile" / "now"
    inside.mkdir(parents=True)
    with gzip.open(inside / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events((1, 1, "dot", "dot.1", 5.0))}, file)
    (kernel,) = profile.expensive(profile.read(tmp_path), "")
    assert (kernel.name, kernel.share) == ("dot", 1.0)
    assert profile.expensive([], "") == []


def test_products_at_another_precision_are_found_wherever_they_are():
    x = jnp.ones((4, 4))

    def inside(x):
        exact = jnp.dot(x, x, precision="highest")
        looped, _ = jax.lax.scan(lambda x, _: (jnp.sin(x @ x), None), x, None, length=3)
        return exact + jax.jit(jnp.dot)(looped, x)

    assert accelerator_exact.products(inside, x) == {"dot_general": 2}
    assert accelerator_exact.products(lambda x: jnp.dot(x, x, precision="highest"), x) == {}
    assert (
        accelerator_exact.products(lambda x: x.astype(jnp.bfloat16) @ x.astype(jnp.bfloat16), x)
        == {}
    )


def test_the_mathematics_has_no_product_at_default_precision():
    for check in accelerator_exact._mathematics(0):
        assert accelerator_exact.products(check.function, *check.arguments) == {}, check.name


def test_a_product_of_ten_bits_is_not_exact(monkeypatch):
    """TF32 keeps 10 bits of each factor."""

    def rounded(x):
        exponent = np.floor(np.log2(np.abs(x) + 1e-30))
        return np.float32(np.round(x * 2.0 ** (10 - exponent)) * 2.0 ** (exponent - 10))

    a, b = np.random.default_rng(0).standard_normal((2, 32, 32)).astype(np.float32)
    exact = a.astype(np.float64) @ b
    close = accelerator_exact.Check("exact", jnp.dot, (a, b), exact)
    far = accelerator_exact.Check("TF32", jnp.dot, (rounded(a), rounded(b)), exact)
    monkeypatch.setattr(accelerator_exact, "_mathematics", lambda seed: [close, far])
    monkeypatch.setattr(accelerator_exact, "_layers", lambda seed: [])
    rows = list(accelerator_exact.measured(0))
    assert [row.numbers["exact"] for row in rows] == [True, False]
    (said,) = accelerator._of_exactness(rows)
    assert "1 of 2 are within" in said
    assert "NOT EXACT: TF32." in said


def test_no_part_begins_after_the_budget(capsys, tmp_path):
    arguments = ["--config", TINY, "--batch", "2", "--budget", "1e-9", "--sample-steps", "2"]
    code, out, _ = run(capsys, "accelerator", *arguments, "--out", tmp_path)
    assert code == 0
    report = results.load(tmp_path / "accelerator.json")
    skipped = [row.case["what"] for row in results.find(report.rows, part="skipped")]
    parts = ["exactness", "train step, bfloat16", "noising", "DDIM", "train step, float32"]
    assert [what for what in skipped if what != "diffusers"] == parts
    assert "Left out: DDIM: the 1e-09 seconds of --budget are spent, or would be." in out


def test_the_share_of_a_cards_peak(monkeypatch):
    class H100:
        device_kind = "NVIDIA H100 80GB HBM3"

    monkeypatch.setattr(jax, "devices", lambda: [H100()])
    for dtype, peak in (("bfloat16", 989.4e12), ("float32", 494.7e12)):
        row = Row({"by": "ddpm_jax", "dtype": dtype}, [1.0], numbers={"flops_per_second": 1e14})
        assert accelerator._speed(row).numbers["share_of_peak"] == pytest.approx(1e14 / peak)


def test_a_step_of_other_bits_is_said():
    rows = [
        Row(
            {"part": "restart", "what": "train step", "dtype": dtype},
            numbers={"arrays": 9, "different": different, "farthest": 0.5},
        )
        for dtype, different in (("float32", 0), ("bfloat16", 2))
    ]
    same, other = accelerator.notes(rows)
    assert "give the same bits in all 9 arrays" in same
    assert "other bits in 2 of 9 arrays, by up to 0.5" in other
