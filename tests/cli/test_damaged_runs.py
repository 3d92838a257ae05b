"""What `ddpm-jax` says of data that it cannot use: one line, whenever the damage shows."""

import pathlib
import shutil

import pytest
from imagery import cats_and_dogs, encode, examples, prepare, random_images, write
from paths import TINY

from ddpm_jax.cli.main import main
from ddpm_jax.data import (
    BadImageError,
    make_iterator,
    read_folder,
    read_prepared,
    with_crop_and_memory,
)

pytestmark = pytest.mark.usefixtures("mixers")
IMAGES = random_images(40, 8, 8, 3)
STREAMING = ["--data.memory-gb", "0"]


def of_folder(path):
    return ["--data", "folder", "--data.path", str(path)]


def of_tfds(name, directory):
    return [
        *("--data", "tensor-flow-dataset", "--data.name", name),
        *("--data.dir", str(directory)),
    ]


def train(data, workdir, *more):
    """Four steps of 16 images."""
    return main(
        [
            *("train", TINY, "--workdir", str(workdir), *data),
            *("--train.steps", "4", "--train.save-every", "2", "--train.log-every", "1"),
            *("--train.draw-every", "100", "--mesh.data", "1", *more),
        ]
    )


@pytest.fixture
def folder(tmp_path):
    return cats_and_dogs(tmp_path / "pets", IMAGES)


def one_line(captured, *parts):
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("ddpm-jax: ")
    for part in parts:
        assert part in captured.err


@pytest.mark.thorough
def test_a_bad_image_in_the_middle_of_training(folder, tmp_path, capfd):
    # Read by a thread of grain, far from the loop; then skipped, counted and told.
    bad = write(folder / "train" / "dog" / "009.png", encode(IMAGES[29])[:-70])
    assert train(of_folder(folder), tmp_path / "a", *STREAMING) == 2
    one_line(capfd.readouterr(), f"{bad} cannot be decoded (", "--data.on-bad-image skip")

    skip = ["--data.on-bad-image", "skip"]
    assert train(of_folder(folder), tmp_path / "b", *STREAMING, *skip) == 0
    captured = capfd.readouterr()
    assert captured.out.count(f"skipped: {bad} cannot be decoded (") == 1
    assert captured.out.count("1 images skipped so far") == 1
    assert captured.err == ""
    # In memory it is known from the start, and gone.
    assert train(of_folder(folder), tmp_path / "c", *skip) == 0
    captured = capfd.readouterr()
    assert captured.out.index(f"skipped: {bad}") < captured.out.index("step 1/4")
    assert captured.err == ""


@pytest.mark.thorough
def test_a_bad_image_held_out(folder, tmp_path, capfd):
    bad = write(folder / "test" / "cat" / "002.png", b"")
    for memory in ([], STREAMING):
        assert train(of_folder(folder), tmp_path / "a", *memory) == 2
        one_line(capfd.readouterr(), f"{bad} is empty", "--data.on-bad-image skip")
    assert train(of_folder(folder), tmp_path / "b", "--data.on-bad-image", "skip") == 0
    assert f"skipped: {bad} is empty\n1 images skipped so far" in capfd.readouterr().out


@pytest.mark.thorough
def test_a_data_set_that_changed_since_the_checkpoint(folder, tmp_path, capfd):
    run = tmp_path / "run"
    assert train(of_folder(folder), run) == 0
    (run / "results.json").unlink()  # as if it had been killed before the end
    shutil.rmtree(run / "checkpoints" / "4")
    (folder / "train" / "cat" / "003.png").unlink()
    capfd.readouterr()
    assert train(of_folder(folder), run) == 2
    said = capfd.readouterr()
    one_line(said, "is not the one with which", "(training images were 20 and are 19)", "--data")
    write(folder / "train" / "cat" / "003.png", IMAGES[3])
    assert train(of_folder(folder), run) == 0
    assert "resuming from step 2" in capfd.readouterr().out


def test_data_that_cannot_be_used_at_all(folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    text = write(tmp_path / "text.npz", b"no zip")
    (folder / "train" / "bird").mkdir()
    nowhere = pathlib.Path.cwd() / "nowhere"
    for data, part in (
        (of_tfds("cifar01", tmp_path), "did you mean 'cifar10'"),
        (of_tfds("cifar10", tmp_path), "prepare it with `ddpm-jax data prepare cifar10"),
        (of_folder("nowhere"), f"data.path is 'nowhere'; there is no folder '{nowhere}'"),
        (of_folder(""), "data.path is ''; it has to be a name that is not empty"),
        (["--data=archive", "--data.path=nowhere"], f"there is no archive '{nowhere}'"),
        (["--data=archive", f"--data.path={text}"], "cannot be read ("),
        (of_folder(folder), "bird' is empty; a folder of a class"),
    ):
        for command in (train, lambda data, run: main(["inspect", TINY, *data])):
            code = command(data, tmp_path / "run")
            if code == 0:  # a network can be told of before its data are there
                assert "cifar10" in data
                capfd.readouterr()
                continue
            assert code == 2
            one_line(capfd.readouterr(), part)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def records(tmp_path):
    """A data set of three shards' worth of records, and its file."""
    many = random_images(300, 8, 8, 3)
    prepare(
        tmp_path, "many", {"train": examples(many), "test": examples(many[:8])}, shape=(8, 8, 3)
    )
    (shard,) = (tmp_path / "many" / "1.0.0").glob("*train*")
    return tmp_path, shard


@pytest.mark.parametrize("memory", [[], STREAMING])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
@pytest.mark.thorough
def test_damaged_records(records, tmp_path, capfd, damage, memory):
    directory, shard = records
    contents = bytearray(shard.read_bytes())
    if damage == "cut":
        del contents[len(contents) // 2 :]
    else:
        for place in range(65_536, len(contents), 997):
            contents[place] ^= 0xFF
    shard.write_bytes(contents)
    for skip in ([], ["--data.on-bad-image", "skip"]):  # of a file, not of an image
        capfd.readouterr()
        assert train(of_tfds("many", directory), tmp_path / "run", *memory, *skip) == 2
        one_line(
            capfd.readouterr(),
            f"data set 'many' in {directory} cannot be read in split 'train', records ",
            f"`ddpm-jax data prepare many --dir {directory} --overwrite`",
        )


@pytest.mark.thorough
def test_a_record_of_another_shape_and_one_that_is_no_image(tmp_path, capfd):
    good = random_images(30, 8, 8, 3)
    wrong = [*examples(good), *examples(random_images(1, 6, 8, 3))]
    prepare(tmp_path, "wrong", {"train": wrong, "test": examples(good)})
    for memory in ([], STREAMING):
        capfd.readouterr()
        assert train(of_tfds("wrong", tmp_path), tmp_path / "run", *memory) == 2
        one_line(
            capfd.readouterr(),
            "of split 'train' of data set 'wrong' is ",
            "and others are ",
            "--data.on-bad-image skip",
        )
    found = with_crop_and_memory(read_prepared("wrong", tmp_path, on_bad_image="skip"))
    assert len(found.train) == 30
    ((where, why),) = found.train.skipped.items()
    assert where.startswith("record ")
    assert why == "is 6x8, and others are 8x8; --preparation.size resizes all to one size"


def test_the_error_of_a_thread_is_the_errors_own(folder):
    write(folder / "train" / "dog" / "009.png", b"words")
    source = read_folder(folder).train
    batches = make_iterator(source, batch_size=20, seed=0, flip=False)
    for _ in range(2):  # also who asks again
        with pytest.raises(BadImageError, match=r"009\.png is not an image"):
            next(batches)
