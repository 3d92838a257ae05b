"""`evaluate --samples`: images of any program against images or statistics, without a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli import main
from ddpm_jax.evaluation import classifier

pytestmark = pytest.mark.usefixtures("mixers")


def noise(n, seed, shape=(8, 8, 1), top=256):
    return np.random.default_rng(seed).integers(0, top, (n, *shape), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sets of images, and a classifier that was not trained."""
    folder = tmp_path_factory.mktemp("samples")
    np.savez(folder / "samples.npz", noise(40, 0))
    (folder / "images").mkdir()
    for number, image in enumerate(noise(48, 1, top=200)):
        Image.fromarray(image[..., 0]).save(folder / "images" / f"{number}.png")
    params = classifier.Classifier(3).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    classifier.save_classifier(folder / "classifier.npz", params, dataset="noise")
    return folder


def evaluate(folder, *arguments, samples="samples.npz", reference="images"):
    return main(
        [
            *("evaluate", "--samples", str(folder / samples)),
            *("--reference", str(folder / reference)),
            *("--classifier", str(folder / "classifier.npz"), "--batch-size", "64"),
            *map(str, arguments),
        ]
    )


def results_in(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def evaluated(folder):
    assert evaluate(folder) == 0
    return folder / "samples.npz.evaluation"


def test_metrics_with_their_intervals_are_beside_the_samples(evaluated):
    results = results_in(evaluated)
    assert (results["images"], results["image_shape"]) == (40, [8, 8, 1])
    names = [metric["name"] for metric in results["metrics"]]
    assert names[0] == "Frechet distance, noise classifier, 40 samples"
    assert len(names) == 8
    assert results["left_out"] == results["memorization"] == []
    (network,) = results["networks"]
    assert (network["network"], network["images"]) == ("noise classifier", 48)


def test_the_same_command_computes_nothing_twice(folder, evaluated, monkeypatch):
    before = (evaluated / "results.json").read_bytes()
    monkeypatch.setattr("ddpm_jax.experiment.scoring.sums_of", None)
    assert evaluate(folder) == 0
    assert (evaluated / "results.json").read_bytes() == before


def test_stored_statistics_of_images_are_a_reference_like_the_images(
    folder, evaluated, tmp_path, capsys
):
    (statistics,) = (evaluated / "cache").glob("reference_*.npz")
    assert evaluate(folder, "--out", tmp_path, reference=statistics) == 0
    out = capsys.readouterr().out
    assert "the samples are 8x8x1; statistics do not say the size" in out
    assert "compared by noise classifier with" in out
    assert results_in(tmp_path)["metrics"] == results_in(evaluated)["metrics"]


def test_the_reference_itself_and_few_samples_are_told(folder, tmp_path, capsys):
    assert evaluate(folder, "--out", tmp_path / "a", samples="images") == 0
    assert "the samples are the images of the reference" in capsys.readouterr().out
    distance = results_in(tmp_path / "a")["metrics"][0]["value"]
    assert distance == pytest.approx(0.0, abs=1e-9)
    np.savez(tmp_path / "few.npz", noise(3, 5))
    assert evaluate(folder, samples=tmp_path / "few.npz") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "3 samples are not more than the 64 features of noise classifier" in out
    assert "it needs at least 4 samples" in out


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"samples": "wide.npz"}, "the samples are 8x9x1 and the images in"),
        ({"samples": "colours.npz"}, "classes of images 8x8x3: params/Conv_0/kernel"),
        ({"samples": "floats.npz"}, "has dtype float64; samples are uint8"),
        ({"samples": "one.npz"}, "has 1 image; metrics need at least 2"),
        ({"samples": "none"}, "none' do not exist"),
        ({"samples": "empty"}, "has no images"),
        ({"reference": "none.npz"}, "none.npz is missing"),
        ({"reference": "means.npz"}, "does not tell which program wrote it"),
        ({"reference": "damaged.npz"}, "damaged.npz"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(folder, capsys, changes, sentence):
    for name, images in {
        "wide": noise(9, 0, (8, 9, 1)),
        "colours": noise(9, 0, (8, 8, 3)),
        "floats": np.zeros((9, 8, 8, 1)),
        "one": noise(1, 0),
    }.items():
        np.savez(folder / f"{name}.npz", images)
    (folder / "empty").mkdir(exist_ok=True)
    np.savez(folder / "means.npz", mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32))
    (folder / "damaged.npz").write_bytes(b"PK half a file")
    assert evaluate(folder, **changes) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--reference is missing"),
        (["--reference", "images"], "no feature network is named"),
        (["--reference", "images", "--num", "9"], "--num is 9; it is for a run"),
        (["--reference", "images", "--batch-size", "0"], "--batch-size is 0"),
        (
            ["--classifier", "classifier.npz", "--reference", "images", "samples.npz"],
            "--reference names two sets of images",
        ),
    ],
)
def test_wrong_options_are_one_sentence(folder, capsys, monkeypatch, arguments, sentence):
    monkeypatch.chdir(folder)
    assert main(["evaluate", "--samples", "samples.npz", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
