"""Commands on runs with classes: labels, guidance, and what they refuse."""

import json
import re

import numpy as np
import pytest
from paths import TINY

from ddpm_jax.cli import main
from ddpm_jax.experiment import RunDirectory

pytestmark = pytest.mark.usefixtures("mixers")


def train(folder, *more):
    quick = ["--objective", "simple", "--times", "uniform", "--train.steps", "2"]
    quick += ["--train.draw-every", "2", "--evaluation.likelihood-times", "2", "--mesh.data", "1"]
    assert main(["train", TINY, *quick, *more, "--workdir", str(folder)]) == 0
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "told", "--network.classes", "10")


@pytest.fixture(scope="module")
def untold(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "untold")


NO_CLASSES = "is for runs with classes; this one has none"


class TestCommands:
    def sample(self, run, tmp_path, *more):
        out = tmp_path / "samples.npz"
        asked = ["--num", "4", "--sampler.steps", "2", "--out", str(out), *more]
        assert main(["sample", run, *asked]) == 0
        return np.load(out)["images"]

    @pytest.mark.thorough
    def test_sample_takes_a_label_and_guidance(self, run, tmp_path):
        images = self.sample(run, tmp_path, "--label", "3", "--sampler.guidance", "2")
        assert images.shape == (4, 8, 8, 1)
        # Image i of this key is the fourth class's in its turn, too.
        turns = self.sample(run, tmp_path, "--sampler.guidance", "2")
        np.testing.assert_array_equal(turns[3], images[3])

    def test_training_ends_with_its_likelihood(self, run):
        results = json.loads((RunDirectory(run).results).read_text())
        assert np.isfinite(results["bits_per_dim"])

    @pytest.mark.parametrize(
        ("kind", "arguments", "said"),
        [
            ("run", ["--label", "10"], "--label is '10'; the run has the classes 0, 1, 2,"),
            ("run", ["--label", "-1"], "--label is '-1'; the run has the classes 0, 1, 2,"),
            (
                "run",
                ["--sampler.guidance", "nan"],
                "sampler.guidance is nan; it has to be a number",
            ),
            pytest.param("untold", ["--label", "0"], NO_CLASSES, marks=pytest.mark.thorough),
            pytest.param(
                "untold",
                ["--sampler.guidance", "2"],
                "guidance is 2.0; it has to be 1",
                marks=pytest.mark.thorough,
            ),
        ],
    )
    def test_sample_refuses(self, kind, arguments, said, request, tmp_path, capsys):
        run = request.getfixturevalue(kind)
        capsys.readouterr()
        out = ["--out", str(tmp_path / "a.npz")]
        assert main(["sample", run, *arguments, *out]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error

    @pytest.mark.thorough
    def test_evaluate_refuses_guidance_without_classes(self, untold, capsys):
        assert main(["evaluate", untold, "--sampler.guidance", "2"]) == 2
        error = capsys.readouterr().err
        said = "sampler.guidance is 2.0; it has to be 1 if network.classes is 0"
        assert error == f"ddpm-jax: {said}\n"

    def test_inspect_counts_the_table(self, capsys):
        counts = []
        for classes in (0, 10):
            assert main(["inspect", TINY, "--network.classes", str(classes)]) == 0
            (total,) = (line for line in capsys.readouterr().out.splitlines() if "total" in line)
            counts.append(
                [int(number.replace(",", "")) for number in re.findall(r"[\d,]{3,}", total)]
            )
        # A Mixer has vectors of 8 numbers for ten classes and for none.
        assert counts[1][0] - counts[0][0] == 11 * 8
