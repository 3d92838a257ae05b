"""A sampler as one program: the images of `sample`, on JAX alone; all files or none."""

import dataclasses
import os
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import jaxtyping
import numpy as np
import open_house
import pytest
import tiny
from disks import fill
from marks import thorough_but

from ddpm_jax import config
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import (
    build,
    export_sampler,
    image_spec_of,
    initial_state,
    make_drawer,
    sampler_files,
    sampler_program,
)
from ddpm_jax.experiment.sampler_program import named_params

DDIM = config.DDIM(steps=3)
PAGE = 4096
"""Bytes that a disk in memory has at least for a file."""
KEY = jax.random.key(7, impl="threefry2x32")


make_unet = config.UNet.make
pytestmark = pytest.mark.usefixtures("mixers")


@pytest.fixture(scope="module", autouse=True)
def _sizes_are_symbols():
    """Annotations have int for a batch size, which is a symbol here."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def unets(monkeypatch):
    monkeypatch.setattr(config.UNet, "make", make_unet)


def experiment_of(own=None, **network):
    own = own or tiny.get_config()
    own = dataclasses.replace(own, network=dataclasses.replace(own.network, **network))
    spec = None if isinstance(own.data, open_house.Checks) else image_spec_of(own)
    return build(own, spec=spec, devices=jax.devices()[:1])


def moved_params(experiment):
    """As training might leave them: none is zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.05 * rng.standard_normal(leaf.shape, np.float32),
        jax.device_get(initial_state(experiment).params),
    )


def numbers(count, first=0):
    return np.arange(first, first + count, dtype=np.int32)


def assert_same_images(images, expected):
    """Up to a level on the edge: sums may be taken in another order."""
    assert images.dtype == np.uint8
    assert images.shape == expected.shape
    assert np.mean(images != expected) <= 0.002
    assert np.abs(images.astype(int) - expected).max() <= 1
    assert len({image.tobytes() for image in expected}) == len(expected)


# The files


ALONE = """
import pathlib, sys
import jax, jax.export, numpy as np
images = {}
for folder in ("inside", "beside"):
    example = (pathlib.Path(folder) / "README.md").read_text()
    example = example.partition("```python\\n")[2].partition("```")[0]
    example = example.replace("open(\\"", f"open(\\"{folder}/")
    space = {}
    exec(example, space)
    images[folder] = space["images"]
    params = [space["params"]] if "params" in space else []
    key = np.array([0, 7], np.uint32)
    index = np.arange(3, 8, dtype=np.int32)
    images[f"{folder}_7"] = np.asarray(jax.jit(space["sampler"].call)(*params, key, index))
assert not [name for name in sys.modules if name.startswith(("ddpm_jax", "flax"))]
np.savez("images.npz", **images)
"""
"""The example of each README, and images 3 to 7 of the key of seed 7."""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory, mixers):
    """A folder with two artifacts, and what drew their images."""
    folder = tmp_path_factory.mktemp("artifacts")
    experiment = experiment_of()
    params = moved_params(experiment)
    for parameters in ("inside", "beside"):
        (folder / parameters).mkdir()
        export_sampler(
            experiment,
            params,
            folder / parameters / "sampler.bin",
            sampler=DDIM,
            parameters=parameters,
            origin="run a|b, step 1",
        )
    return folder, experiment, params


def test_a_process_with_jax_alone_draws_the_images_of_sample(artifacts):
    folder, experiment, params = artifacts
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE],
        cwd=folder,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("(16, 8, 8, 1) uint8") == 2
    images = np.load(folder / "images.npz")
    for name in ("inside", "inside_7"):
        np.testing.assert_array_equal(images[name], images[name.replace("in", "be", 1)])
    draw = make_drawer(experiment, num=16, sampler=DDIM)
    assert_same_images(images["inside"], draw(params, jax.random.key(0)).images)
    assert_same_images(images["inside_7"], draw(params, KEY).images[3:8])


def test_the_files_of_an_artifact(artifacts):
    folder, _, _ = artifacts
    inside, beside = folder / "inside", folder / "beside"
    assert {path.name for path in inside.iterdir()} == {"README.md", "sampler.bin"}
    assert {path.name for path in beside.iterdir()} == {
        *("README.md", "sampler.bin", "sampler.safetensors")
    }
    program = jax.export.deserialize(bytearray((inside / "sampler.bin").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert [str(aval) for aval in program.in_avals] == ["uint32[2]", "int32[b]"]
    text = (beside / "README.md").read_text()
    assert r"run a\|b, step 1" in text
    sums = dict(re.findall(r"^    ([0-9a-f]{64})  (.*)$", text, re.MULTILINE))
    assert sorted(sums.values()) == ["sampler.bin", "sampler.safetensors"]
    check = "".join(f"{digest}  {name}\n" for digest, name in sums.items())
    subprocess.run(["sha256sum", "--check"], input=check, text=True, cwd=beside, check=True)


def test_a_program_says_nothing_of_the_machine_that_wrote_it(artifacts):
    folder, _, _ = artifacts
    for path in folder.glob("*/sampler.bin"):
        assert b".py" not in path.read_bytes()


def test_the_readme_of_somebody_else_stays(artifacts, tmp_path):
    _, experiment, params = artifacts
    (tmp_path / "README.md").write_text("mine")
    files = export_sampler(
        experiment, params, tmp_path / "a.bin", sampler=DDIM, origin="", platforms=("cpu",)
    )
    assert files.readme == tmp_path / "a.README.md"
    assert files.readme.read_text().startswith("# a.bin\n")
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("sampler", "its name has to end in .bin"),
        ("absent/sampler.bin", "there is no folder"),
        ("there.bin", "there.bin' exists already"),
        ("dangling.bin", "dangling.bin' exists already"),
        ("new.bin", "new.safetensors' exists already"),
    ],
)
def test_files_that_cannot_be_written_are_refused(tmp_path, name, what):
    (tmp_path / "there.bin").write_bytes(b"")
    (tmp_path / "dangling.bin").symlink_to(tmp_path / "nowhere")
    (tmp_path / "new.safetensors").mkdir()
    with pytest.raises(UserError, match=f"^out is '.*{what}"):
        sampler_files(tmp_path / name, "beside")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_full_disk_gets_all_or_nothing(artifacts, disk, count):
    """So many files fit, and not the next one."""
    folder, experiment, params = artifacts
    files = ("sampler.bin", "sampler.safetensors", "README.md")
    sizes = [(folder / "beside" / name).stat().st_size for name in files[:count]]
    fill(disk, leaving=sum(-(-size // PAGE) * PAGE for size in sizes))
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        export_sampler(
            experiment, params, disk / files[0], sampler=DDIM, parameters="beside", origin=""
        )
    assert [path.name for path in disk.iterdir()] == ["other people's"]


# The program


def program_and_drawer(experiment, params, sampler, num, *, label=None, **options):
    program = sampler_program(experiment, params, sampler=sampler, label=label, **options)
    draw = make_drawer(experiment, num=num, sampler=sampler, label=label)
    return jax.jit(program.call), draw(params, KEY).images


CLASSES = {"classes": 10}
CASES = {
    "ancestral": (config.Ancestral(), {}),
    "stochastic": (config.DDIM(steps=4, eta=0.7, threshold=config.DynamicThreshold()), {}),
    "second order": (config.DPMSolverPP(steps=4, stochastic=True), {}),
    "heun": (config.Heun(steps=3, threshold=config.NoThreshold()), {}),
    "churn": (config.StochasticHeun(steps=3, churn=1.2, spacing="karras"), {}),
    "multistep": (config.ProbabilityFlow(steps=5), {}),
    "learned variance": (config.Ancestral(steps=4), {"variance": "learned_range"}),
    "guided": (
        config.DDIM(steps=4, guidance=2.0, guidance_interval=(1, 6), guidance_rescale=0.5),
        CLASSES,
    ),
}


@pytest.mark.parametrize("case", thorough_but(["stochastic", "guided"], CASES))
def test_programs_of_all_kinds_draw_the_images_of_sample(case):
    sampler, network = CASES[case]
    experiment = experiment_of(**network)
    call, expected = program_and_drawer(experiment, moved_params(experiment), sampler, 5)
    index, key = numbers(5), jax.random.key_data(KEY)
    labels = [index % 10] if network is CLASSES else []
    assert_same_images(np.asarray(call(key, index, *labels)), expected)


def test_a_member_of_the_users_own_in_each_family_is_exported():
    experiment = experiment_of(open_house.get_config())
    sampler = experiment.config.sampler
    with jax.numpy_dtype_promotion("standard"):
        call, expected = program_and_drawer(experiment, moved_params(experiment), sampler, 3)
    assert_same_images(np.asarray(call(jax.random.key_data(KEY), numbers(3))), expected)


def test_labels_choose_the_class_of_each_image():
    experiment = experiment_of(**CLASSES)
    counts = (1, 1, 0, 1, 1, 1, 1, 1, 1, 1)
    spec = dataclasses.replace(experiment.spec, class_counts=counts)
    experiment = dataclasses.replace(experiment, spec=spec)
    params, key = moved_params(experiment), jax.random.key_data(KEY)
    program = sampler_program(experiment, params, sampler=DDIM, platforms=("cpu",))
    labels = np.array([3, 2, 10, -1, 4], np.int32)
    images = np.asarray(jax.jit(program.call)(key, numbers(5), labels))
    # Class 2 has no training images; 10 and -1 are none.
    np.testing.assert_array_equal(images[1:4], 0)
    call, expected = program_and_drawer(experiment, params, DDIM, 5, label=3, platforms=("cpu",))
    assert_same_images(np.asarray(call(key, numbers(5))), expected)
    np.testing.assert_array_equal(images[0], expected[0])
    assert np.any(images[4] != expected[4])


def test_the_example_for_classes_draws_them_in_turn(tmp_path, monkeypatch):
    experiment = experiment_of(**CLASSES)
    spec = dataclasses.replace(experiment.spec, class_counts=(1, 1, 0, 1, 1, 1, 1, 1, 1, 1))
    experiment = dataclasses.replace(experiment, spec=spec)
    params, out = moved_params(experiment), tmp_path / "sampler.bin"
    files = export_sampler(experiment, params, out, sampler=DDIM, origin="", platforms=("cpu",))
    text = files.readme.read_text()
    assert "| Classes | 0 (0), 1 (1), 3 (3), 4 (4), " in text
    monkeypatch.chdir(tmp_path)
    space = {}
    exec(text.partition("```python\n")[2].partition("```")[0], space)
    expected = make_drawer(experiment, num=16, sampler=DDIM)(params, jax.random.key(0)).images
    assert_same_images(space["images"], expected)


@pytest.mark.usefixtures("unets")
@pytest.mark.thorough
@pytest.mark.parametrize("parameters", ["inside", "beside"])
def test_a_unet_draws_the_images_of_sample(parameters):
    network = {"channels": 8, "multipliers": (1, 2), "attention_resolutions": (4,)}
    experiment = experiment_of(**network, heads=2)
    params = moved_params(experiment)
    call, expected = program_and_drawer(experiment, params, DDIM, 4, parameters=parameters)
    given = [named_params(params)] if parameters == "beside" else []
    assert_same_images(np.asarray(call(*given, jax.random.key_data(KEY), numbers(4))), expected)


@pytest.mark.usefixtures("unets")
def test_attention_by_a_library_of_one_platform_is_left_out(monkeypatch):
    experiment = experiment_of(attention_kernel="cudnn", dtype="bfloat16")
    params = initial_state(experiment).params
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    program = sampler_program(experiment, params, sampler=DDIM)
    assert "cudnn" not in str(program.mlir_module())


@dataclasses.dataclass(frozen=True)
class Wrapped(config.Network):
    """A network around another one."""

    network: config.Network

    def make(self, images):
        return self.network.make(images)


def test_a_network_inside_of_another_is_made_portable():
    network = Wrapped(config.UNet(attention_kernel="cudnn", dtype="bfloat16"))
    assert network.portable() == Wrapped(config.UNet(attention_kernel="xla", dtype="bfloat16"))


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x_t, t):
        return nn.Dense(x_t.shape[-1])(x_t) * len(x_t)


@dataclasses.dataclass(frozen=True)
class Counted(config.Network):
    """Needs the number of images."""

    def make(self, images):
        return Counting()


def test_a_network_that_cannot_be_exported_is_refused_by_name():
    own = dataclasses.replace(tiny.get_config(), network=Counted())
    experiment = experiment_of(own)
    message = "network Counted with sampler DDIM cannot be exported for cpu and a batch of any size"
    with pytest.raises(UserError, match=message):
        sampler_program(experiment, moved_params(experiment), sampler=DDIM, platforms=("cpu",))


def test_parameters_that_a_file_cannot_hold_are_refused(artifacts, tmp_path, monkeypatch):
    _, experiment, params = artifacts
    monkeypatch.setattr(sys.modules[sampler_program.__module__], "_MOST_INSIDE", 100)
    with pytest.raises(
        UserError, match=r"parameters is 'inside'; the network has .* take 'beside'"
    ):
        sampler_program(experiment, params, sampler=DDIM)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    with pytest.raises(UserError, match="in/bias is bfloat16"):
        export_sampler(
            experiment,
            half,
            tmp_path / "a.bin",
            sampler=DDIM,
            parameters="beside",
            origin="",
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("platforms", [(), ("gpu",), ("cpu", "cpu")])
def test_platforms_are_checked(artifacts, platforms):
    _, experiment, params = artifacts
    with pytest.raises(UserError, match=r"^platforms is .*; it has to be one or several of"):
        sampler_program(experiment, params, sampler=DDIM, platforms=platforms)


def test_a_sampler_that_the_process_cannot_have_is_refused(artifacts):
    _, experiment, params = artifacts
    with pytest.raises(UserError, match=r"sampler.steps is 9; it has to be at most"):
        sampler_program(experiment, params, sampler=config.DDIM(steps=9))
