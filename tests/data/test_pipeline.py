"""The stream of batches: shuffled, flipped, cropped, shared by processes, and resumed."""

import itertools
import json
import math
import time

import numpy as np
import pytest
from imagery import one_sentence, streaming, telling

from ddpm_jax.data import Arrays, CentreCropped, DataError, Examples, make_iterator


def labels_of(images):
    return images[:, 0, 0, 0].astype(np.int64) * 3 % 7


def arrays(n, *sides):
    images = telling(n, *sides)
    return Arrays(images, labels_of(images))


def numbers(batch):
    return batch[:, 0, 0, 0]


def flipped(batch):
    return batch[:, 0, 0, 2] > batch[:, 0, -1, 2]


def corners(batch):
    """Top and left of the crops."""
    return np.stack([batch[:, 0, 0, 1], batch[:, 0, :, 2].min(axis=1)], axis=1)


def shares(source, process_count, **options):
    """The iterators of all processes."""
    return [
        make_iterator(source, process_index=index, process_count=process_count, **options)
        for index in range(process_count)
    ]


def joined(iterators, count):
    """`count` batches of all processes together."""
    batches = [[next(share) for share in iterators] for _ in range(count)]
    return [
        Examples(
            *(
                None if part[0] is None else np.concatenate(part)
                for part in zip(*of_all, strict=True)
            )
        )
        for of_all in batches
    ]


def stream(n, places, *, batch_size, process_count=1, seed=0, flip=False, crop=None, sides=(1, 2)):
    """The first `places` images of the whole stream, the processes' shares joined in order."""
    options = {"batch_size": batch_size, "seed": seed, "flip": flip, "crop": crop}
    of_all = shares(arrays(n, *sides), process_count, **options)
    count = math.ceil(places / batch_size)
    batches = [next(share).images for _ in range(count) for share in of_all]
    assert all(len(batch) == batch_size // process_count for batch in batches)
    assert all(batch.dtype == np.uint8 for batch in batches)
    return np.concatenate(batches)[:places]


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize("process_count", [1, 2, 3])
@pytest.mark.parametrize(("n", "batch_size"), [(12, 6), (50, 12), (7, 18)])
def test_every_epoch_holds_every_image_once(n, batch_size, process_count):
    # 12 = 2 batches; 50 leaves a remainder for batches and processes alike; 7 is below a batch.
    seen = numbers(stream(n, 8 * n, batch_size=batch_size, process_count=process_count))
    for epoch in seen.reshape(8, n):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))


@pytest.mark.parametrize("process_count", [2, 3])
def test_processes_share_the_batches_that_one_would_make(process_count):
    options = {"batch_size": 12, "flip": True, "crop": 2, "sides": (4, 5)}
    whole = stream(50, 240, **options)
    shared = stream(50, 240, **options, process_count=process_count)
    np.testing.assert_array_equal(shared, whole)


def test_processes_hold_different_images():
    of_all = shares(arrays(50), 3, batch_size=48, seed=3, flip=False)
    first = [set(numbers(next(share).images).tolist()) for share in of_all]
    assert [len(share) for share in first] == [16, 16, 16]
    assert len(set.union(*first)) == 48


def test_order_depends_on_seed_and_epoch_alone():
    epochs = {
        seed: numbers(stream(50, 200, batch_size=25, seed=seed)).reshape(4, 50) for seed in (0, 1)
    }
    every = [tuple(epoch) for seed in epochs for epoch in epochs[seed]]
    assert len(set(every)) == 8  # also seed 0 in epoch 1 is not seed 1 in epoch 0
    assert tuple(range(50)) not in every
    again = numbers(stream(50, 200, batch_size=10, seed=1))  # whatever the batch size
    np.testing.assert_array_equal(again, epochs[1].ravel())


def test_the_shuffle_is_uniform():
    # Which image comes first, and which follows image 0 (chi-square, significance 0.001, n = 3000).
    seen = numbers(stream(8, 8 * 3000, batch_size=800)).reshape(3000, 8)
    first = np.bincount(seen[:, 0], minlength=8)
    assert ((first - 375) ** 2 / 375).sum() < 24.32  # 7 degrees of freedom
    rows, places = np.nonzero(seen[:, :-1] == 0)
    after = np.bincount(seen[rows, places + 1], minlength=8)[1:]
    expected = len(rows) / 7
    assert ((after - expected) ** 2 / expected).sum() < 22.46  # 6 degrees of freedom


def test_flips_mirror_left_to_right_half_of_the_time():
    places = 2000
    seen = stream(50, places, batch_size=40, flip=True)
    flips = flipped(seen)
    # Binomial(2000, 1/2) at significance 0.001: 3.29 standard deviations of 22.4.
    assert abs(int(flips.sum()) - places // 2) < 74
    by_image = np.array([flips[numbers(seen) == image] for image in range(50)])  # [50, 40 epochs]
    per_image = by_image.sum(axis=1)
    assert per_image.min() > 0  # no image is always or never flipped
    assert per_image.max() < 40
    assert not flipped(stream(50, places, batch_size=40)).any()

    square = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
    batch = next(make_iterator(Arrays(square), batch_size=20, seed=0, flip=True)).images
    kinds = {tuple(image.ravel().tolist()) for image in batch}
    assert kinds == {(0, 1, 2, 3), (1, 0, 3, 2)}


def test_flips_and_crops_do_not_change_the_order():
    plain = stream(50, 120, batch_size=12, sides=(4, 5))
    flips = stream(50, 120, batch_size=12, sides=(4, 5), flip=True)
    both = stream(50, 120, batch_size=12, sides=(4, 5), flip=True, crop=3)
    np.testing.assert_array_equal(numbers(flips), numbers(plain))
    np.testing.assert_array_equal(numbers(both), numbers(plain))
    np.testing.assert_array_equal(flipped(both), flipped(flips))


def test_crops_are_squares_of_the_image_each_as_likely():
    # 4 x 3 places, 12,000 crops: chi-square with 11 degrees of freedom at significance 0.001.
    seen = stream(60, 12_000, batch_size=120, crop=3, sides=(6, 5), flip=True)
    assert seen.shape == (12_000, 3, 3, 3)
    top, left = corners(seen).T
    counts = np.bincount(3 * top.astype(int) + left, minlength=12)
    assert counts.shape == (12,)
    assert ((counts - 1000) ** 2 / 1000).sum() < 31.26
    # Whole squares: rows follow each other, and columns, mirrored or not.
    np.testing.assert_array_equal(seen[:, :, 0, 1], top[:, None] + np.arange(3))
    columns = np.where(flipped(seen)[:, None], np.arange(3)[::-1], np.arange(3))
    np.testing.assert_array_equal(seen[:, 0, :, 2], left[:, None] + columns)
    assert (seen[..., 0] == seen[:, :1, :1, 0]).all()  # of one image
    # Neither the image nor the flip tells the corner: the same test on 60 x 12 and 2 x 12 cells.
    for told, cells in ((numbers(seen), 60), (flipped(seen), 2)):
        table = np.bincount(12 * told.astype(int) + 3 * top + left, minlength=12 * cells)
        expected = 12_000 / (12 * cells)
        free = 12 * cells - 1
        bound = free * (1 - 2 / (9 * free) + 3.09 * math.sqrt(2 / (9 * free))) ** 3  # Wilson
        assert ((table - expected) ** 2 / expected).sum() < bound


def test_crops_are_of_the_seed_the_epoch_and_the_place():
    def of(seed, batch_size):
        return corners(stream(40, 160, batch_size=batch_size, seed=seed, crop=2, sides=(9, 9)))

    np.testing.assert_array_equal(of(0, 10), of(0, 32))
    epochs = np.concatenate([of(seed, 10).reshape(4, 80) for seed in (0, 1)])
    assert len(np.unique(epochs, axis=0)) == 8


def test_a_crop_of_all_is_the_image_and_of_a_middle_one_is_known():
    np.testing.assert_array_equal(
        stream(9, 18, batch_size=6, sides=(3, 3), crop=3), stream(9, 18, batch_size=6, sides=(3, 3))
    )
    middle = CentreCropped(arrays(4, 6, 5), 3)
    images, labels = middle[np.array([2, 0])]
    np.testing.assert_array_equal(images, telling(4, 6, 5)[[2, 0], 1:4, 1:4])
    assert labels.tolist() == [6, 0]
    assert (len(middle), middle.image_shape, middle.labelled) == (4, (3, 3, 3), True)


@pytest.mark.parametrize("source", ["in memory", "streaming"])
def test_labels_go_with_their_images(source):
    images = telling(30, 2, 3)
    labels = labels_of(images)
    made = streaming(images, labels) if source == "streaming" else Arrays(images, labels)
    batches = make_iterator(made, batch_size=12, seed=2, flip=True, crop=2, with_labels=True)
    for batch in itertools.islice(batches, 8):
        assert batch.labels.dtype == np.int32
        np.testing.assert_array_equal(batch.labels, labels[numbers(batch.images)])
    assert next(make_iterator(made, batch_size=12, seed=2, flip=True)).labels is None


@pytest.mark.parametrize("handed_out", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("source", ["in memory", "streaming"])
def test_resume_gives_the_same_batches_on_any_number_of_processes(handed_out, source):
    # 50 images in batches of 12: batch 4 crosses into the second epoch, 8 into the third.
    images = telling(50, 4, 5)
    made = streaming(images, labels_of(images)) if source == "streaming" else arrays(50, 4, 5)

    def fresh(process_count=1):
        return shares(
            made, process_count, batch_size=12, seed=5, flip=True, crop=3, with_labels=True
        )

    (batches,) = fresh()
    for _ in range(handed_out):
        next(batches)
    time.sleep(0.02)  # lets the threads read ahead of what was handed out
    state = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches) for _ in range(12)]

    (resumed,) = fresh()
    next(resumed)  # not even a used iterator remembers
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert_same([next(resumed) for _ in range(12)], expected)
    batches.set_state(state)  # back
    assert_same([next(batches) for _ in range(12)], expected)

    # Three batches each on 2, 4, 3 and 1 processes, each resumed from what the last one saved.
    seen = []
    for process_count in (2, 4, 3, 1):
        of_all = fresh(process_count)
        for share in of_all:
            share.set_state(json.loads(json.dumps(state)))
        seen += joined(of_all, 3)
        states = [share.get_state() for share in of_all]
        state = states[0]
        assert all(other == state for other in states)
    assert_same(seen, expected)


def test_threads_that_decode_do_not_change_the_stream():
    images = telling(50, 4, 5)
    options = {"batch_size": 12, "seed": 1, "flip": True, "crop": 2, "with_labels": True}
    decoded, gathered = (
        joined(shares(source, 1, **options), 30)
        for source in (streaming(images, labels_of(images)), arrays(50, 4, 5))
    )
    assert_same(decoded, gathered)
    # And epochs are whole, on processes that do not divide them.
    shared = joined(shares(streaming(images, labels_of(images)), 3, **options), 25)
    seen = np.concatenate([numbers(batch.images) for batch in shared])
    for epoch in seen.reshape(6, 50):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(50))


@pytest.mark.parametrize("source", ["in memory", "streaming"])
def test_a_batch_belongs_to_whoever_gets_it(source):
    images = telling(6)
    made = streaming(images) if source == "streaming" else Arrays(images.copy())
    batches = make_iterator(made, batch_size=6, seed=0, flip=False)
    next(batches).images[:] = 0
    np.testing.assert_array_equal(made[np.arange(6)].images, images)


def test_a_state_of_another_stream_is_refused():
    def fresh(n=8, **change):
        arguments = {"batch_size": 4, "seed": 0, "flip": False, "crop": 2} | change
        return make_iterator(arrays(n, 3, 3), **arguments)

    state = fresh().get_state()
    for name, value in {"batch_size": 2, "seed": 1, "flip": True, "crop": 3}.items():
        with pytest.raises(DataError) as caught:
            fresh(**{name: value}).set_state(state)
        one_sentence(caught, f"{name} = {state[name]}", f"has {value}", "repeated or skipped")
    with pytest.raises(DataError) as caught:
        fresh(n=9).set_state(state)
    one_sentence(caught, "num_images = 8", "has 9")
    with pytest.raises(DataError) as caught:
        fresh().set_state({"next_index": 3})
    one_sentence(caught, "['next_index']", "get_state")
    for batches in (-1, "3", None, True):
        with pytest.raises(DataError) as caught:
            fresh().set_state(state | {"batches": batches})
        one_sentence(caught, f"state['batches'] is {batches!r}", "0 or more")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"batch_size": 0}, ["batch_size is 0", "1 or more"]),
        ({"process_count": 0}, ["process_count is 0", "1 or more"]),
        (
            {"batch_size": 10, "process_count": 4},
            ["batch_size is 10", "process_count, 4", "such as 12"],
        ),
        ({"process_index": 2, "process_count": 2}, ["process_index is 2", "0 to 1"]),
        ({"process_index": -1}, ["process_index is -1", "0 to 0"]),
        ({"seed": -1}, ["seed is -1", "0 to 4294967295"]),
        ({"seed": 2**32}, ["seed is 4294967296", "0 to 4294967295"]),
        ({"crop": 2}, ["preparation.crop is 2", "1x2", "1 to 1"]),
        ({"with_labels": True}, ["no labels"]),
    ],
)
def test_arguments_of_the_stream_are_checked(change, parts):
    source = Arrays(telling(8))
    with pytest.raises(DataError) as caught:
        make_iterator(source, **({"batch_size": 4, "seed": 0, "flip": False} | change))
    one_sentence(caught, *parts)
