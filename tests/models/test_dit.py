"""The diffusion transformer: its published sizes, its patches and places, its classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from ddpm_jax import config as configs
from ddpm_jax.data import ImageSpec
from ddpm_jax.models import DiT, init_params, layer_table
from ddpm_jax.models.dit import _image, _patches, _positions

LATENT = ImageSpec("latent", (32, 32, 4), 256, tuple(map(str, range(1000))), (1,) * 1000)
SMALL = {"width": 8, "depth": 1, "heads": 2}
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 4, 3)), jnp.float32)
T = jnp.array([3, 900])


def shapes(model, shape):
    boxed = jax.eval_shape(lambda key: init_params(model, key, shape), jax.random.key(0))
    return meta.unbox(boxed)["params"]


@pytest.mark.parametrize(
    ("size", "width", "published"),
    [("S", 384, "33M"), ("B", 768, "130M"), ("L", 1024, "458M"), ("XL", 1152, "675M")],
)
def test_the_paper_s_networks_have_the_paper_s_sizes(size, width, published):
    """Of Table 1, with patches of 2. The authors' program also counts a table of positions."""
    member = configs.DiT(size=size, classes=1000, variance="learned_range")
    params = shapes(member.make(LATENT), LATENT.shape)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert f"{count / 1e6:.0f}M" == published
    if size == "XL":
        positions = (32 // 2) ** 2 * width
        assert (count, count + positions) == (674_834_720, 675_129_632)


def test_a_patch_is_a_square_of_the_image_and_goes_back_to_its_place():
    patches = _patches(X, 2)
    assert patches.shape == (2, 4 * 2, 2 * 2 * 3)
    np.testing.assert_array_equal(patches[1, 3], X[1, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(_image(patches, (4, 2), 2), X)


def test_positions_are_waves_of_the_column_and_of_the_row():
    found = np.asarray(_positions(3, 5, 8)).reshape(3, 5, 8)
    for row, column in np.ndindex(3, 5):
        expected = [
            wave(place * frequency)
            for place in (column, row)
            for wave in (np.sin, np.cos)
            for frequency in (1.0, 0.01)  # 10000^0 and 10000^(-1/2)
        ]
        np.testing.assert_allclose(found[row, column], expected, atol=1e-6)


def random_params(model):
    rng = np.random.default_rng(1)
    return {
        "params": jax.tree.map(
            lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32),
            shapes(model, X.shape[1:]),
        )
    }


def test_a_class_matters_and_none_is_another_row_of_the_table():
    model = DiT(**SMALL, num_classes=3)
    params = random_params(model)
    assert params["params"]["classes"].shape == (4, 8)
    apply = jax.jit(model.apply)
    none = apply(params, X, T)
    np.testing.assert_allclose(apply(params, X, T, labels=np.array([-1, -1])), none, atol=1e-5)
    outputs = [none, *(apply(params, X, T, labels=np.full(2, label)) for label in range(3))]
    for index, one in enumerate(outputs):
        assert all(np.abs(one - other).max() > 1e-3 for other in outputs[:index])


def test_without_a_vector_for_no_class_labels_are_required():
    model = DiT(**SMALL, num_classes=3, null_class=False)
    params = random_params(model)
    assert params["params"]["classes"].shape == (3, 8)
    with pytest.raises(ValueError, match="labels are missing"):
        model.apply(params, X, T)
    with pytest.raises(ValueError, match="num_classes is 0"):
        DiT(**SMALL).apply(params, X, T, labels=jnp.array([0, 1]))


def test_the_symmetric_range_of_the_variance_is_mapped_onto_the_unit_range():
    unit, symmetric = (
        DiT(**SMALL, learned_variance=True, interpolation_range=name)
        for name in ("unit", "symmetric")
    )
    params = random_params(unit)
    (prediction, v), (same, u) = (jax.jit(m.apply)(params, X, T) for m in (unit, symmetric))
    np.testing.assert_allclose(same, prediction, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(u, (v + 1) / 2, rtol=1e-5, atol=1e-5)


def test_the_time_may_be_scaled_and_may_be_between_two_steps():
    params = random_params(DiT(**SMALL))
    times = np.array([1.5, 450.0], np.float32)
    scaled = jax.jit(DiT(**SMALL, time_scale=2.0).apply)(params, X, times)
    plain = jax.jit(DiT(**SMALL).apply)(params, X, np.array([3, 900]))
    np.testing.assert_allclose(scaled, plain, atol=1e-5)


def test_its_table_has_a_row_for_each_block():
    rows = layer_table(DiT(**SMALL | {"depth": 2}), X.shape[1:])
    names = ["input", "time_0", "time_1", "block_0", "block_1", "output_modulation", "output"]
    assert [row.name for row in rows] == [*names, "total"]
    assert rows[-1].parameters == sum(row.parameters for row in rows[:-1])


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (configs.DiT(heads=5), "network.heads is 5; it has to be a divisor of network.width, 384"),
        (configs.DiT(width=6, heads=2), "network.width is 6; it has to be a multiple of 4"),
        (configs.DiT(mlp_ratio=1e-3), "network.mlp_ratio is 0.001; it has to be 0.0026 or more"),
        (configs.DiT(classes=10, null_class=False), "train.label_dropout is 0.1; it has to be 0.0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(member, said):
    with pytest.raises(configs.ConfigError, match=said):
        configs.validate(configs.Config(network=member))


def test_patches_have_to_divide_the_images():
    with pytest.raises(configs.ConfigError, match=r"network.patch is 3; .*which are 32x32"):
        configs.DiT(patch=3).make(LATENT)


def test_less_memory_is_to_compute_more_again():
    assert configs.DiT().smaller() == [("remat", "attention"), ("remat", "blocks")]
    assert configs.DiT(remat="blocks").smaller() == []
