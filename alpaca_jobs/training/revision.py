"""A model of the Hugging Face hub at one revision, as a folder of this machine's cache."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from alpaca_jobs.errors import ModelError

_SMALL_FILES: Final = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "README.md", "LICENSE*")
_WEIGHTS: Final = ("*.safetensors", "*.bin")
_NOT_WEIGHTS: Final = ("*/*.safetensors", "*/*.bin", "consolidated*")
"""The same weights once more, in the layout of other programs: from_pretrained does not read them."""


def fetched_files(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that a machine fetches which needs the weights: safetensors, or else .bin."""
    wanted = [name for name in names if not any(fnmatch(name, pattern) for pattern in _NOT_WEIGHTS)]
    found: list[str] = []
    for pattern in _WEIGHTS:
        if found := [name for name in wanted if fnmatch(name, pattern)]:
            break
    return sorted({*found, *(name for name in wanted if any(fnmatch(name, pattern) for pattern in _SMALL_FILES))})


def fetch_revision(model: str, revision: str, *, weights: bool) -> Path:
    """The folder of a model at a revision; fetched as far as the cache lacks it.

    Args:
        weights: whether the weights have to be there as well: safetensors, or else PyTorch's .bin files.

    Raises:
        ModelError: there is no such model or revision, or the hub cannot be reached and the cache lacks it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    folder = Path()
    try:
        for pattern in _WEIGHTS if weights else ("config.json",):
            folder = Path(
                snapshot_download(
                    model, revision=revision, allow_patterns=[*_SMALL_FILES, pattern], ignore_patterns=[*_NOT_WEIGHTS]
                )
            )
            if any(folder.glob(pattern)):
                break
    except LocalEntryNotFoundError as exc:
        raise ModelError(
            f"{model} at revision {revision} is not in this machine's Hugging Face cache, and the hub cannot be "
            f"reached. Check the network, or fetch it before: hf download {model} --revision {revision}"
        ) from exc
    except HfHubHTTPError as exc:
        said = (str(exc).strip().splitlines() or [type(exc).__name__])[0].rstrip(".")
        raise ModelError(
            f"train.model is {model} at train.revision {revision}, and the Hugging Face hub does not hand it out: "
            f"{said}. Look the revision up on the model's page; a private or gated model needs HF_TOKEN under secrets."
        ) from exc
    if not (folder / "config.json").is_file():
        raise ModelError(f"{model} at revision {revision} holds no config.json, so from_pretrained cannot load it.")
    return folder


def cached_commit(model: str, revision: str | None) -> str | None:
    """The commit that a branch (None: main), tag or commit stands for in this machine's cache; None if not there."""
    folder = cached_folder(model, revision)
    return None if folder is None else folder.name


def cached_folder(model: str, revision: str | None) -> Path | None:
    """What this machine's cache has of a model at a branch (None: main), tag or commit; None where that is nothing."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
