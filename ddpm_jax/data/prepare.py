"""Drives the builders of TensorFlow Datasets, with TensorFlow where it is installed and without.

A builder downloads a data set, extracts its images and writes them as array_record. What it asks
of TensorFlow on the way is little for most image data sets: to open files, to encode PNG and JPEG.
Where TensorFlow is missing, a stand-in does these with Python and Pillow, for as long as the
builder works; a builder that asks for more ends with a sentence that says so.

Files that were downloaded by hand come from a folder. They have to be, byte for byte, the files
that TensorFlow Datasets knows by their sha256. Those of a gzip whose header was stripped of name
and time, as Debian's package of Fashion-MNIST has them, get them back first.
"""

import contextlib
import hashlib
import importlib.util
import io
import os
import pathlib
import shutil
import struct
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image

from ddpm_jax.data.images import DataError
from ddpm_jax.data.preparation import first_line
from ddpm_jax.data.prepared import nearest_names

__all__ = ["prepare", "with_gzip_header"]

_GZIP_TIMES = {"train": 1504176606, "t10k": 1504176627}
"""When the files of Fashion-MNIST were compressed, as their headers said, by the beginning of their
names (seconds since 1970)."""
_HAS_NAME = 8
_RETRIES = 4
"""Of a connection, after 0.2 s, 0.4 s and so on."""


def prepare(
    name: str,
    directory: pathlib.Path,
    *,
    source: pathlib.Path | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda sentence: None,
) -> pathlib.Path:
    """Writes the data set `name` of TensorFlow Datasets below `directory`, as array_record.

    Args:
        name: as `ddpm_jax.data.load` takes it.
        directory: of prepared data sets; made if it is not there.
        source: a folder of files that were downloaded by hand; without it they are downloaded.
        overwrite: make it anew if it is there already.
        tell: is told of each step.

    Returns:
        The folder of the data set.

    Raises:
        DataError: an unknown name, a file that is not the one it should be, no connection, or a
            builder that needs more of TensorFlow than is here.
    """
    import tensorflow_datasets as tfds

    if source is not None and not source.is_dir():
        raise DataError(f"--from is {str(source)!r}, which is no folder")
    directory.mkdir(parents=True, exist_ok=True)
    # Away from what is there, which a builder would delete first, and moved there when it is whole.
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
            tell(f"{there} is there already")
            return there
        missing = [] if source is None else _collect(builder, source, manual, tell)
        told = tfds.download.DownloadConfig(
            manual_dir=None if source is None else str(manual), try_download_gcs=False
        )
        try:
            with _tensorflow(tell), _manners():
                builder.download_and_prepare(
                    download_dir=str(directory / "downloads"), download_config=told
                )
        except Exception as error:  # whatever the network, a builder or a file makes of its trouble
            if part := _missing_part(error):
                raise DataError(
                    f"data set {name!r} asks for tensorflow.{part}, which only TensorFlow has; pip"
                    " install tensorflow and try again"
                ) from error
            hint = (
                "it is downloaded, which wants a connection; --from DIR takes files from a folder"
            )
            if source is not None:
                without = f", which has no {' and no '.join(missing)}" if missing else ""
                hint = f"its files are those in {str(source)!r}{without}"
            raise DataError(
                f"data set {name!r} cannot be prepared ({first_line(error)}); {hint}"
            ) from error
        _move(new, there, aside=pathlib.Path(folder, "replaced"))
        defaults = new.parent.parent / ".config"  # which of its configs a bare name means
        if defaults.is_dir():
            shutil.copytree(defaults, there.parent.parent / ".config", dirs_exist_ok=True)
    return there


def _is_own(name: str) -> bool:
    """Whether it is rather the path of images of one's own, or of none that are prepared."""
    return name.startswith(("folder:", "npz:", ".", "/", "~")) or name.endswith(".npz")


def _move(new: pathlib.Path, there: pathlib.Path, *, aside: pathlib.Path) -> None:
    there.parent.mkdir(parents=True, exist_ok=True)
    if there.exists():
        there.rename(aside)
    new.rename(there)


@contextlib.contextmanager
def _manners() -> Iterator[None]:
    """No lines of tfds on stdout, and progress bars on a terminal only.

    A server that is not there is asked for seconds, and not for minutes.
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


def _collect(
    builder: Any, source: pathlib.Path, manual: pathlib.Path, tell: Callable[[str], None]
) -> list[str]:
    """Puts the files of `source` where the builder looks for them, each as it knows it.

    Returns:
        The files that it knows and that are not there.
    """
    known = {info.filename: info for info in builder.url_infos.values() if info.filename}
    for path in sorted(source.iterdir()):
        info = known.pop(path.name, None)
        # What it has no checksum of is its own to judge.
        if info is not None and _sha256(path) != info.checksum:
            contents = with_gzip_header(path.read_bytes(), path.name)
            sha256 = hashlib.sha256(contents).hexdigest()
            if sha256 != info.checksum:
                raise DataError(
                    f"{str(path)!r} is not the file that TensorFlow Datasets knows by this name:"
                    f" its sha256 is {sha256[:12]}... and not {info.checksum[:12]}..."
                )
            tell(f"{path.name}: name and time put back into its gzip header")
            (manual / path.name).write_bytes(contents)
        else:
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


def with_gzip_header(contents: bytes, name: str) -> bytes:
    """A gzip file with the name and the time that its header was stripped of (RFC 1952, 2.3).

    What is no gzip, or has a name, comes back as it is.
    """
    time = next((t for start, t in _GZIP_TIMES.items() if name.startswith(start)), None)
    if contents[:3] != b"\x1f\x8b\x08" or len(contents) < 10 or contents[3] or time is None:
        return contents
    header = contents[:3] + bytes([_HAS_NAME]) + struct.pack("<I", time) + contents[8:10]
    return header + name.removesuffix(".gz").encode() + b"\0" + contents[10:]


class _MissingError(Exception):
    """A builder asked for a part of TensorFlow that the stand-in does not have."""


def _missing_part(error: BaseException | None) -> str | None:
    """Its name, wherever tfds put it among the causes of an error."""
    while error is not None:
        if isinstance(error, _MissingError):
            return str(error.args[0])
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def _tensorflow(tell: Callable[[str], None]) -> Iterator[None]:
    """TensorFlow if there is one, else a stand-in, gone when the context ends."""
    if importlib.util.find_spec("tensorflow") is not None:
        yield
        return
    tell("TensorFlow is not installed; a stand-in opens files and encodes images")
    from tensorflow_datasets.core.features import image_feature
    from tensorflow_datasets.core.utils import lazy_imports_utils

    encoder = image_feature._ImageEncoder
    genuine = encoder._encode_image
    sys.modules["tensorflow"] = _stand_in()
    encoder._encode_image = _encode
    try:
        yield
    finally:
        encoder._encode_image = genuine
        del sys.modules["tensorflow"]
        vars(lazy_imports_utils.tensorflow).pop("_module", None)  # where tfds remembers it


def _stand_in() -> types.ModuleType:
    module = _Part("tensorflow")
    module.__version__ = "2.99"  # type: ignore[attr-defined]  # tfds asks for 2.1 or later
    gfile = _Part("io.gfile", GFile=_open, exists=os.path.exists)
    module.io = _Part("io", gfile=gfile)  # type: ignore[attr-defined]
    module.compat = _Part("compat", as_text=_as_text)  # type: ignore[attr-defined]
    module.Tensor = _NoType  # type: ignore[attr-defined]
    module.dtypes = _Part("dtypes", DType=_NoType)  # type: ignore[attr-defined]
    return module


class _Part(types.ModuleType):
    """What is missing says its name."""

    def __init__(self, name: str, **parts: Any) -> None:
        super().__init__(name)
        vars(self).update(parts)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        prefix = "" if self.__name__ == "tensorflow" else f"{self.__name__}."
        raise _MissingError(prefix + name)


class _NoType:
    """Nothing is of a TensorFlow type."""


def _open(path: Any, mode: str = "r") -> Any:
    return open(path, mode)


def _as_text(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode()


def _encode(self: Any, image: np.ndarray) -> bytes:
    """In place of the builder's own encoder, which runs a TensorFlow graph."""
    file = io.BytesIO()
    flat = image[..., 0] if image.shape[-1] == 1 else image
    PIL.Image.fromarray(flat).save(file, format=self.encoding_format)
    return file.getvalue()
