"""Samples as others' evaluators read them: folders of PNG, and archives of arrays."""

import glob
import os

import numpy as np
import PIL.Image
import pytest
from fid_peers import import_peer
from imagery import random_images, write

from ddpm_jax.evaluation import open_samples

IMAGES = random_images(25, 8, 8, 3)


@pytest.fixture
def folder(tmp_path):
    """As `ddpm-jax sample --out DIR/` writes it, with ten images in a subfolder."""
    for number, image in enumerate(IMAGES):
        write(tmp_path / f"{number // 10:05d}/{number:07d}.png", image)
    write(tmp_path / "samples.json", b"{}")
    return tmp_path


def ours(path):
    return np.concatenate([*open_samples(path, report=pytest.fail).batches()])


def test_torch_fidelity_lists_the_same_images_in_the_same_order(folder):
    utils = import_peer("torch_fidelity.utils")
    paths = utils.glob_samples_paths(str(folder), True, "png,jpg,jpeg", "jpg,jpeg", verbose=False)
    theirs = [np.asarray(PIL.Image.open(path).convert("RGB")) for path in paths]
    np.testing.assert_array_equal(theirs, ours(folder))


@pytest.mark.parametrize(
    ("module", "name"),
    [("cleanfid.utils", "EXTENSIONS"), ("pytorch_fid.fid_score", "IMAGE_EXTENSIONS")],
)
def test_the_others_find_all_images_by_their_endings(folder, module, name):
    endings = getattr(import_peer(module), name)
    found = [p for e in endings for p in glob.glob(f"{folder}/**/*.{e}", recursive=True)]
    theirs = [np.asarray(PIL.Image.open(path).convert("RGB")) for path in sorted(found)]
    np.testing.assert_array_equal(theirs, ours(folder))
    assert len(os.listdir(folder)) == 4
