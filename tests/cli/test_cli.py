"""The command as people type it: what it prints, writes, and leaves with."""

import json
import shutil

import jax
import numpy as np
import pytest
from paths import TINY
from PIL import Image
from tensorboardX.proto import event_pb2

from ddpm_jax import training
from ddpm_jax.cli import main
from ddpm_jax.config import Archive, Config, to_json
from ddpm_jax.experiment import RunDirectory, build, post_hoc_params
from ddpm_jax.training import Checkpoints

pytestmark = pytest.mark.usefixtures("mixers")


@pytest.fixture
def run(tiny_run):
    return tiny_run


def failing(capsys, *arguments):
    """Exit code and standard error of a command that ends with one line."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as left:  # by tyro
        code = left.code
    return code, capsys.readouterr().err


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_usage(capsys):
    assert main(["--help"]) == 0
    assert "ddpm-jax train digits" in capsys.readouterr().out
    assert main([]) == 2


@pytest.mark.parametrize("command", ["train", "inspect", "plan"])
def test_help_says_that_a_config_file_is_executed(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "A config file is a Python program that is executed" in capsys.readouterr().out


def test_an_unknown_command(capsys):
    code, said = failing(capsys, "trian")
    assert code == 2
    assert said == (
        "ddpm-jax: the command is 'trian'; it has to be one of train, data, sample, export,"
        " evaluate, compare, weights, configs, list, replay, inspect, plan\n"
    )


def test_training_leaves_everything(run):
    results = json.loads((run / "results.json").read_text())
    assert results["step"] == 24
    assert results["images"] == 360
    assert results["levels"] == 17
    parts = results["prior"] + results["kl"] + results["decoder"]
    assert results["bits_per_dim"] == pytest.approx(parts, rel=1e-5)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == [5, 10, 15, 20, 24]
    assert losses[24] < losses[5]
    assert [line["step"] for line in lines if "held_out_loss" in line] == [4, 8, 12, 16, 20, 24]
    numbers = {line["step"]: line for line in lines if "held_out_bits_per_dim" in line}
    assert list(numbers) == [8, 16, 24]
    assert numbers[24]["held_out_images"] == 256
    off = numbers[24]["held_out_bits_per_dim"] - results["bits_per_dim"]  # of 360 images
    assert abs(off) < 4.0 * numbers[24]["held_out_bits_per_dim_error"]
    assert {path.name for path in (run / "pictures").iterdir()} == {
        f"{kind}_{step:07d}.png" for kind in ("samples", "strip") for step in (12, 24)
    }
    # The newest two, and the best one, which here may be among them.
    assert Checkpoints(run / "checkpoints", read_only=True).steps()[-2:] == [20, 24]


def test_pictures_have_the_right_size(run):
    cell, border = 64 + 2, 2
    assert size_of(run / "pictures" / "samples_0000024.png") == (2 * cell + border,) * 2
    # T = 8 times, 4 images
    assert size_of(run / "pictures" / "strip_0000024.png") == (8 * cell + border, 4 * cell + border)


def test_tensorboard_has_scalars_and_images(run):
    tags = set()
    for path in (run / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            tags |= {value.tag for value in event.summary.value}
            data = data[16 + length :]
    assert tags >= {
        "loss",
        "held_out_loss",
        "held_out_bits_per_dim",
        "steps_per_second",
        "samples",
        "strip",
    }


def test_a_finished_run_says_so_and_changes_nothing(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["train", TINY, "--mesh.data", "1", "--workdir", str(run)]) == 0
    out = capsys.readouterr().out
    assert "is finished" in out
    assert "bits/dim" in out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_evaluate_repeats_the_results(run, capsys):
    assert main(["evaluate", str(run), "--num", "0"]) == 0
    results = json.loads((run / "results.json").read_text())
    out = capsys.readouterr().out
    assert f"{results['bits_per_dim']:.3f}" in out
    assert "4.087" in out
    assert f"{results['histogram']:.3f}" in out


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_sample_writes_arrays(run, tmp_path, sampler):
    out = tmp_path / "samples.npz"
    arguments = ["--num", "5", "--sampler", sampler, "--sampler.steps", "4", "--out", str(out)]
    assert main(["sample", str(run), *arguments]) == 0
    arrays = np.load(out)
    assert arrays["images"].shape == (5, 8, 8, 1)
    assert arrays["images"].dtype == np.uint8
    assert arrays["images"].max() <= 16
    assert int(arrays["levels"]) == 17


def test_a_step_is_replayed(run, tmp_path):
    written = tmp_path / "replay.json"
    assert main(["replay", str(run), "--step", "1", "--json", str(written)]) == 0
    losses = json.loads(written.read_text())["losses"]
    assert len(losses) == 16
    assert np.isfinite(losses).all()


def test_sampling_opens_no_data_set(run, tmp_path):
    moved, out = tmp_path / "moved", tmp_path / "samples.npz"
    shutil.copytree(run, moved)
    config = json.loads((moved / "config.json").read_text())
    config["data"] = to_json(Config(data=Archive("/nowhere.npz")))["data"]
    (moved / "config.json").write_text(json.dumps(config))
    assert (
        main(["sample", str(moved), "--num", "3", "--sampler.steps", "2", "--out", str(out)]) == 0
    )
    assert np.load(out)["images"].shape == (3, 8, 8, 1)


def test_samples_follow_from_the_seed_and_not_from_their_number(run, tmp_path):
    def sample(num, seed):
        out = tmp_path / "samples.npz"
        arguments = [
            "--num",
            str(num),
            "--seed",
            str(seed),
            "--sampler.steps",
            "2",
            "--out",
            str(out),
        ]
        assert main(["sample", str(run), *arguments]) == 0
        return np.load(out)["images"]

    few, many = sample(3, seed=1), sample(11, seed=1)
    np.testing.assert_array_equal(few, many[:3])
    assert (sample(3, seed=2) != few).any()


def test_sample_draws_a_grid(run, tmp_path):
    out = tmp_path / "grid.png"
    assert main(["sample", str(run), "--num", "4", "--sampler.steps", "2", "--out", str(out)]) == 0
    assert size_of(out) == (134, 134)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", TINY, "--train.stepz", "3"], ["--train.stepz", "--train.steps"]),
        (["train", TINY, "--train.steps", "many"], ["--train.steps", "many"]),
        (
            ["train", TINY, "--schedule", "cosin"],
            ["--schedule is 'cosin'", "(did you mean cosine?)"],
        ),
        (["train", TINY, "--process", "blur"], ["--process is 'blur'", "isotropic, blurring, "]),
        (["train", TINY, "--process.max-blur", "1"], ["--process.max-blur"]),
        (
            ["train", TINY, "--process", "blurring", "--process.max-blur", "-1"],
            ["process.max_blur is -1.0; it has to be 0 or more, in pixels"],
        ),
        (["train", TINY, "--data", "folder"], ["--data.path"]),
        (["train", TINY, "--sampler"], ["--sampler needs one of ancestral, ddim, "]),
        (["list", "samplers"], ["the family is 'samplers'", "(did you mean sampler?)"]),
        (
            ["train", TINY, "--process", "blurring", "--schedule.zero-terminal-snr"],
            ["network.predicts", "no signal at t = T - 1"],
        ),
        (["train"], ["wants a config first"]),
        (["train", "configs/absent.py"], ["'configs/absent.py' does not exist"]),
        (["train", TINY, "--schedule.num-steps", "1"], ["num_steps is 1"]),
        (["train", TINY, "--train.batch-size", "12"], ["train.batch_size is 12", "8 devices"]),
        (["train", TINY, "--network.multipliers", "1", "1", "1", "1", "1"], ["8x8"]),
        (["train", TINY, "--data", "digitz"], ["--data is 'digitz'", "did you mean digits?"]),
        (["train", TINY, "--mesh.data", "64"], ["mesh.data is 64"]),
        (["inspect", TINY, "--network.multipliers", "1", "1", "1", "1", "1"], ["8x8"]),
        (["sample", "absent"], ["'absent' is not a run directory"]),
        (["evaluate", "absent"], ["'absent' is not a run directory"]),
    ],
)
def test_bad_input_is_a_sentence_and_leaves_nothing(arguments, said, tmp_path, capsys):
    if len(arguments) > 1 and arguments[0] == "train":
        arguments = [*arguments, "--workdir", str(tmp_path / "run")]
    code, error = failing(capsys, *arguments)
    assert code == 2
    for part in said:
        assert part in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "grid.jpeg"], "has to end in .png or .npz"),
        (["--out", "absent/grid.png"], "there is no folder absent"),
        (["--num", "0"], "--num is 0"),
        (["--out", ".png"], "has to end in"),
        (["--seed", "-1"], "--seed is -1"),
        (["--seed", "99999999999999999999"], "--seed is 99999999999999999999"),
        (
            ["--sampler.steps", "9"],
            "sampler.steps is 9; it has to be at most schedule.num_steps, 8",
        ),
        (["--sampler", "euler"], "--sampler is 'euler'; it has to be one of ancestral, ddim, "),
    ],
)
def test_sample_refuses(run, arguments, said, capsys):
    code, error = failing(capsys, "sample", run, *arguments)
    assert code == 2
    assert said in error


def test_a_run_of_another_config_is_left_alone(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, error = failing(
        capsys, "train", TINY, "--mesh.data", "1", "--workdir", run, "--train.batch-size", "32"
    )
    assert code == 2
    assert "train.batch_size was 16 and is 32" in error
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.thorough
def test_divergence_stops_with_the_step_and_keeps_good_checkpoints(tmp_path, capsys):
    """A learning rate that overflows float32 at its first full use, after one save."""
    run = tmp_path / "run"
    arguments = ["--optimizer.learning-rate", "1e38", "--optimizer.warmup-steps", "6"]
    arguments += ["--train.save-every", "1", "--mesh.data", "1", "--workdir", str(run)]
    code, error = failing(capsys, "train", TINY, *arguments)
    assert code == 1
    assert "NaN or Inf at step" in error
    stopped = int(error.split("at step ")[1].split(";")[0])
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        steps = checkpoints.steps()
        assert steps
        assert steps[-1] < stopped
    assert not (run / "results.json").exists()


def test_a_run_of_another_mesh_can_be_sampled(run, tmp_path):
    """Trained on more devices than there are here, with a batch that this machine cannot split."""
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    config = json.loads((moved / "config.json").read_text())
    config["mesh"]["data"], config["train"]["batch_size"] = 512, 511
    (moved / "config.json").write_text(json.dumps(config))
    out = tmp_path / "grid.png"
    assert (
        main(["sample", str(moved), "--num", "4", "--sampler.steps", "2", "--out", str(out)]) == 0
    )


def test_what_the_system_refuses_is_a_line(run, tmp_path, capsys):
    (tmp_path / "out.png").mkdir()
    code, error = failing(capsys, "sample", run, "--out", tmp_path / "out.png")
    assert (code, "which is a folder" in error) == (2, True)
    (tmp_path / "file").write_text("")
    code, error = failing(capsys, "train", TINY, "--workdir", tmp_path / "file" / "run")
    assert code == 2
    assert "cannot be created" in error
    assert "Traceback" not in error


def test_nothing_is_compiled_before_a_refusal(tmp_path, capsys, monkeypatch):
    def compiled(*args, **kwargs):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(jax, "jit", compiled)
    for arguments in (
        ["--schedule.beta-max", "2", "--schedule", "linear"],
        ["--train.batch-size", "12"],
        ["--data", "folder", "--data.path", "absent"],
    ):
        code, _ = failing(capsys, "train", TINY, *arguments, "--workdir", tmp_path / "run")
        assert code == 2


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run that kept averages of two widths, of its 24 steps at 6, 12, 18 and 24."""
    directory = tmp_path_factory.mktemp("kept") / "run"
    arguments = [
        "--averages",
        "post-hoc-ema",
        "--averages.widths",
        "0.05",
        "0.1",
        "--averages.every",
        "6",
    ]
    assert main(["train", TINY, "--mesh.data", "1", "--workdir", str(directory), *arguments]) == 0
    return directory


@pytest.mark.thorough
class TestPostHocAverages:
    def test_a_stored_width_is_given_back_and_others_lie_around_it(self, kept):
        directory = RunDirectory(kept)
        built = build(directory.read_config())
        assert list(training.list_snapshots(directory.snapshots)) == [6, 12, 18, 24]
        with Checkpoints(directory.checkpoints, read_only=True) as checkpoints:
            state = checkpoints.restore(built.abstract_state).state
        for place, width in enumerate((0.05, 0.1), start=1):
            found, step = post_hoc_params(built, directory, width)
            assert step == 24
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
                found,
                state.averages[place],
            )

    def test_samples_are_drawn_from_a_width_of_ones_own(self, kept, tmp_path):
        pictures = []
        for width in ("0.07", "0.2"):
            out = tmp_path / f"{width}.npz"
            arguments = [
                "--num",
                "4",
                "--sampler.steps",
                "2",
                "--out",
                str(out),
                "--sigma-rel",
                width,
            ]
            assert main(["sample", str(kept), *arguments]) == 0
            pictures.append(np.load(out)["images"])
        assert (pictures[0] != pictures[1]).any()

    @pytest.mark.parametrize("width", ["0", "0.3", "-1"])
    def test_a_width_that_no_average_has(self, kept, capsys, width):
        code, said = failing(capsys, "evaluate", kept, "--sigma-rel", width)
        assert code == 2
        assert f"sigma_rel is {float(width)}; it has to be in (0, 0.2887]" in said

    def test_a_run_that_kept_none(self, run, capsys):
        code, said = failing(capsys, "evaluate", run, "--sigma-rel", "0.1")
        assert code == 2
        assert "has no snapshots" in said
        assert "--averages post-hoc-ema" in said
