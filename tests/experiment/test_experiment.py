"""Putting an experiment together, its folder, and what it measures."""

import dataclasses
import io
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from rich.console import Console

from ddpm_jax import experiment as experiments
from ddpm_jax.config import ConfigError, Jit, TensorFlowDataset
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import RunDirectory, RunDirectoryError, build, trained_model
from ddpm_jax.experiment.display import TrainingDisplay
from ddpm_jax.experiment.metrics_log import MetricsLog
from ddpm_jax.likelihood import BitsAtTimes


def replace(config, section, **values):
    changed = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: changed})


@pytest.fixture(scope="module")
def experiment():
    return build(tiny.get_config())


def test_levels_that_do_not_divide_the_image_are_refused():
    config = replace(tiny.get_config(), "network", multipliers=(1, 1, 1, 1, 1))
    with pytest.raises(ConfigError, match="8x8, which 16 does not divide, so take fewer levels"):
        build(config)


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
    config = replace(tiny.get_config(), "train", batch_size=12)
    with pytest.raises(ConfigError, match=r"train\.batch_size is 12; the 8 devices .*8 or 16"):
        experiments.check_batch(config)
    on_four = dataclasses.replace(config, mesh=Jit(data=4))
    experiments.check_batch(on_four)
    assert build(on_four).mesh.size == 4


def test_attention_where_no_level_is_refused():
    config = replace(tiny.get_config(), "network", attention_resolutions=(5,))
    with pytest.raises(ConfigError, match=r"holds 5; the levels have the heights \[8\]"):
        build(config)


def test_a_fused_kernel_is_taken_on_gpus_alone_and_refused_where_it_cannot_run(monkeypatch):
    config = replace(tiny.get_config(), "network", attention_kernel="cudnn", dtype="bfloat16")
    assert build(config).model.attention_kernel == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # without cuDNN
    with pytest.raises(ConfigError, match=r"heads of 4 channels here \(cuDNN .*\); take 'xla'"):
        build(config)


def test_an_unknown_dataset_is_refused(tmp_path):
    config = dataclasses.replace(
        tiny.get_config(), data=TensorFlowDataset("digit", dir=str(tmp_path))
    )
    with pytest.raises(UserError, match="TensorFlow Datasets has no data set of that name"):
        build(config)


def test_abstract_state_is_that_of_the_real_one(experiment):
    abstract = experiment.abstract_state
    real = experiments.initial_state(experiment)
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), real)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), abstract) == described


@pytest.mark.optimized
def test_the_initial_state_has_the_bits_of_all_optimizations(monkeypatch):
    """A normal distribution differs where multiplications and additions are not fused."""

    def params(model, key, shape, labelled=False):
        make = {"normal": jax.random.normal, "uniform": jax.random.uniform}
        return {name: draw(key, (11, 16)) for name, draw in make.items()}

    monkeypatch.setattr(sys.modules[build.__module__], "init_params", params)
    flags = os.environ.get("XLA_FLAGS", "")
    monkeypatch.setenv("XLA_FLAGS", flags.replace("--xla_backend_optimization_level=0", ""))
    experiment = build(dataclasses.replace(tiny.get_config(), mesh=Jit(data=1)))
    made = experiments.initial_state(experiment).params
    key, options = experiment.key("parameters"), {"xla_backend_optimization_level": 3}
    optimized = jax.jit(lambda: params(None, key, None), compiler_options=options)()
    assert all(np.array_equal(made[name], optimized[name]) for name in optimized)


def test_no_two_uses_of_randomness_share_a_key(experiment):
    purposes = ("parameters", "training", "held out", "samples", "bits per dim")
    keys = {jax.random.key_data(experiment.key(purpose)).tobytes() for purpose in purposes}
    assert len(keys) == len(purposes)


def test_bits_per_dim_do_not_count_the_filling_of_the_last_batch(experiment, monkeypatch):
    """A fake ELBO that is the image's own mean: 360 images in batches of 128 leave 104 over."""

    def mean_level(process, predict, key, x0, times, *, predicts, levels, variance):
        mean = x0.mean(axis=(1, 2, 3))
        return BitsAtTimes(mean, jnp.zeros(times.shape))

    monkeypatch.setattr("ddpm_jax.evaluation.likelihood.bits_at_times", mean_level)
    results = experiment.config.evaluation.make(trained_model(experiment))({}).results
    means = experiment.images.held_out.images.mean(axis=(1, 2, 3)) / 8.0 - 1.0
    assert results["bits_per_dim"] == pytest.approx(means.mean(), abs=1e-6)
    assert results["standard_error"] == pytest.approx(means.std(ddof=1) / 360**0.5, rel=1e-4)


class TestRunDirectory:
    def test_is_claimed_again_by_the_same_config(self, tmp_path):
        run, config = RunDirectory(tmp_path / "run"), tiny.get_config()
        for _ in range(2):
            with run.claim(config):
                assert run.read_config() == config

    def test_names_the_fields_that_differ_and_writes_nothing(self, tmp_path):
        run, config = RunDirectory(tmp_path / "run"), tiny.get_config()
        with run.claim(config):
            pass
        before = {path: path.read_bytes() for path in run.path.iterdir()}
        other = dataclasses.replace(replace(config, "train", batch_size=8), seed=3)
        with (
            pytest.raises(
                RunDirectoryError, match=r"train\.batch_size was 16 and is 8; seed was 0"
            ),
            run.claim(other),
        ):
            pass
        assert {path: path.read_bytes() for path in run.path.iterdir()} == before

    def test_may_be_gone_on_with_on_another_mesh(self, tmp_path):
        run, config = RunDirectory(tmp_path / "run"), tiny.get_config()
        for devices in (1, 8):
            with run.claim(dataclasses.replace(config, mesh=Jit(data=devices))):
                pass

    def test_is_refused_while_another_process_trains_in_it(self, tmp_path):
        run, config = RunDirectory(tmp_path / "run"), tiny.get_config()
        with (
            run.claim(config),
            pytest.raises(RunDirectoryError, match="another process is training"),
            RunDirectory(tmp_path / "run").claim(config),
        ):
            pass

    def test_is_refused_where_other_things_are(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("chapter 1")
        with (
            pytest.raises(RunDirectoryError, match=r"contains other files \(thesis\.tex\)"),
            RunDirectory(tmp_path).claim(tiny.get_config()),
        ):
            pass
        with (
            pytest.raises(RunDirectoryError, match="is a file"),
            RunDirectory(tmp_path / "thesis.tex").claim(tiny.get_config()),
        ):
            pass

    def test_is_claimed_after_a_claim_that_was_killed_half_way(self, tmp_path):
        for name in ("lock", "config.json.partial", "config.json.0123456789abcdef.partial"):
            (tmp_path / name).write_text("{")
        with RunDirectory(tmp_path).claim(tiny.get_config()):
            pass

    def test_that_is_none_is_a_sentence(self, tmp_path):
        with pytest.raises(RunDirectoryError, match=r"is not a run directory"):
            RunDirectory(tmp_path / "absent").read_config()
        for text, said in (
            ("{", "is not JSON"),
            ("[]", "holds a list"),
            ('{"a": 1}', "has no format: an older version wrote it"),
        ):
            (tmp_path / "config.json").write_text(text)
            with pytest.raises(UserError, match=said):
                RunDirectory(tmp_path).read_config()


class TestTrainingDisplay:
    def lines(self, steps, *, start=0):
        out = io.StringIO()
        console = Console(file=out, width=200)
        with TrainingDisplay(console, start=start, steps=10, batch_size=4) as display:
            for step in steps:
                display.advance(step, 0.5)
                display.log(step, loss=0.5)
        return out.getvalue().splitlines()

    def test_does_not_count_what_else_took_time(self, monkeypatch):
        clock = iter([0.0, 2.0, 90.0, 91.0])
        monkeypatch.setattr("time.perf_counter", lambda: next(clock))
        out = io.StringIO()
        display = TrainingDisplay(Console(file=out, width=200), start=0, steps=10, batch_size=4)
        display.advance(1, 0.7)  # before the clock of its own
        display.advance(2, 0.3)
        display.advance(3, 0.1)
        speed = display.log(5, loss=0.5)
        assert (speed["steps_per_second"], speed["waited_for_data"]) == (2.0, 0.2)
        display.pause()
        display.advance(6, 50.0)
        speed = display.log(8, loss=0.5)
        assert (speed["steps_per_second"], speed["waited_for_data"]) == (2.0, 0.0)

    def test_is_plain_lines_where_there_is_no_terminal(self, monkeypatch):
        clock = iter([0.0, 0.0, 2.0, 4.0])
        monkeypatch.setattr("time.perf_counter", lambda: next(clock))
        first, second, last = self.lines([1, 5, 10])
        # The first step says nothing of the speed: it was compiled before it was timed.
        assert first == "step 1/10  loss 0.5000  0.0 steps/s  0 images/s  -:-- left"
        assert (
            second
            == "step 5/10  loss 0.5000  2.0 steps/s  8 images/s  25.0% waiting for data  0:02 left"
        )
        assert last == second.replace("5/10", "10/10").replace(
            "2.0 steps/s  8 images/s", "2.5 steps/s  10 images/s"
        ).replace("0:02 left", "0:00 left")


class TestMetricsLog:
    def test_drops_what_is_past_the_checkpoint_and_what_was_cut_off(self, tmp_path):
        run = RunDirectory(tmp_path)
        with MetricsLog(run, resumed_at=0) as log:
            for step in (5, 10, 15):
                log.write(step, {"loss": step / 7})
        kept = run.metrics.read_bytes().splitlines(keepends=True)[:2]
        with run.metrics.open("a") as file:
            file.write('{"step": 20, "lo')
        with MetricsLog(run, resumed_at=10):
            pass
        assert run.metrics.read_bytes() == b"".join(kept)
        with MetricsLog(run, resumed_at=0):
            pass
        assert run.metrics.read_bytes() == b""

    @pytest.mark.parametrize("line", ["nonsense", "[3]", '{"loss": 1.0}'])
    def test_a_damaged_line_is_a_sentence(self, tmp_path, line):
        run = RunDirectory(tmp_path)
        run.metrics.write_text(f"{line}\n")
        with pytest.raises(RunDirectoryError, match="is damaged"):
            MetricsLog(run, resumed_at=0)

    def test_says_why_the_file_lacks_lines_and_writes_them_later(self, tmp_path):
        run = RunDirectory(tmp_path)
        with MetricsLog(run, resumed_at=0) as log:
            run.metrics.unlink()
            run.metrics.mkdir()
            log.write(5, {"loss": 0.5})
            assert log.refusal == "Is a directory"
            run.metrics.rmdir()
            log.write(10, {"loss": 0.25})
            assert log.refusal is None
        assert [line["step"] for line in run.read_metrics()] == [5, 10]

    def test_floats_come_back_exactly(self, tmp_path):
        run, value = RunDirectory(tmp_path), float(np.float32(1 / 3))
        with MetricsLog(run, resumed_at=0) as log:
            log.write(1, {"loss": value})
        assert json.loads(run.metrics.read_text()) == {"step": 1, "loss": value}
