"""Evaluation of a run: nothing depends on how it is computed, and nothing is computed twice."""

import contextlib
import io
import json

import numpy as np
import pytest
import tiny

from ddpm_jax.cli import main
from ddpm_jax.data import read_digits
from ddpm_jax.evaluation import (
    classifier,
    load_reference,
    save_reference,
)
from ddpm_jax.evaluation import likelihood as likelihoods

pytestmark = pytest.mark.usefixtures("mixers")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """With classifiers that are trained for a tenth of the time."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", tiny.__file__, "--workdir", str(directory)]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "_STEPS", 150)
        patch.setattr(classifier, "_BATCH", 64)
        yield directory


@pytest.fixture(scope="module")
def evaluated(run):
    """The folder of a whole evaluation, and what was said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert evaluate(run) == 0
    return run / "evaluation" / "step_0000024", said.getvalue()


def evaluate(run, *arguments):
    return main(["evaluate", str(run), "--num", "40", *arguments])


def test_an_evaluation_is_a_table_json_and_pictures(run, evaluated):
    folder, said = evaluated
    for part in ("step 24, ema", "step 24, raw", "Frechet distance", "40 samples by Ancestral"):
        assert part in said
    assert "FID" not in said
    assert "terms of the ELBO" in said
    assert "nearer to a training image" in said
    pictures = {"elbo_per_t.png", "training.png", "samples_ema.png", "samples_raw.png"}
    pictures |= {"neighbours_ema.png", "neighbours_raw.png"}
    bits = {"bits_per_image_ema.npz", "bits_per_image_raw.npz"}
    assert {path.name for path in folder.iterdir()} == pictures | bits | {"results.json", "cache"}
    results = json.loads((folder / "results.json").read_text())
    (network,) = results["networks"]
    assert network["network"] == "digits classifier"
    assert network["images"] == 1437
    assert network["held_out_accuracy"] > 0.9
    assert len(results["params"]["ema"]["per_time"]["mean"]) == 8
    stored = json.loads((run / "results.json").read_text())
    final = results["params"]["ema"]["results"]
    assert final["bits_per_dim"] == pytest.approx(stored["bits_per_dim"], rel=1e-6)
    names = [score["name"] for score in results["params"]["raw"]["metrics"]]
    kinds = ["Frechet distance", "Frechet distance at infinity", "kernel distance", "precision"]
    kinds += ["recall", "density", "coverage", "classifier score"]
    assert names == [f"{kind}, digits classifier, 40 samples" for kind in kinds]
    for score in results["params"]["raw"]["metrics"]:
        assert set(score) == {"name", "value", "low", "high", "note", "held_out", "halves"}
        assert score["note"]
    near = {near["distance"] for near in results["params"]["raw"]["memorization"]}
    assert near == {"pixels", "digits classifier"}


@pytest.mark.thorough
def test_nothing_long_is_done_twice(run, evaluated, monkeypatch):
    folder, _ = evaluated
    before = (folder / "results.json").read_bytes()
    for module, name in [
        ("evaluation.likelihood.bits_at_times", None),
        ("evaluation.likelihood.baselines", None),
        ("experiment.sample_files.make_drawer", lambda *args, **kwargs: None),
        ("experiment.evaluate.classifiers.train_classifier", None),
        ("experiment.scoring.sums_of", None),
    ]:
        monkeypatch.setattr(f"ddpm_jax.{module}", name)
    assert evaluate(run) == 0
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.thorough
def test_an_evaluation_of_damaged_files_says_so_and_has_the_same_results(run, evaluated, capsys):
    folder, _ = evaluated
    before = (folder / "results.json").read_bytes()
    files = [path for path in (folder / "cache").rglob("*") if path.is_file()]
    files = [path for path in files if path.name != "settings.json"]
    # Baselines, classifier, reference, floors; likelihood, samples and scores of two.
    assert len(files) == 10
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert evaluate(run) == 0
    said = capsys.readouterr().out.splitlines()
    for path in files:
        assert len([line for line in said if str(path) in line and "again" in line]) == 1, path
    assert (folder / "results.json").read_bytes() == before
    assert evaluate(run) == 0
    assert "again\n" not in capsys.readouterr().out


@pytest.mark.thorough
def test_the_batch_size_changes_no_result(run, evaluated, tmp_path, monkeypatch):
    seen, genuine = set(), likelihoods._placed

    def placed(source, first, items, size, *rest, **how):
        seen.add(size)
        return genuine(source, first, items, size, *rest, **how)

    monkeypatch.setattr(likelihoods, "_placed", placed)
    told = [
        "--num",
        "0",
        "--evaluation.batch-size",
        "48",
        "--params",
        "ema",
        "--out",
        str(tmp_path),
    ]
    assert main(["evaluate", str(run), *told]) == 0
    assert seen == {48}
    found, whole = (
        json.loads((folder / "results.json").read_text())["params"]["ema"]["results"]
        for folder in (tmp_path, evaluated[0])
    )
    for name in ("bits_per_dim", "standard_error", "kl", "decoder", "prior"):
        assert found[name] == pytest.approx(whole[name], rel=1e-5)


@pytest.mark.thorough
def test_one_kind_of_parameters_elsewhere_and_without_samples(run, tmp_path, capsys):
    folder = tmp_path / "here"
    assert main(["evaluate", str(run), "--params", "raw", "--num", "0", "--out", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert list(results["params"]) == ["raw"]
    assert "networks" not in results
    assert {path.name for path in folder.iterdir()} == {
        *("elbo_per_t.png", "training.png", "results.json", "cache", "bits_per_image_raw.npz")
    }
    assert "Frechet" not in capsys.readouterr().out


def refused(capsys, *arguments):
    code = main(["evaluate", *map(str, arguments)])
    said = capsys.readouterr().err
    assert code == 2
    assert said.count("\n") == 1, said
    return said


def test_what_cannot_be_evaluated_is_told(run, tmp_path, capsys):
    assert "--num is -1" in refused(capsys, run, "--num", "-1")
    assert "--num is 1;" in refused(capsys, run, "--num", "1")
    assert "--seeds is 0" in refused(capsys, run, "--seeds", "0")
    assert "--seeds is 2" in refused(capsys, run, "--seeds", "2", "--seed", str(2**32 - 1))
    for option, value, part in [
        ("steps", "9", "sampler.steps is 9; it has to be at most schedule.num_steps, 8"),
        ("guidance", "2", "sampler.guidance is 2.0; it has to be 1 if network.classes is 0"),
        ("guidance", "nan", "sampler.guidance is nan"),
    ]:
        assert part in refused(capsys, run, f"--sampler.{option}", value)
    assert "evaluation.likelihood_times is 9; it has to be at most" in refused(
        capsys, run, "--evaluation.likelihood-times", "9"
    )
    assert "does not exist" in refused(
        capsys, run, "--num", "4", "--classifier", tmp_path / "none.npz"
    )
    (tmp_path / "bad.npz").write_bytes(b"PK half a file")
    assert "cannot be read" in refused(
        capsys, run, "--num", "4", "--classifier", tmp_path / "bad.npz"
    )
    assert "weights.pth" in refused(
        capsys, run, "--num", "4", "--inception", tmp_path / "weights.pth"
    )


@pytest.mark.thorough
def test_several_seeds_have_a_mean_and_each_its_own_numbers(run, evaluated, tmp_path, capsys):
    classifier_file = evaluated[0] / "cache" / "classifier.npz"
    told = ["--params", "ema", "--seeds", "2", "--classifier", str(classifier_file)]
    assert evaluate(run, *told, "--out", str(tmp_path)) == 0
    assert "40 samples by Ancestral in all steps, 2 seeds" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())["params"]["ema"]
    assert [seed["seed"] for seed in results["seeds"]] == [0, 1]
    first, second = (
        {metric["name"]: metric["value"] for metric in seed["metrics"]} for seed in results["seeds"]
    )
    alone = json.loads((evaluated[0] / "results.json").read_text())["params"]["ema"]["metrics"]
    assert first == {metric["name"]: pytest.approx(metric["value"]) for metric in alone}
    for metric in results["metrics"]:
        values = first[metric["name"]], second[metric["name"]]
        assert metric["value"] == pytest.approx(np.mean(values))
        # Of two values, the standard error is half of their difference; Student's t is 12.7.
        half = abs(values[0] - values[1]) / 2
        assert metric["standard_error"] == pytest.approx(half)
        assert metric["high"] - metric["value"] == pytest.approx(12.7062 * half, rel=1e-4)


@pytest.mark.thorough
def test_a_run_as_samples_is_compared_without_its_data_set(run, evaluated, tmp_path, monkeypatch):
    cache = evaluated[0] / "cache"
    (reference,) = cache.glob("reference_*.npz")
    told = ["--samples", run, "--num", 40, "--reference", reference, "--out", tmp_path]
    told += ["--classifier", cache / "classifier.npz", "--batch-size", 128]
    # They are drawn already.
    monkeypatch.setattr("ddpm_jax.experiment.sample_files.make_drawer", lambda *a, **k: None)
    assert main(["evaluate", *map(str, told)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())["metrics"]
    expected = json.loads((evaluated[0] / "results.json").read_text())["params"]["ema"]["metrics"]
    for one, other in zip(found, expected, strict=True):
        assert one == other | {"held_out": None}


@pytest.mark.thorough
def test_statistics_of_other_images_are_refused(run, evaluated, tmp_path, capsys):
    folder = tmp_path / "here"
    asked = [run, "--params", "ema", "--num", "4", "--out", folder]
    asked += ["--classifier", evaluated[0] / "cache" / "classifier.npz"]
    assert main(["evaluate", *map(str, asked)]) == 0
    (path,) = (folder / "cache").glob("reference_*.npz")
    stored = load_reference(path)
    for field, value in [("split", "test"), ("preprocessing", "resized"), ("images", 7)]:
        save_reference(
            path, stored._replace(provenance=stored.provenance._replace(**{field: value}))
        )
        assert f"{field} is {value!r} in one of the statistics" in refused(capsys, *asked)


@pytest.mark.thorough
def test_without_labels_there_is_no_classifier(tmp_path, capsys):
    digits = read_digits()
    archive = tmp_path / "images.npz"
    np.savez(
        archive,
        train_images=digits.train.images,
        test_images=digits.held_out.images[:40],
        levels=17,
    )
    run = tmp_path / "run"
    assert (
        main(
            [
                *("train", tiny.__file__, "--data", "archive", "--data.path", str(archive)),
                *("--train.steps", "2"),
                *("--workdir", str(run)),
            ]
        )
        == 0
    )
    assert evaluate(run) == 0
    said = capsys.readouterr().out
    reason = "no metrics of samples: images has no labels, so there is no classifier"
    assert said.index("terms of the ELBO") < said.index(reason) < said.index("nearer to a training")
    assert "held out" not in said[said.index("terms of the ELBO") :]
    results = json.loads((run / "evaluation" / "step_0000002" / "results.json").read_text())
    assert results["no_metrics"].startswith(reason)
    assert results["networks"] == []
    assert results["params"]["ema"]["metrics"] == []


@pytest.mark.thorough
def test_sampling_in_batches_is_sampling(run, tmp_path):
    files = []
    for size in ("5", "2"):
        files.append(tmp_path / f"{size}.npz")
        told = ["--num", "5", "--batch-size", size, "--out", str(files[-1])]
        assert main(["sample", str(run), *told]) == 0
    first, second = (np.load(file)["images"] for file in files)
    assert first.shape == (5, 8, 8, 1)
    assert np.mean(first != second) <= 0.01
