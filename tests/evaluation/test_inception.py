"""Inception-v3: how images are prepared, which files of weights are taken, and on many devices.

What the layers compute is compared with another implementation in `test_peer_inception.py`.
"""

import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inceptions import bilinear_by_hand, random_state
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from torch_pickles import as_file

from ddpm_jax.evaluation import (
    EvaluationError,
    inception,
    inception_network,
    inception_weights,
)
from ddpm_jax.evaluation.inception import PREPARATIONS, InceptionV3, MixedA, features
from ddpm_jax.evaluation.inception_weights import convert, expected_shapes
from ddpm_jax.weights import WeightsError

RNG = np.random.default_rng(0)
SMALLEST = 75


@pytest.fixture(scope="module", autouse=True)
def _the_least_that_the_layers_take():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "SIDE", SMALLEST)
        yield


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def pth(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    path.write_bytes(as_file(state))
    return path


@pytest.fixture(scope="module")
def npz(pth):
    path = pth.with_suffix(".npz")
    told = convert(pth, path, other_weights=True)
    assert told.startswith(f"{path}: Inception-v3, weights ")
    assert "472 tensors" in told
    return path


@pytest.fixture(scope="module")
def network(npz):
    return inception_network(npz, other_weights=True)


@pytest.fixture(scope="module")
def photos():
    return jnp.asarray(RNG.integers(0, 256, (8, 32, 24, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def seen(network, photos):
    return network.apply(photos)


# ---- the network


def test_parameters():
    # torchvision states 27,161,264 for its own with 1000 classes; 3,326,696 of them are those of
    # the second head that only training has. Eight classes more are eight rows and biases.
    shapes = expected_shapes()
    learned = [shape for name, shape in shapes.items() if "running" not in name]
    assert sum(map(math.prod, learned)) == 27_161_264 - 3_326_696 + 8 * 2049 == 23_850_960
    assert len(shapes) == 94 * 5 + 2


@pytest.mark.optimized
def test_features(network, seen, photos):
    assert (network.dim, network.classes) == (2048, 1008)
    assert seen.pooled.shape == (8, 2048)
    assert seen.logits.shape == (8, 1008)
    assert seen.pooled.dtype == seen.logits.dtype == seen.spatial.dtype == jnp.float32
    assert np.isfinite(seen.pooled).all()
    assert np.abs(seen.pooled[0] - seen.pooled[1]).max() > 0.1


@pytest.mark.optimized
def test_logits_have_no_bias(seen, state):
    expected = np.asarray(seen.pooled, np.float64) @ state["fc.weight"].T.astype(np.float64)
    assert np.abs(seen.logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.optimized
def test_averages_leave_out_what_is_not_in_the_image():
    # Of a constant image a convolution of one pixel makes a constant, up to the border.
    x = jnp.ones((1, 5, 4, 192))
    block = MixedA(32)
    params = jax.jit(block.init)(jax.random.key(0), x)
    pooled = np.asarray(jax.jit(block.apply)(params, x))[..., -32:]
    assert pooled.max() > 0.1
    np.testing.assert_allclose(
        pooled, np.broadcast_to(pooled[:, 2:3, 2:3], pooled.shape), rtol=1e-5
    )


@pytest.mark.optimized
@pytest.mark.thorough
def test_grey_images_are_repeated(network, photos, seen):
    grey = photos[..., :1]
    one, three = network.apply(grey), network.apply(jnp.tile(grey, 3))
    np.testing.assert_allclose(one.pooled, three.pooled, rtol=1e-5, atol=1e-5)
    assert np.abs(one.pooled - seen.pooled).max() > 0.1


@pytest.mark.optimized
@pytest.mark.thorough
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_eight_devices(npz, photos, seen, axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    network = inception_network(npz, other_weights=True, sharding=everywhere)
    split = jax.device_put(photos, NamedSharding(mesh, PartitionSpec("data")))
    ours = network.apply(split)
    assert all(part.sharding.spec[0] == "data" for part in ours)
    for part, whole in zip(ours, seen, strict=True):
        assert np.abs(part - whole).max() < 1e-5 * np.abs(whole).max()


@pytest.mark.thorough
def test_weights_follow_the_images(network, photos, seen):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put(photos, NamedSharding(mesh, PartitionSpec("data")))
    whole = np.asarray(seen.pooled)
    assert np.abs(network.apply(split).pooled - whole).max() < 1e-5 * whole.max()


@pytest.mark.usefixtures("without_annotation_checks")
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), TypeError, "float32; they have to be uint8"),
        (np.zeros((1, 8, 8, 2), np.uint8), ValueError, r"\(1, 8, 8, 2\); they have to be"),
        (np.zeros((8, 8, 3), np.uint8), ValueError, r"\(8, 8, 3\); they have to be"),
        (np.zeros((1, 0, 8, 3), np.uint8), ValueError, r"\(1, 0, 8, 3\); they have to be"),
    ],
)
def test_images_are_checked(images, error, message):
    with pytest.raises(error, match=message):
        features({}, images)


# ---- preparation


@pytest.mark.optimized
@pytest.mark.thorough
def test_features_are_of_prepared_images(state, photos, monkeypatch):
    monkeypatch.setattr(inception, "SIDE", 299)
    x = bilinear_by_hand(np.asarray(photos[0], np.float64), 299)[None]
    prepared = jnp.asarray((x - 128) / 128, jnp.float32)
    variables = inception_weights.to_variables(state)
    expected = jax.jit(InceptionV3().apply)(variables, prepared).pooled
    pooled = jax.jit(lambda images: features(variables, images).pooled)(photos[:1])
    assert np.abs(pooled - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_way_to_resize_is_in_the_name_and_in_the_identity(npz, network):
    of = {name: inception_network(npz, resize=name, other_weights=True) for name in PREPARATIONS}
    assert of["tensorflow"][:2] == network[:2]
    assert of["pytorch-fid"].name == network.name + ", pytorch-fid's resize"
    assert of["clean-fid"].name == network.name + ", clean-fid's resize"
    assert len({one.identity for one in of.values()}) == 3


@pytest.mark.usefixtures("without_annotation_checks")
def test_a_way_to_resize_that_is_none(npz):
    message = "resize is 'torch'; it has to be one of 'tensorflow', 'pytorch-fid', 'clean-fid'"
    with pytest.raises(EvaluationError, match=message):
        inception_network(npz, resize="torch", other_weights=True)


@pytest.mark.parametrize(
    ("resize", "black", "white"),
    [
        ("tensorflow", -1.0, 127 / 128),
        ("clean-fid", -1.0, 127 / 128),
        ("pytorch-fid", -1.0, 1.0),
    ],
)
def test_the_range_of_prepared_images(resize, black, white):
    # An edge, which a bicubic filter overshoots.
    edge = jnp.repeat(jnp.array([0.0, 255.0]), 8)[None, :, None, None]
    made = jax.jit(PREPARATIONS[resize].prepare)(jnp.tile(edge, (1, 1, 16, 3)))
    assert made.shape == (1, SMALLEST, SMALLEST, 3)
    assert float(made.min()) == pytest.approx(black, abs=1e-6)
    assert float(made.max()) == pytest.approx(white, abs=1e-6)


def test_spatial_features_are_7_channels_of_17_by_17_pixels(network):
    image = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
    out, _ = jax.eval_shape(InceptionV3().init_with_output, jax.random.key(0), image)
    assert out.spatial.shape == (2, network.spatial_dim) == (2, 17 * 17 * 7)


# ---- files of weights


@pytest.mark.thorough
def test_a_file_and_its_conversion_are_one_network(pth, npz, network, photos, seen):
    direct = inception_network(pth, other_weights=True)
    assert direct[:4] == network[:4]
    assert direct.name.startswith("Inception-v3, weights ")
    assert len(direct.identity) == 64
    np.testing.assert_array_equal(direct.apply(photos).pooled, seen.pooled)


def test_only_the_public_weights_have_the_plain_name(pth, npz, monkeypatch):
    with pytest.raises(WeightsError, match="results of other weights cannot be compared"):
        inception_network(pth)
    with pytest.raises(WeightsError, match="results of other weights cannot be compared"):
        inception_network(npz)
    with pytest.raises(WeightsError, match="results of other weights cannot be compared"):
        convert(pth, pth.with_name("never.npz"))
    assert not pth.with_name("never.npz").exists()
    monkeypatch.setattr(inception_weights, "PUBLIC_SHA256", inception_weights._sha256(pth))
    assert inception_network(pth).name == inception_network(npz).name == "Inception-v3"


def test_the_public_file_is_known_by_the_hash_in_its_name():
    assert inception_weights.PUBLIC_SHA256.startswith("6726825d")
    assert len(bytes.fromhex(inception_weights.PUBLIC_SHA256)) == 32


@pytest.mark.thorough
def test_other_weights_have_another_identity(pth, network, state, tmp_path, monkeypatch):
    path = tmp_path / "other.pth"
    bias = state["Mixed_7c.branch_pool.bn.bias"] + np.float32(1e-6)
    path.write_bytes(as_file(state | {"Mixed_7c.branch_pool.bn.bias": bias}))
    other = inception_network(path, other_weights=True)
    assert other.identity != network.identity
    assert other.name != network.name
    changed = PREPARATIONS["tensorflow"]._replace(sentence="another")
    monkeypatch.setitem(PREPARATIONS, "tensorflow", changed)
    assert inception_network(pth, other_weights=True).identity != network.identity


@pytest.mark.thorough
def test_an_altered_conversion_is_refused(npz, tmp_path):
    with np.load(npz) as archive:
        arrays = dict(archive)
    altered = tmp_path / "altered.npz"
    bias = arrays["fc.bias"].copy()
    bias[7] += 1e-6
    np.savez(altered, **arrays | {"fc.bias": bias})
    with pytest.raises(WeightsError, match=r"has been altered.*convert the weights again"):
        inception_network(altered, other_weights=True)
    del arrays["fc.bias"]
    np.savez(altered, **arrays)
    with pytest.raises(WeightsError, match="has been altered"):
        inception_network(altered, other_weights=True)
    altered.write_bytes(npz.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="not a converted Inception-v3, or it is damaged"):
        inception_network(altered, other_weights=True)
    np.savez(altered, x=np.zeros(3))
    with pytest.raises(WeightsError, match="not a converted Inception-v3"):
        inception_network(altered, other_weights=True)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"Conv2d_1a_3x3.bn.bias is absent there, and float32\[32\] in Inception-v3"),
        ({"A.weight": np.ones(2, np.float32)}, r"A.weight is float32\[2\] there, and absent in"),
        (
            {"Conv2d_1a_3x3.bn.bias": np.ones((4, 8), np.float32)},
            r"Conv2d_1a_3x3.bn.bias is float32\[4, 8\] there, and float32\[32\] in",
        ),
        (
            {"Conv2d_1a_3x3.bn.bias": np.ones(32, np.float64)},
            r"Conv2d_1a_3x3.bn.bias is float64\[32\] there, and float32\[32\] in",
        ),
    ],
)
def test_tensors_are_those_of_inception(state, message, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(as_file(state))
    with pytest.raises(WeightsError, match=message):
        inception_network(path, other_weights=True)


def test_targets_of_a_conversion(pth, npz, tmp_path):
    with pytest.raises(WeightsError, match=r"has to end in \.npz"):
        convert(pth, tmp_path / "weights.safetensors", other_weights=True)
    with pytest.raises(WeightsError, match="exists already"):
        convert(pth, npz, other_weights=True)
    with pytest.raises(WeightsError, match=r"there is no folder .*nowhere"):
        convert(pth, tmp_path / "nowhere" / "weights.npz", other_weights=True)


@pytest.mark.parametrize("name", ["missing.pth", "missing.npz", ""])
def test_files_that_are_not_there(name, tmp_path):
    path = tmp_path / name
    message = f"{path} cannot be read: " + os.strerror(2 if name else 21)
    with pytest.raises(WeightsError, match=message):
        inception_network(path, other_weights=True)
