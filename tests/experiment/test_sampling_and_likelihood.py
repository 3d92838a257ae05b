"""Images drawn and likelihoods measured: the same in any batch, on any mesh, and after a stop."""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import tiny
from marks import thorough_but
from networks import make_mixers

from ddpm_jax.config import Ancestral
from ddpm_jax.data import read_digits
from ddpm_jax.evaluation import histogram_bits_per_dim, likelihood
from ddpm_jax.evaluation.confidence import standard_error
from ddpm_jax.experiment import build, initial_state, make_drawer, sample_files, trained_model

HOW = Ancestral()


@pytest.fixture(scope="module", autouse=True)
def _a_network_that_compiles_at_once():
    with pytest.MonkeyPatch.context() as patch:
        make_mixers(patch)
        yield


def experiment_on(devices, **evaluation):
    config = tiny.get_config()
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, **evaluation)
    )
    return build(config, devices=jax.devices()[:devices])


@pytest.fixture(scope="module")
def params():
    """A network that says something: after no training it would predict 0."""
    state = initial_state(experiment_on(1))
    leaves, tree = jax.tree.flatten(state.params)
    rng = np.random.default_rng(0)
    moved = [leaf + 0.05 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.device_get(tree.unflatten(moved))


def placed(experiment, params):
    return jax.device_put(params, experiment.state_shardings.params)


# Drawing


@pytest.fixture(scope="module")
def eight(params):
    experiment = experiment_on(1)
    return make_drawer(experiment, num=8, sampler=HOW)(params, jax.random.key(7)).images


@pytest.mark.parametrize(
    ("num", "devices"), thorough_but([(3, 2)], [(1, 1), (3, 1), (8, 8), (3, 2), (5, 4)])
)
def test_an_image_is_the_same_in_any_batch_on_any_mesh(params, eight, num, devices):
    experiment = experiment_on(devices)
    drawer, key = make_drawer(experiment, num=num, sampler=HOW), jax.random.key(7)
    there = placed(experiment, params)
    found = np.concatenate([drawer(there, key, first).images for first in range(0, 8, num)])[:8]
    # Sums inside the network may be taken in another order, and a level on the edge falls over.
    assert np.mean(found != eight) <= 0.002
    assert np.abs(found.astype(int) - eight).max() <= 1


def test_images_differ_and_follow_from_the_key(params, eight):
    drawer = make_drawer(experiment_on(1), num=8, sampler=HOW)
    assert len({image.tobytes() for image in eight}) == 8
    other = drawer(params, jax.random.key(8)).images
    assert all(np.any(a != b) for a, b in zip(eight, other, strict=True))


def test_drawing_goes_on_where_it_was_interrupted(params, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_files.shares, "BLOCK", 4)
    experiment, genuine = experiment_on(1), sample_files.make_drawer
    asked = {"count": 10, "sampler": HOW, "seed": 3, "batch_size": 3}

    def draw(folder, **change):
        files = sample_files.sample_into_files(
            tmp_path / folder, experiment, params, **(asked | change)
        )
        images = np.concatenate(list(files.batches()))
        np.testing.assert_array_equal(files.first(6), images[:6])
        return images

    whole = draw("whole")
    assert whole.shape == (10, 8, 8, 1)

    def dies_after(calls):
        def make(*args, **kwargs):
            drawer, left = genuine(*args, **kwargs), iter(range(calls))

            def draw(*args):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return drawer(*args)

            return draw

        return make

    monkeypatch.setattr(sample_files, "make_drawer", dies_after(3))
    with pytest.raises(KeyboardInterrupt):
        draw("cut")
    (folder,) = (tmp_path / "cut").iterdir()
    assert {path.name for path in folder.iterdir()} == {"settings.json", "0000000.npy"}
    (folder / "0000004.npy.partial").write_bytes(b"half")
    monkeypatch.setattr(sample_files, "make_drawer", dies_after(3))  # 4 and 2 images, by threes
    np.testing.assert_array_equal(draw("cut"), whole)
    # All there: nothing is drawn. A damaged file is, and so are more images than there were.
    monkeypatch.setattr(sample_files, "make_drawer", dies_after(0))
    np.testing.assert_array_equal(draw("cut"), whole)
    (folder / "0000004.npy").write_bytes((folder / "0000004.npy").read_bytes()[:50])
    monkeypatch.setattr(sample_files, "make_drawer", dies_after(2))
    np.testing.assert_array_equal(draw("cut"), whole)
    monkeypatch.setattr(sample_files, "make_drawer", dies_after(2))
    np.testing.assert_array_equal(draw("cut", count=12)[:10], whole)


@pytest.mark.thorough
def test_draws_of_other_parameters_or_settings_are_kept_apart(params, tmp_path):
    experiment = experiment_on(1)
    asked = {"count": 2, "sampler": HOW, "seed": 3, "batch_size": 2}
    moved = jax.tree.map(lambda leaf: leaf * 1.5, params)
    drawn = [
        sample_files.sample_into_files(tmp_path, experiment, *rest, **(asked | change)).first(2)
        for rest, change in [
            ([params], {}),
            ([moved], {}),
            ([params], {"seed": 4}),
            ([params], {"sampler": Ancestral(steps=4)}),
        ]
    ]
    assert len(list(tmp_path.iterdir())) == 4
    assert len({images.tobytes() for images in drawn}) == 4


# Likelihood


def measured(experiment, params):
    evaluation = experiment.config.evaluation
    return evaluation.make(trained_model(experiment))(params)


@pytest.mark.thorough
def test_likelihood_depends_on_neither_batch_nor_mesh(params):
    told = []
    for devices, batch_size in [(1, 360), (1, 100), (8, 64)]:
        experiment = experiment_on(devices, batch_size=batch_size)
        told.append(measured(experiment, placed(experiment, params)))
    for summary, per_time, per_image in told[1:]:
        for name in ("bits_per_dim", "standard_error", "kl", "decoder", "prior"):
            assert summary[name] == pytest.approx(told[0][0][name], rel=1e-5)
        np.testing.assert_allclose(per_time.mean, told[0][1].mean, rtol=1e-4)
        np.testing.assert_array_equal(per_time.images, [360] * 8)
        np.testing.assert_allclose(per_image, told[0][2], rtol=1e-4)


def test_terms_over_time_sum_to_the_whole(params):
    summary, per_time, per_image = measured(experiment_on(1), params)
    assert summary["num_times"] == summary["num_steps"] == 8
    assert summary["prior"] + per_time.mean.sum() == pytest.approx(summary["bits_per_dim"])
    assert per_time.mean[0] == pytest.approx(summary["decoder"])
    assert per_time.mean[1:].sum() == pytest.approx(summary["kl"])
    assert per_image.dtype == np.float64
    assert per_image.mean() == pytest.approx(summary["bits_per_dim"])


@pytest.mark.thorough
def test_few_terms_estimate_the_whole_within_their_standard_error(params):
    whole, exact, _ = measured(experiment_on(1), params)
    some, per_time, _ = measured(experiment_on(1, likelihood_times=4), params)
    assert some["num_times"] == 4
    # 360 images; 4 standard errors (two-sided significance 6e-5), of both, as noise differs.
    both = np.hypot(some["standard_error"], whole["standard_error"])
    assert abs(some["bits_per_dim"] - whole["bits_per_dim"]) < 4.0 * both
    assert some["decoder"] == pytest.approx(whole["decoder"], rel=0.02)  # t = 0 of every image
    assert per_time.images.sum() == 4 * 360
    assert (per_time.images[1:] >= 360 // 3).all()
    off = np.abs(per_time.mean - exact.mean)
    assert (off < 4.5 * np.hypot(per_time.standard_error, exact.standard_error) + 1e-6).all()


def test_a_standard_error_of_terms_by_hand():
    terms, times = np.array([[1.0, 2.0, 6.0], [5.0, 7.0, 0.0]]), np.array([[0, 0, 0], [1, 1, 2]])
    per_time = likelihood._per_time(terms, times, 4)
    np.testing.assert_array_equal(per_time.images, [3, 2, 1, 0])
    np.testing.assert_allclose(per_time.mean, [3.0, 6.0, 0.0, np.nan])
    expected = [np.sqrt(14 / 2 / 3), np.sqrt(2 / 1 / 2), np.nan, np.nan]
    np.testing.assert_allclose(per_time.standard_error, expected)
    assert standard_error(np.array([3.0])) is None
    assert standard_error(np.array([3.0, 5.0])) == 1.0


@pytest.mark.parametrize("limit", [100, 1437, 5000])
def test_the_histogram_is_fitted_on_so_many_images(limit, monkeypatch):
    monkeypatch.setattr(likelihood, "_HISTOGRAM_IMAGES", limit)
    digits = read_digits()
    told = likelihood.baselines(digits)
    assert told["histogram_images"] == min(limit, 1437)
    spread = {100: [1437 * i // 100 for i in range(100)]}.get(limit, range(1437))
    fitted = digits.train.images[np.array(spread)]
    expected = histogram_bits_per_dim([fitted], [digits.held_out.images], levels=17)
    assert told["histogram"] == pytest.approx(expected, rel=1e-12)


# Samples that are kept


@pytest.fixture(scope="module")
def drawn(params, tmp_path_factory):
    """Two folders of eight images in two files, of other seeds, and a function that draws them."""
    experiment, folder = experiment_on(1), tmp_path_factory.mktemp("drawn")

    def draw(seed, told, count=8):
        files = sample_files.sample_into_files(
            folder,
            experiment,
            params,
            count=count,
            sampler=HOW,
            seed=seed,
            batch_size=4,
            report=told.append,
        )
        return np.concatenate(list(files.batches())), files

    return draw


@pytest.fixture
def _four_in_a_file(monkeypatch):
    monkeypatch.setattr(sample_files.shares, "BLOCK", 4)


def overwrite(first, second, others):
    content = bytearray(first.read_bytes())
    content[-100:-90] = bytes(10)
    first.write_bytes(content)


def swap(first, second, others):
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])


def replace_by_other_seed(first, second, others):
    first.write_bytes(others.read_bytes())


def replace_by_other_array(first, second, others):
    with first.open("wb") as file:
        np.save(file, np.zeros((4, 8, 8, 1), np.uint8))


def replace_by_folder(first, second, others):
    first.unlink()
    first.mkdir()


def replace_by_pipe(first, second, others):
    first.unlink()
    os.mkfifo(first)


@pytest.mark.thorough
@pytest.mark.usefixtures("_four_in_a_file")
@pytest.mark.parametrize(
    ("damage", "lines"),
    [
        (overwrite, 1),
        (swap, 2),
        (replace_by_other_seed, 1),
        (replace_by_other_array, 1),
        (replace_by_folder, 1),
        (replace_by_pipe, 1),
    ],
)
def test_kept_samples_that_are_not_as_written_are_drawn_again(drawn, damage, lines):
    told = []
    whole, files = drawn(3, told)
    _, others = drawn(4, told)
    damage(files.path(0), files.path(4), others.path(0))
    again, _ = drawn(3, told)
    np.testing.assert_array_equal(again, whole)
    assert len(told) == lines
    assert all(str(files.folder) in line for line in told)


@pytest.mark.thorough
@pytest.mark.usefixtures("_four_in_a_file")
def test_two_evaluations_that_draw_at_the_same_time_both_have_their_images(drawn):
    """One draws few and one many of the same; few never replace many."""
    expected, _ = drawn(3, [])
    counts = [8, 3, 5, 8]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda count: drawn(5, [], count)[0], counts))
    for count, images in zip(counts, found, strict=True):
        np.testing.assert_array_equal(images, found[0][:count])
    assert np.any(found[0] != expected)
