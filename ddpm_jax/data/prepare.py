"""Runs a builder of TensorFlow Datasets, which writes a data set as array_record.

A builder downloads a data set, extracts its images and writes them. Most builders need TensorFlow
for that; reading the result does not. `ddpm_jax.data.convert` reads the files of some public data
sets without it.

Files that you have downloaded yourself are read from a folder. They have to be exactly the files
whose SHA-256 TensorFlow Datasets stores.
"""

import contextlib
import hashlib
import io
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, get_args

from ddpm_jax.data.convert import Format
from ddpm_jax.data.images import DataError
from ddpm_jax.data.prepared import nearest_names
from ddpm_jax.errors import first_line, require

__all__ = ["prepare"]

_RETRIES = 4
"""Number of retries of a connection, after 0.2 s, 0.4 s and so on."""


def prepare(
    name: str,
    directory: pathlib.Path,
    *,
    source: pathlib.Path | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda sentence: None,
) -> pathlib.Path:
    """Writes the data set `name` of TensorFlow Datasets below `directory`, as array_record.

    Args:
        name: as `ddpm_jax.data.read_prepared` takes it.
        directory: folder of prepared data sets; created if it does not exist.
        source: a folder of files that you have downloaded; without it they are downloaded.
        overwrite: prepare the data set again if it exists.
        report: gets a sentence if there is nothing to do.

    Returns:
        The folder of the data set.

    Raises:
        MissingExtra: tensorflow_datasets is not installed.
        DataError: the name is unknown, a file has the wrong content, there is no connection, or the
            builder needs TensorFlow, which is not installed.
    """
    require("ddpm-jax data prepare", "tfds", "tensorflow_datasets", "importlib_resources")
    import tensorflow_datasets as tfds

    if source is not None and not source.is_dir():
        raise DataError(f"--from is {str(source)!r}, which is not a folder")
    directory.mkdir(parents=True, exist_ok=True)
    # A builder would delete the existing data set first, so it writes to another folder, which is
    # moved when it is complete.
    with tempfile.TemporaryDirectory(dir=directory, prefix=".preparing-") as folder:
        made, manual = pathlib.Path(folder, "made"), pathlib.Path(folder, "manual")
        manual.mkdir()
        try:
            with _manners():
                builder = tfds.builder(name, data_dir=str(made), file_format="array_record")
        except Exception as error:  # names it cannot parse, classes it does not have
            known = tfds.list_builders(with_community_datasets=False)
            near = " or ".join(map(repr, nearest_names(name.split("/")[0].split(":")[0], known)))
            raise DataError(
                f"TensorFlow Datasets has no data set {name!r} ({first_line(error)})"
                + (f"; did you mean {near}?" if near else "")
                + ("; folders and .npz files are read as they are" if _is_own(name) else "")
            ) from error
        new = pathlib.Path(builder.data_path)
        there = directory / new.relative_to(made)
        if there.exists() and not overwrite:
            report(f"{there} exists already")
            return there
        missing = [] if source is None else _collect(builder, source, manual)
        config = tfds.download.DownloadConfig(
            manual_dir=None if source is None else str(manual), try_download_gcs=False
        )
        try:
            with _manners():
                builder.download_and_prepare(
                    download_dir=str(directory / "downloads"), download_config=config
                )
        except Exception as error:  # whatever the network, a builder or a file makes of its trouble
            if _needs_tensorflow(error):
                raise DataError(
                    f"data set {name!r} needs TensorFlow to be prepared, which is not installed"
                    f" (pip install tensorflow){_instead(builder.name)}"
                ) from error
            hint = "the download needs a connection; --from DIR takes the files from a folder"
            if source is not None:
                without = f", which has no {' and no '.join(missing)}" if missing else ""
                hint = f"its files were taken from {str(source)!r}{without}"
            raise DataError(
                f"data set {name!r} cannot be prepared ({first_line(error)}); {hint}"
            ) from error
        there.parent.mkdir(parents=True, exist_ok=True)
        if there.exists():
            there.rename(pathlib.Path(folder, "replaced"))
        new.rename(there)
        defaults = new.parent.parent / ".config"  # which of its configs a bare name means
        if defaults.is_dir():
            shutil.copytree(defaults, there.parent.parent / ".config", dirs_exist_ok=True)
    return there


def _is_own(name: str) -> bool:
    """Whether the name looks like a path of the user's own images."""
    return name.startswith((".", "/", "~")) or name.endswith(".npz")


@contextlib.contextmanager
def _manners() -> Iterator[None]:
    """Suppresses lines of tfds on stdout, and progress bars outside of a terminal.

    Gives up on an unreachable server within seconds.
    """
    from tensorflow_datasets.core.download import downloader
    from tensorflow_datasets.core.utils import tqdm_utils

    bars, retries = tqdm_utils._active, downloader.MAX_RETRIES
    tqdm_utils.display_progress_bar(bars and sys.stderr.isatty())
    downloader.MAX_RETRIES = _RETRIES
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm_utils.display_progress_bar(bars)
        downloader.MAX_RETRIES = retries


def _collect(builder: Any, source: pathlib.Path, manual: pathlib.Path) -> list[str]:
    """Links the files of `source` into the folder where the builder looks for them.

    Returns:
        The files of the builder that are missing.
    """
    known = {info.filename: info for info in builder.url_infos.values() if info.filename}
    for path in sorted(source.iterdir()):
        info = known.pop(path.name, None)
        # A file without a known checksum is for the builder to judge.
        if info is not None and (sha256 := _sha256(path)) != info.checksum:
            raise DataError(
                f"{str(path)!r} is not the file that TensorFlow Datasets expects under this name:"
                f" its SHA-256 is {sha256[:12]}... and not {info.checksum[:12]}..."
                f"{_instead(builder.name)}"
            )
        (manual / path.name).symlink_to(path.resolve())
    missing = sorted(known)
    if missing and len(missing) == len(builder.url_infos):
        raise DataError(
            f"--from is {str(source)!r}, which has none of the files {', '.join(missing[:4])}"
            + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        )
    return missing


def _sha256(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror})") from error


def _instead(name: str) -> str:
    """How to get a data set without its builder."""
    if name in get_args(Format):
        return f"; `ddpm-jax data convert {name}` reads its public files without it"
    return "; images in a folder need no preparation (--data folder --data.path PATH)"


def _needs_tensorflow(error: BaseException | None) -> bool:
    """Whether an import of TensorFlow that failed is among the causes of an error."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name == "tensorflow":
            return True
        error = error.__cause__ or error.__context__
    return False
