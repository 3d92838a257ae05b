"""Folders of diffusers from the Hugging Face hub, by the extra `hub`.

What is downloaded stays in the hub's own cache (HF_HOME), which its other programs share. Where
there is no network, or HF_HUB_OFFLINE is set, what is in the cache is used.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm_jax.errors import require
from ddpm_jax.files import JsonFileError, read_json
from ddpm_jax.weights.weights import WeightsError

__all__ = ["download"]

_DESCRIPTIONS = ("model_index.json", "config.json", "scheduler_config.json")
_FOLDERS = ("", "unet/", "unet_ema/")
"""Where the files of a network may be."""
_NAME = "diffusion_pytorch_model"
_COMPONENTS = {"unet", "scheduler"}
"""Of a pipeline that draws pixels."""


def download(
    name: str,
    revision: str | None = None,
    *,
    variant: str | None = None,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> tuple[Path, str]:
    """The folder of a model and its commit; downloads what is needed of it and not there yet.

    First the files that describe it. Its parameters follow if it is a pipeline that draws pixels,
    or a network alone: .safetensors, or .bin where there are none. Of another pipeline only the
    description comes, of which `from_diffusers` says what it is.

    Args:
        name: "google/ddpm-cifar10-32".
        revision: branch, tag or commit; by default the main branch.
        variant: of the files of parameters, as "fp16".
        endpoint: of another server; by default HF_ENDPOINT or huggingface.co.
        cache: another folder of downloads.

    Raises:
        MissingExtra: huggingface_hub is not installed.
        WeightsError: the server has no such model or revision, or wants a token for it; there is no
            network, and the model is not in the cache.
    """
    for what, text in (("a name", name), ("a revision", revision or "")):
        if ".." in text:  # the cache has folders of these names
            raise WeightsError(f"{text!r} is not {what} on the Hugging Face hub")
    require("a model of the Hugging Face hub", "hub", "huggingface_hub")
    from huggingface_hub import constants, snapshot_download

    def get(*patterns: str) -> Path:
        with _sentences(name, revision, endpoint or constants.ENDPOINT), _quiet():
            folder = snapshot_download(
                name,
                revision=revision,
                endpoint=endpoint,
                cache_dir=cache,
                allow_patterns=list(patterns),
                library_name="ddpm_jax",
            )
            return Path(folder)

    places = (*_FOLDERS, "scheduler/")
    described = [f"{place}{file}" for place in places for file in _DESCRIPTIONS]
    folder = get(*described)
    commit = folder.name
    if not _draws_pixels(folder):
        return folder, commit
    ending = "" if variant is None else f".{variant}"

    def files(kind: str) -> list[str]:
        names = (
            f"{ending}.{kind}",
            f"{ending}-?????-of-?????.{kind}",
            f".{kind}.index{ending}.json",
        )
        return [f"{place}{_NAME}{name}" for place in _FOLDERS for name in names]

    folder = get(*described, *files("safetensors"))
    if not any(folder.rglob("*.safetensors")):
        folder = get(*described, *files("bin"))
    if folder.name != commit:
        raise WeightsError(
            f"{name!r} has changed while it was downloaded; run the same command again"
        )
    return folder, commit


def _draws_pixels(folder: Path) -> bool:
    """Whether it is a network alone, or a pipeline without autoencoders and the like."""
    index = folder / "model_index.json"
    if not index.exists():
        return True
    try:
        values = read_json(index)
    except JsonFileError:
        return False
    return {key for key in values if not key.startswith("_")} <= _COMPONENTS


@contextlib.contextmanager
def _sentences(name: str, revision: str | None, endpoint: str) -> Iterator[None]:
    """Whatever happens to a download is one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise WeightsError(
            f"{name!r} is gated on {endpoint}: accept its terms on its page, and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise WeightsError(
            f"there is no model {name!r} on {endpoint}; or it is private, and HF_TOKEN is not that"
            " of somebody who may read it"
        ) from None
    except errors.RevisionNotFoundError:
        raise WeightsError(f"--revision is {revision!r}, which {name!r} does not have") from None
    except errors.LocalEntryNotFoundError as error:
        offline = isinstance(error.__cause__, errors.OfflineModeIsEnabled)
        reason = "HF_HUB_OFFLINE is set" if offline else f"{endpoint} cannot be reached"
        whole = isinstance(error, errors.IncompleteSnapshotError)
        raise WeightsError(
            f"{reason}, and {name!r} is not {'complete ' if whole else ''}in the cache of downloads"
        ) from error
    except Exception as error:  # of the network, the disk, or the names of models
        line = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise WeightsError(f"{name!r} cannot be downloaded from {endpoint}: {line[0]}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses warnings that a sentence repeats, and progress bars outside of a terminal."""
    from huggingface_hub import utils

    logger: Any = logging.getLogger("huggingface_hub")
    level, had_bars = logger.level, not utils.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    silence = had_bars and not sys.stderr.isatty()
    if silence:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if silence:
            utils.enable_progress_bars()
