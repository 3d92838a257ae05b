"""Downloads from a server on loopback that answers as the Hugging Face hub does."""

import json
import sys
import time

import pytest
from hub import NAME, SHA, serve

from ddpm_jax.errors import MissingExtra
from ddpm_jax.weights import WeightsError
from ddpm_jax.weights.hub import download

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")

WEIGHTS = "diffusion_pytorch_model"
PIPELINE = {
    "model_index.json": {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]},
    "scheduler/scheduler_config.json": {"_class_name": "DDPMScheduler"},
    "unet/config.json": {"_class_name": "UNet2DModel"},
    f"unet/{WEIGHTS}.safetensors": 1,
    f"unet/{WEIGHTS}.bin": 2,
    f"unet/{WEIGHTS}.fp16.safetensors": 3,
    "README.md": 4,
    "images/0.json": 5,
}
DESCRIPTION = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "behind"
    write(folder, PIPELINE)
    return folder


@pytest.fixture
def hub(folder):
    with serve(folder) as server:
        yield server


def write(folder, files):
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))


def get(hub, tmp_path, name=NAME, revision=None, **kwargs):
    return download(name, revision, endpoint=hub.endpoint, cache=tmp_path / "cache", **kwargs)


def test_a_pipeline_comes_with_its_safetensors_and_nothing_else(hub, tmp_path):
    place, commit = get(hub, tmp_path)
    assert commit == SHA
    assert hub.downloads == [*DESCRIPTION, f"unet/{WEIGHTS}.safetensors"]
    assert json.loads((place / "unet" / f"{WEIGHTS}.safetensors").read_text()) == 1


def test_without_safetensors_the_bin_comes(hub, folder, tmp_path):
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    place, _ = get(hub, tmp_path)
    assert hub.downloads == [*DESCRIPTION, f"unet/{WEIGHTS}.bin"]
    assert (place / "unet" / f"{WEIGHTS}.bin").exists()


def test_shards_come_with_their_index(hub, folder, tmp_path):
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    shards = [f"unet/{WEIGHTS}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = f"unet/{WEIGHTS}.safetensors.index.json"
    write(folder, {shards[0]: 6, shards[1]: 7, index: 8})
    get(hub, tmp_path)
    assert hub.downloads == sorted([*DESCRIPTION, *shards, index])


def test_a_variant_comes_in_place_of_the_others(hub, tmp_path):
    get(hub, tmp_path, variant="fp16")
    assert hub.downloads == [*DESCRIPTION, f"unet/{WEIGHTS}.fp16.safetensors"]


def test_old_models_have_all_files_in_one_folder(hub, folder, tmp_path):
    for name in ("scheduler/scheduler_config.json", "unet/config.json"):
        (folder / name).rename(folder / name.partition("/")[2])
    (folder / "unet" / f"{WEIGHTS}.safetensors").rename(folder / f"{WEIGHTS}.safetensors")
    place, _ = get(hub, tmp_path)
    assert (place / "scheduler_config.json").exists()
    assert (place / f"{WEIGHTS}.safetensors").exists()


def test_gigabytes_of_another_pipeline_are_left_where_they_are(hub, folder, tmp_path):
    write(folder, {"model_index.json": {"_class_name": "StableDiffusionPipeline", "vae": []}})
    get(hub, tmp_path)
    assert hub.downloads == DESCRIPTION


def test_what_is_there_is_not_downloaded_again(hub, tmp_path):
    first = get(hub, tmp_path)
    hub.requests.clear()
    assert get(hub, tmp_path, revision=SHA) == get(hub, tmp_path, revision="main") == first
    assert hub.downloads == []


def test_a_server_that_is_gone_leaves_the_cache(folder, tmp_path):
    with serve(folder) as hub:
        first = get(hub, tmp_path)
    assert get(hub, tmp_path) == first


@pytest.mark.parametrize(
    ("name", "revision", "sentence"),
    [
        ("nobody/nothing", None, "there is no model 'nobody/nothing' on http://127.0.0.1:"),
        ("private/model", None, "or it is private, and HF_TOKEN"),
        ("gated/model", None, "is gated on .* set HF_TOKEN"),
        (NAME, "v9", f"--revision is 'v9', which '{NAME}' does not have"),
        ("../x", None, "'../x' is not a name on the Hugging Face hub"),
        (NAME, "../../x", "'../../x' is not a revision on the"),
        ("a--b/c", None, "'a--b/c' cannot be downloaded"),
    ],
)
def test_what_the_server_refuses_is_a_sentence(name, revision, sentence, hub, tmp_path):
    with pytest.raises(WeightsError, match=sentence) as caught:
        get(hub, tmp_path, name, revision)
    assert "\n" not in str(caught.value)


def test_without_a_network_it_is_a_sentence_at_once(folder, tmp_path):
    with serve(folder) as hub:
        pass
    begin = time.monotonic()
    with pytest.raises(WeightsError, match=r"cannot be reached, and '.*' is not in the"):
        get(hub, tmp_path)
    assert time.monotonic() - begin < 10.0


def test_a_download_that_was_cut_off_is_not_complete(folder, tmp_path):
    with serve(folder) as hub:
        place, _ = get(hub, tmp_path)
    (place / "unet" / f"{WEIGHTS}.safetensors").unlink()
    with pytest.raises(WeightsError, match="is not complete in the cache"):
        get(hub, tmp_path)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"pip install 'ddpm_jax\[hub\]'"):
        download(NAME)
