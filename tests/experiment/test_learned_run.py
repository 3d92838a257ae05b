"""A run whose schedule is learned: what it stores, and that all who use it have the schedule of
their parameters."""

import dataclasses
import io
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import TINY
from rich.console import Console
from runs import contents, ended, finish, start

import ddpm_jax
from ddpm_jax import config, experiment, likelihood, schedules
from ddpm_jax.data import to_model_range
from ddpm_jax.experiment import RunDirectory
from ddpm_jax.experiment.exported import export_diffusers, export_file
from ddpm_jax.experiment.imported import write_run_of_file
from ddpm_jax.experiment.step import trained_model
from ddpm_jax.weights import WeightsError

pytestmark = pytest.mark.usefixtures("mixers")
ARGUMENTS = (
    *(TINY, "--schedule", "learned-log-snr", "--schedule.num-steps", "8"),
    *("--schedule.endpoints", "learned", "--optimizer.learning-rate", "0.1"),
)


def trained(path, **schedule):
    """What is printed by a run in which the schedule moves far within 24 steps."""
    tiny = config.load(TINY)
    printed = io.StringIO()
    ddpm_jax.train(
        dataclasses.replace(
            tiny,
            schedule=config.LearnedLogSNR(num_steps=8, endpoints="learned", **schedule),
            optimizer=config.Adam(learning_rate=0.1, warmup_steps=2),
            evaluation=dataclasses.replace(tiny.evaluation, batch_size=64),
            mesh=config.Jit(data=1),
            workdir=str(path),
        ),
        console=Console(file=printed, width=300),
    )
    return printed.getvalue()


@pytest.fixture(scope="module")
def run(mixers, tmp_path_factory):
    path = tmp_path_factory.mktemp("learned") / "run"
    trained(path)
    return path


@pytest.fixture(scope="module")
def loaded(run):
    return ddpm_jax.load_run(run)


def test_the_schedule_moves_and_its_numbers_are_metrics(run, loaded):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "log_snr_max" in line]
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 24]
    raw = ddpm_jax.load_run(run, params="raw").process
    last = lines[-1]
    np.testing.assert_allclose(
        (last["log_snr_max"], last["log_snr_min"]), raw.log_snr[jnp.array([0, -1])], rtol=1e-6
    )
    assert abs(last["log_snr_max"] - 7.0) > 0.1
    largest = np.max(-np.diff(raw.mean_log_snr())) / np.ptp(raw.mean_log_snr())
    np.testing.assert_allclose(last["largest_log_snr_step"], largest, rtol=1e-5)
    assert loaded.process != raw  # the average moves more slowly


@pytest.mark.thorough
def test_a_schedule_out_of_its_range_is_reported_once(tmp_path):
    printed = trained(tmp_path / "run", log_snr_max=21.0)
    assert printed.count("step 5: log SNR now goes from") == 1
    assert printed.count("log SNR now goes from") == 1


def test_tables_of_parameters_at_hand_are_exact(loaded):
    offsets = {name: np.float64(leaf) for name, leaf in loaded.params["schedule"].items()}
    begin = schedules.monotone(32)
    params = schedules.Monotone(*(getattr(begin, n) + offsets[n] for n in begin._fields))
    high = 7.0 + offsets["log_snr_max"]
    ends = schedules.Endpoints(high, high - 15.0 * np.exp(offsets["log_range"]))
    expected = schedules.from_monotone(
        params, ends, 8, network_positions=(schedules.Endpoints(7.0, -8.0), 8)
    )
    assert loaded.process == expected
    network_params = {"params": loaded.params["params"]}
    x_t, t = jnp.zeros((2, 8, 8, 1)), jnp.array([0.5, 6.25])
    np.testing.assert_array_equal(
        loaded.predict(x_t, t), loaded.network.apply(network_params, x_t, t)
    )


def test_bits_per_dim_are_those_of_the_learned_chain(run, loaded):
    """Of the run's results and of the library's function, with the noise of the evaluation."""
    built = experiment.build_run(RunDirectory(run), loaded.config)
    model, count = trained_model(built), 360
    keys = jax.vmap(jax.random.fold_in, (None, 0))(model.key, jnp.arange(count, dtype=jnp.int32))
    images = built.images.held_out[np.arange(count)].images
    times = jnp.broadcast_to(jnp.arange(8, dtype=jnp.int32)[:, None], (8, count))
    x0 = to_model_range(jnp.asarray(images), 17)
    parts = likelihood.bits_at_times(
        loaded.process, loaded.predict, keys, x0, times, predicts="eps", levels=17
    )
    bits = parts.prior + jnp.sum(parts.per_time, axis=0)
    results = json.loads((run / "results.json").read_text())
    np.testing.assert_allclose(results["bits_per_dim"], np.mean(bits), rtol=1e-5)
    # The number while training goes on is of traced tables, and the same but for rounding.
    whole = config.BitsPerDim(batch_size=360, monitor_images=360, monitor_times=8)
    values = whole.monitor(model)(loaded.params)
    np.testing.assert_allclose(values["held_out_bits_per_dim"], np.mean(bits), rtol=1e-4)


def test_samples_of_the_run_are_those_of_its_exact_chain(loaded):
    key = jax.random.key(3, impl="threefry2x32")
    drawn = loaded.sample(key, 2, sampler=config.DDIM(steps=4, spacing="log_snr"))
    sampler = ddpm_jax.samplers.ddim(loaded.process, loaded.predict, predicts="eps")
    times = ddpm_jax.samplers.time_grid(loaded.process, 4, "log_snr")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(2, dtype=jnp.int32))
    expected = ddpm_jax.samplers.sample(sampler, keys, (2, 8, 8, 1), times).x0
    np.testing.assert_allclose(drawn, expected, atol=1e-4)


def test_a_file_of_weights_has_the_schedule_and_diffusers_cannot_have_it(run, loaded, tmp_path):
    export_file(RunDirectory(run), tmp_path / "a.safetensors", "ema", report=pytest.fail)
    write_run_of_file(tmp_path / "a.safetensors", tmp_path / "copy")
    assert ddpm_jax.load_run(tmp_path / "copy").process == loaded.process
    with pytest.raises(WeightsError, match="schedule is LearnedLogSNR, which is learned"):
        export_diffusers(RunDirectory(run), tmp_path / "b", "ema", report=pytest.fail)


@pytest.mark.thorough
def test_a_run_that_is_stopped_ends_with_the_same_bits(tmp_path):
    finish([*ARGUMENTS, "--workdir", str(tmp_path / "whole")])
    arguments = [*ARGUMENTS, "--workdir", str(tmp_path / "stopped")]
    (process,) = start(arguments)
    for line in process.stdout:
        if "step 12: drawing" in line:
            break
    process.send_signal(signal.SIGTERM)
    (end,) = ended([process], timeout=60)
    assert end.code == 143, end
    assert "resuming from step 12" in finish(arguments)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": config.Simple()}, "schedule is learned, and objective is Simple, whose"),
        ({"times": config.LogNormal()}, "schedule is learned, and times is LogNormal, which is"),
        ({"process": config.Blurring()}, "schedule is learned, and process is Blurring, whose"),
        ({"network": config.EDM()}, "schedule is learned, and network is EDM, which takes"),
        (
            {"schedule": config.LearnedLogSNR(shift_resolution=128)},
            "schedule.shift_resolution is 128; a learned schedule has its ends",
        ),
        (
            {"schedule": config.LearnedLogSNR(log_snr_max=-9.0)},
            r"schedule: endpoints is \(-9.0, -8.0\); the first has to be the larger",
        ),
    ],
)
def test_what_a_learned_schedule_does_not_work_with_is_refused(changes, said):
    given = {"schedule": config.LearnedLogSNR(), "objective": config.ELBO()}
    with pytest.raises(config.ConfigError, match=said):
        config.validate(config.Config(**given | changes))
