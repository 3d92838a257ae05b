"""Plans: names, rates, work, memory and advice; and the compilers themselves, where they are."""

import dataclasses
import importlib.util
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny
from paths import ROOT, TINY

from ddpm_jax import config as configs
from ddpm_jax.cli import main, platforms
from ddpm_jax.cli.plan_tables import size
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import image_spec_of
from ddpm_jax.plan import advice, estimate, hlo, lower, parse, topologies
from ddpm_jax.plan.chips import CHIPS

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for TPUs needs the extra 'plan': pip install -e '.[plan]'",
)


@pytest.mark.parametrize(
    ("name", "slices", "shape", "count", "devices", "neighbours"),
    [
        ("v5e:16x16", 1, (16, 16), 1, 256, 256),
        ("2xv5e:4x4", 1, (4, 4), 2, 32, 16),
        ("v5e:4x4", 2, (4, 4), 2, 32, 16),
        ("v5p:4x4x8", 1, (4, 4, 8), 1, 128, 128),
        ("tpu7x:2x2x1", 1, (2, 2, 1), 1, 8, 8),
        ("h100:8", 1, (8,), 1, 8, 8),
        ("h100:4", 1, (4,), 1, 4, 4),
        ("h100:16", 1, (8,), 2, 16, 8),
        ("2xh100:8", 1, (8,), 2, 16, 8),
    ],
)
def test_names(name, slices, shape, count, devices, neighbours):
    topology = parse(name, slices)
    assert (topology.shape, topology.slices) == (shape, count)
    assert (topology.devices, topology.neighbours) == (devices, neighbours)
    assert parse(str(topology)) == topology


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e-16", "did you mean v5e:4x4?"),
        ("v5litepod-16", "did you mean v5e:4x4?"),
        ("v5p-128", "did you mean v5p:4x4x4?"),
        ("v6e-256", "did you mean v6e:16x16?"),
        ("v5e", "names are like v5e:4x4"),
        ("v5e:", "names are like v5e:4x4"),
        ("V5E:4x4", "names are like v5e:4x4"),
        ("a100:8", "h100:8"),
        ("", "chips are v4, v5e"),
        ("v5e:4", "has 2 dimensions, as in v5e:4x4"),
        ("v5p:4x4", "has 3 dimensions, as in v5p:4x4x4"),
        ("v5e:32x32", "at most 256 chips"),
        ("v5e:4x0", "1 or more"),
        ("0xv5e:4x4", "1 or more"),
        ("h100:12", "several hosts have 8 chips each"),
        ("h100:2x4", "h100:8"),
    ],
)
def test_wrong_names_are_told_right_ones(name, said):
    with pytest.raises(UserError) as told:
        parse(name)
    assert said in str(told.value)
    assert repr(name) in str(told.value)


def test_slices_are_said_once():
    with pytest.raises(UserError, match="give the number of slices once"):
        parse("2xv5e:4x4", 2)


@pytest.mark.parametrize(("name", "extra"), [("v5e:4x4", "plan"), ("h100:8", "plan-cuda")])
def test_a_missing_compiler_is_told_with_its_extra(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError) as told:
        topologies.check_compiler(parse(name))
    assert f"pip install 'ddpm_jax[{extra}]'" in str(told.value)


def test_a_compiler_starts_from_a_clean_environment():
    outer = {"HOME": "/home", "JAX_PLATFORMS": "tpu", "XLA_FLAGS": "--a", "PYTHONPATH": "/lib"}
    inner = topologies.environment(parse("v5e:4x4"), outer)
    assert inner["JAX_PLATFORMS"] == "cpu"
    assert inner["HOME"] == "/home"
    assert "XLA_FLAGS" not in inner
    home, *rest = inner["PYTHONPATH"].split(os.pathsep)
    assert (Path(home) / "ddpm_jax" / "plan" / "worker.py").is_file()
    assert rest == ["/lib"]
    # One without the other refuses what fits.
    levels = {"JAX_OPTIMIZATION_LEVEL": "O0", "JAX_MEMORY_FITTING_LEVEL": "O0"}
    assert levels.items() <= inner.items()
    thorough = topologies.environment(parse("v5e:4x4"), outer, thorough=True)
    assert {name: inner[name] for name in inner.keys() - thorough.keys()} == levels


@pytest.mark.parametrize(
    ("chip", "bfloat16", "reduced"),
    [("v5e", 50.63e15, 51.2e12), ("v6e", 234.9e15, 102.4e12), ("v4", 1.1e18, None)],
)
def test_rates_against_those_published_of_whole_pods(chip, bfloat16, reduced):
    """cloud.google.com/tpu/docs/v5e, v6e and v4 state FLOP/s and all-reduce bandwidth of a pod."""
    found = CHIPS[chip]
    assert found.largest_slice * found.bfloat16_flops == pytest.approx(bfloat16, rel=0.03)
    if reduced is not None:
        assert found.largest_slice * found.link_bandwidth == pytest.approx(reduced)


def test_every_chip_has_less_usable_memory_than_memory():
    for chip in CHIPS.values():
        assert 0.7 * chip.hbm_bytes < chip.usable_bytes < chip.hbm_bytes


def test_a_roofline_by_hand():
    chip = CHIPS["v5e"]
    rows = [hlo.Collective("all-reduce", "f32", "data", 8, 2, 1000, 1)]
    found = estimate.roofline(chip, "bfloat16", 197e12, 819e9 / 2, rows)
    assert found.compute == pytest.approx(1.0)
    assert found.memory == pytest.approx(0.5)
    assert found.links == pytest.approx(2 * 3 / 4 * 1000 / 200e9)
    # Half of 1000 twice between two slices, a quarter of it by each of four devices.
    assert found.network == pytest.approx(2 * 0.5 * 250 / 3.125e9)
    assert (found.seconds, found.limit) == (found.compute, "compute")


def test_devices_that_are_cores_have_their_share_of_a_chip():
    whole = estimate.roofline(CHIPS["v5p"], "float32", 459e12, 0.0)
    core = estimate.roofline(CHIPS["tpu7x"], "float32", 2307e12 / 2, 0.0)
    assert whole.compute == core.compute == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total"
            " memory required for HLO temporaries (149.06G) exceeds available HBM (15.75G).",
            149.06 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of 256.0M hbm."
            " Exceeded hbm capacity by 256.5M.",
            512.5 * 2**20,
        ),
        ("RESOURCE_EXHAUSTED: for once without a number", 0),
    ],
)
def test_what_the_compiler_says_of_too_much(message, needed):
    assert estimate.too_much(message) == math.ceil(needed)


def test_other_failures_are_not_taken_for_too_much():
    assert estimate.too_much("INVALID_ARGUMENT: the total memory required (2.0G)") is None


def quick_config():
    """What compiles fastest of tiny.py."""
    return dataclasses.replace(
        tiny.get_config(), objective=configs.Simple(), times=configs.Uniform()
    )


@pytest.fixture(scope="module")
def on_cpu():
    """An estimate for eight simulated devices, by the rates of a v5e."""
    config = quick_config()
    return estimate.estimate(config, parse("v5e:2x4"), jax.devices(), image_spec_of(config))


def test_an_estimate_has_the_parts_of_a_step(on_cpu):
    config = quick_config()
    assert on_cpu.mesh == {"data": 8, "fsdp": 1}
    assert on_cpu.batch == 16
    assert on_cpu.fits
    state = lower.abstract_experiment(config, jax.devices(), image_spec_of(config)).abstract_state
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    state = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(jax.eval_shape(_without_keys, state))
    )
    # The state is on every device, and a device's images are bytes of 64 pixels.
    images = 16 // 8 * 64
    assert on_cpu.memory.arguments == pytest.approx(state + images, rel=0.01)
    reduced = sum(row.bytes for row in on_cpu.collectives if row.dtype == "f32")
    assert reduced == pytest.approx(4 * parameters, rel=0.02)
    assert {row.axis for row in on_cpu.collectives} == {"data"}
    assert 0.0 < on_cpu.utilization < 1.0
    assert on_cpu.roofline.seconds > 0.0


def _without_keys(state):
    return state._replace(key=jax.random.key_data(state.key))


def test_model_flops_are_three_forward_passes(on_cpu):
    """The step itself does hardly more and hardly less: nothing is done again in this one."""
    config = quick_config()
    traced = lower.step_flops(
        lower.abstract_experiment(config, jax.devices(), image_spec_of(config))
    )
    assert traced == pytest.approx(on_cpu.model_flops, rel=0.25)
    assert traced <= on_cpu.model_flops  # the image needs no gradient


@pytest.mark.parametrize(
    ("data", "batch", "said"), [(9, 16, "mesh.data is 9"), (8, 12, "batch_size is 12")]
)
def test_a_mesh_that_cannot_be(data, batch, said):
    config = tiny.get_config()
    config = dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, data=data),
        train=dataclasses.replace(config.train, batch_size=batch),
    )
    with pytest.raises(UserError, match=said):
        lower.abstract_experiment(config, jax.devices(), image_spec_of(config))


def test_changes_are_those_the_config_has():
    config = configs.Config(train=configs.Train(batch_size=64))
    said = [[str(change) for change in kind] for kind in advice.changes(config, 8)]
    assert said == [
        [f"--network.remat {policy}" for policy in ("attention", "convolutions", "blocks")],
        [f"--mesh.data {8 // n} --mesh.fsdp {n}" for n in (2, 4, 8)],
        ["--train.accumulate 2", "--train.accumulate 4", "--train.accumulate 8"],
    ]
    changed = advice.apply(config, advice.changes(config, 8)[1][2])
    assert (changed.mesh.data, changed.mesh.fsdp) == (1, 8)
    assert changed.train == config.train
    started = configs.Config(network=configs.UNet(remat="convolutions"), mesh=configs.Jit(fsdp=4))
    said = [[str(change) for change in kind] for kind in advice.changes(started, 8)]
    assert said[:2] == [["--network.remat blocks"], ["--mesh.data 1 --mesh.fsdp 8"]]


def test_the_mildest_of_each_kind_that_fits():
    kinds = [[advice.Change(((f"{kind}.x", n),)) for n in range(5)] for kind in "ab"]
    for borders in itertools.product(range(6), repeat=2):
        asked = []

        def fits(change, borders=borders, asked=asked):
            asked.append(change)
            saved = dict(change.fields)
            return any(
                f"{kind}.x" in saved and saved[f"{kind}.x"] >= border
                for kind, border in zip("ab", borders, strict=True)
            )

        found = [str(change) for change in advice.mildest(kinds, fits)]
        assert found == [
            f"--{kind}.x {border}" for kind, border in zip("ab", borders, strict=True) if border < 5
        ]
        assert len(asked) <= 2 * 4


def test_all_kinds_together_where_none_is_enough():
    kinds = [[advice.Change(((f"{kind}.x", n),)) for n in range(3)] for kind in "ab"]
    found = advice.mildest(kinds, lambda change: len(change.fields) == 2)
    assert [str(change) for change in found] == ["--a.x 2 --b.x 2"]
    assert advice.mildest(kinds, lambda change: False) == []
    assert advice.mildest([], lambda change: True) == []


@pytest.mark.parametrize("start", [1, 16, 4096])
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize(
    "need",
    [
        lambda n: 1000 + 10 * n,
        lambda n: 10 * n,
        lambda n: 5000 + 64 * (n // 8 + 1),
        lambda n: 200 + 10 * n + 2000 * (n > 100),
        lambda n: 100 + n**1.2,
    ],
)
def test_the_largest_batch(need, start, silent):
    """Found to one part in sixteen, and both ends were compiled."""
    usable, asked = 20_000, {}

    def needed(count):
        asked[count] = need(count) <= usable
        # The compiler does not always say how much a program needs that it refuses.
        return asked[count], 0 if silent and not asked[count] else int(need(count))

    found = advice.largest(needed, usable, start, tries=16)
    assert asked[found.fits]
    assert not asked[found.fails]
    assert found.fails - found.fits <= max(found.fits // 16, 1)


def test_a_line_takes_few_compilations():
    asked = []

    def needed(count):
        asked.append(count)
        return 3000 + 7 * count <= 100_000, 3000 + 7 * count

    assert advice.largest(needed, 100_000, 16).fits == (100_000 - 3000) // 7
    assert len(asked) <= 4


def test_no_batch_at_all():
    assert advice.largest(lambda count: (False, 9 + count), 5, 64) is None


@pytest.mark.parametrize(
    ("count", "said"), [(3, "3 B"), (2048, "2 KiB"), (1.5 * 2**30, "1.5 GiB"), (-(2**20), "-1 MiB")]
)
def test_sizes(count, said):
    assert size(count) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([TINY], "--topology is missing"),
        ([TINY, "--topology", "v5e-16"], "did you mean v5e:4x4?"),
        ([TINY, "--topology", "v5e:2x2", "--train.stepz", "3"], "--train.steps"),
        ([TINY, "--topology", "v5e:2x2", "--json", "absent/a.json"], "there is no folder absent"),
        (["--topology", "v5e:2x2"], "wants a config first"),
        ([TINY, "--topology", "v5e:2x2", "--train.batch-size", "0"], "train.batch_size is 0"),
    ],
)
def test_the_command_refuses(arguments, said, capsys):
    try:
        code = main(["plan", *arguments])
    except SystemExit as left:  # by tyro
        code = left.code
    assert code == 2
    assert said in capsys.readouterr().err


PLAN = {
    "topology": "2xv5e:2x2",
    "chip": "v5e",
    "chips": 8,
    "devices": 8,
    "slices": 2,
    "fits": False,
    "mesh": {"data": 8},
    "batch": 16,
    "needed_bytes": 20 * 2**30,
    "usable_bytes": 16 * 2**30,
    "compile_seconds": 3.0,
    "memory": None,
    "flops": 0.0,
    "bytes_accessed": 0.0,
    "bytes_counted": True,
    "model_flops": 0.0,
    "collectives": [],
    "roofline": None,
    "utilization": 0.0,
    "intensity": 0.0,
    "would_fit": [{"change": "--network.remat blocks", "needed_bytes": 8 * 2**30}],
    "largest_batch": {"fits": 12, "fails": 16},
}


def test_what_does_not_fit_is_told_by_how_much(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ddpm_jax.cli.plan.plans", lambda *args, **kwargs: [PLAN])
    out = tmp_path / "plan.json"
    code = main(["plan", TINY, "--topology", "v5e:2x2", "--slices", "2", "--json", str(out)])
    assert code == 0
    said = capsys.readouterr().out
    for part in (
        "does not fit; 4 GiB are missing",
        "--network.remat blocks: 8 GiB",
        "is 12; 16 does not",
        "20 GiB",
    ):
        assert part in said
    written = json.loads(out.read_text())
    assert written["plans"] == [PLAN]
    assert written["config"]["train"]["batch_size"] == 16


@pytest.mark.parametrize(
    ("chosen", "nodes", "installed", "cpu"),
    [
        (None, [], True, True),
        ("", [], True, True),
        (None, ["/dev/nvidia0"], True, False),
        (None, [], False, False),
        ("tpu,cpu", [], True, False),
        ("cuda", [], True, False),
    ],
)
def test_only_a_compiler_without_devices_is_ignored(chosen, nodes, installed, cpu, monkeypatch):
    changed = {}
    monkeypatch.setattr(platforms.glob, "glob", lambda pattern: nodes)
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: installed or None)
    monkeypatch.setattr(
        platforms,
        "jax",
        type(
            "", (), {"config": type("", (), {"values": {"jax_platforms": chosen}, "update": None})}
        ),
    )
    monkeypatch.setattr(platforms.jax.config, "update", changed.__setitem__)
    platforms.ignore_absent_accelerators()
    assert changed == ({"jax_platforms": "cpu"} if cpu else {})


def run_alone(*arguments, **options):
    """The command in a process of its own, with no platform chosen."""
    # A suite that runs in the background is deaf to interrupts, and so would be its children.
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    program += "from ddpm_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
        **options,
    )


@needs_libtpu
@pytest.mark.thorough
def test_an_ordinary_command_says_nothing_of_tpus():
    with run_alone("inspect", TINY) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert "total" in out


@needs_libtpu
@pytest.mark.thorough
def test_a_real_plan(tmp_path, capsys, monkeypatch):
    """Of a network that compiles in seconds."""
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--no_such_flag")  # is left out
    out = tmp_path / "plan.json"
    quick = ["--objective", "simple", "--times", "uniform"]
    assert main(["plan", TINY, "--topology", "2xv5e:2x2", "--json", str(out), *quick]) == 0
    said = capsys.readouterr().out
    assert "fits, with 15.7 GiB to spare" in said
    (plan,) = json.loads(out.read_text())["plans"]
    assert plan["fits"]
    assert plan["usable_bytes"] == int(15.75 * 2**30)
    assert plan["mesh"] == {"data": 8, "fsdp": 1}
    rows = [row for row in plan["collectives"] if row["dtype"] == "f32"]
    assert {row["axis"] for row in rows} == {"data"}
    assert {(row["kind"], row["devices"], row["slices"]) for row in rows} >= {("all-reduce", 2, 2)}
    assert plan["roofline"]["network"] > 0.0
    assert 0 < plan["memory"]["arguments"] < plan["needed_bytes"]


@needs_libtpu
@pytest.mark.thorough
def test_a_slice_that_the_compiler_does_not_know(capsys):
    assert main(["plan", TINY, "--topology", "v5e:3x3"]) == 2
    said = capsys.readouterr().err
    assert "v5e:3x3" in said
    assert "not divisible" in said


@needs_libtpu
@pytest.mark.thorough
def test_ctrl_c_ends_the_compiler_too():
    with run_alone("plan", "configs/cifar10.py", "--topology", "v5e:2x2") as process:
        assert "compiling for v5e:2x2" in process.stdout.readline()
        threads = Path(f"/proc/{process.pid}/task").iterdir()
        children = [child for t in threads for child in (t / "children").read_text().split()]
        assert len(children) == 1
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "ddpm-jax: interrupted\n"
    assert not Path(f"/proc/{children[0]}").exists()
