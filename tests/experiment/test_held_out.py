"""The measurement on held-out images: bounded, stored batch by batch and image by image."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from rich.console import Console

from ddpm_jax.experiment import build, initial_state, trained_model
from ddpm_jax.experiment.held_out import measure_held_out, save_per_image
from ddpm_jax.npz import load_npz

pytestmark = pytest.mark.usefixtures("mixers")
_BATCH = 100


@pytest.fixture(scope="module")
def experiment():
    return experiment_with()


def experiment_with(**evaluation):
    config = tiny.get_config()
    evaluation = dataclasses.replace(config.evaluation, batch_size=_BATCH, **evaluation)
    return build(dataclasses.replace(config, evaluation=evaluation), devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def params(experiment):
    return initial_state(experiment).params


def measure(experiment, params, folder, report=print):
    model = trained_model(experiment)
    return measure_held_out(folder, experiment.config.evaluation, model, params, "0", report)


@pytest.fixture(scope="module")
def whole(experiment, params, tmp_path_factory):
    return measure(experiment, params, tmp_path_factory.mktemp("whole"))


def test_an_interrupted_measurement_continues_where_it_was(
    experiment, params, whole, tmp_path, monkeypatch
):
    from ddpm_jax.evaluation import likelihood

    read, genuine = [], likelihood._placed

    def dies(source, first, *rest, **how):
        read.append(first)
        if len(read) == 3:
            raise KeyboardInterrupt
        return genuine(source, first, *rest, **how)

    monkeypatch.setattr(likelihood, "_placed", dies)
    with pytest.raises(KeyboardInterrupt):
        measure(experiment, params, tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path.name for path in files] == ["images_0000000_100.npz", "images_0000100_100.npz"]
    content = bytearray(files[1].read_bytes())
    content[len(content) // 2] ^= 1
    files[1].write_bytes(content)
    lines = []
    assert measure(experiment, params, tmp_path, lines.append) == whole
    assert read == [0, 100, 200, 100, 200, 300]
    assert lines == [f"{str(files[1])!r} is damaged; computed again"]
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_of_many_images_a_bounded_number_is_measured_spread_evenly(params, whole, tmp_path):
    experiment = experiment_with(held_out_images=41, likelihood_times=4)
    measured = measure(experiment, params, tmp_path)
    results = measured.plain["results"]
    assert results["images"] == len(measured.per_image) == 41
    save_per_image(tmp_path / "bits.npz", experiment, measured, {"step": 7})
    arrays, sound = load_npz(tmp_path / "bits.npz", most_bytes=10_000)
    assert sound
    assert set(np.diff(arrays["numbers"])) <= {8, 9}
    assert arrays["numbers"][[0, -1]].tolist() == [0, 359]
    np.testing.assert_array_equal(arrays["bits_per_dim"], measured.per_image)
    about = json.loads(arrays["about"].item())
    assert about["fingerprint"] == experiment.images.fingerprint
    assert (about["held_out_images"], about["num_times"], about["step"]) == (360, 4, 7)
    # All of them, at all times: within 4 standard errors of the few (two-sided, 6e-5).
    all_of_them = whole.plain["results"]
    assert abs(results["bits_per_dim"] - all_of_them["bits_per_dim"]) < 4 * np.hypot(
        results["standard_error"], all_of_them["standard_error"]
    )
    baselines = {"uniform": 4.0, "histogram": 3.0, "histogram_images": 1437}
    summary = {"step": 7, "held_out_images": 360, **results, **baselines}
    console = Console(record=True, width=100)
    console.print(experiment.config.evaluation.table(summary))
    assert "41 of 360 held-out images" in console.export_text()


def test_the_numbers_of_each_image_have_the_mean_of_all(whole):
    bits, results = np.array(whole.per_image), whole.plain["results"]
    assert bits.shape == (360,)
    assert bits.mean() == pytest.approx(results["bits_per_dim"])
    assert bits.std(ddof=1) / np.sqrt(360) == pytest.approx(results["standard_error"])
