"""Base models by name: what is here, what is on the Hugging Face hub, and errors in words when it is neither."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alpaca_jobs.errors import ModelError
from alpaca_jobs.known_models import KNOWN_MODELS
from alpaca_jobs.training.revision import fetch_revision
from alpaca_jobs.training.run_models import is_run, run_model_folder

TINY_LLAMA = "tiny-llama"
"""The preset that needs no download: about 1 M parameters, tokenizer trained on the run's own rows."""

HUB_TIMEOUT_S = 15.0
"""Longest wait for the hub's answer to whether a model exists."""


def is_path(model: str) -> bool:
    """Whether a base model's name is a folder's path. What does not begin so is a name on the hub (spec_io.py makes an
    absolute path of one that lies beside its job).
    """
    return model.startswith((".", "/", "~"))


def resolve_model(model: str, *, weights: bool = False, timeout_s: float = HUB_TIMEOUT_S) -> str:
    """What from_pretrained should be given for a base model: a folder that exists, or a hub name that answers.

    The hub is asked one question first: the library itself retries each file for minutes when the network is closed,
    and then names a file the user never heard of.

    Args:
        model: a folder, a run's URI, owner/name, or owner/name@revision: the last is fetched and given as a folder.
        weights: of a model with a revision, whether the weights are needed as well.

    Raises:
        ModelError: no such folder and no such model, or the hub cannot be reached and the model is not cached.
    """
    if is_run(model):
        return str(run_model_folder(model))
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"train.model is the folder {path}, but it holds no config.json, so it is not a model that "
                "from_pretrained can load. Name the folder that holds config.json and the weights."
            )
        return str(path)
    if is_path(model) or model.count("/") > 1:
        raise ModelError(
            f"train.model is {model}, but there is no such folder here. Give a folder with config.json in it, a name "
            f"on the Hugging Face hub (owner/name), or {TINY_LLAMA}."
        )
    name, _, revision = model.partition("@")
    if revision:
        return str(fetch_revision(name, revision, weights=weights))
    if not _is_cached(model):
        ask_hub(model, timeout_s=timeout_s)
    return model


def _is_cached(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:
        return False  # the hub has the better words for a name that cannot be


class HubSilent(ModelError):
    """The hub cannot be reached, or fails: nothing is known about the model.

    Attributes:
        why: what is wrong with the hub, in words that go on a sentence.
    """

    def __init__(self, message: str, why: str = "") -> None:
        super().__init__(message)  # alone, with a default for the rest: so it comes whole from another process
        self.why = why


def ask_hub(model: str, *, revision: str | None = None, timeout_s: float = HUB_TIMEOUT_S) -> str | None:
    """The commit that the hub has for a model's revision (None: its main branch). Raises as `hub_answers`."""
    from huggingface_hub import HfApi

    with hub_answers(model, revision):
        return HfApi().model_info(model, revision=revision, timeout=timeout_s).sha


@contextmanager
def hub_answers(model: str, revision: str | None = None) -> Iterator[None]:
    """Turn what goes wrong with a question to the hub about a model into words.

    Raises:
        HubSilent: it cannot be reached, or fails.
        ModelError: it knows no such model or revision, or does not hand it out to this account.
    """
    import httpx
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except RevisionNotFoundError as exc:
        raise ModelError(
            f"train.revision is {revision}, and {model} has no such branch, tag or commit on the Hugging Face hub. "
            "Look it up on the model's page, or leave train.revision out."
        ) from exc
    except GatedRepoError as exc:
        raise ModelError(
            f"train.model is {model}, which is handed out only to people who accepted its terms, and {_whose_token()}. "
            f"Accept them on its page at the Hugging Face hub, set a token of that account (export HF_TOKEN=...), and "
            "list HF_TOKEN under secrets."
        ) from exc
    except (RepositoryNotFoundError, HFValidationError) as exc:
        raise ModelError(
            f"train.model is {model}, but there is no such folder here and no such model on the Hugging Face hub"
            f"{_nearest(model)}, or it is private and {_whose_token()}. A private model needs HF_TOKEN under secrets."
        ) from exc
    except HfHubHTTPError as exc:
        status = getattr(exc.response, "status_code", None)
        if status in (401, 403):
            raise ModelError(
                f"train.model is {model}, and the Hugging Face hub does not hand it out ({status}): {_whose_token()}. "
                "Look at the token (export HF_TOKEN=...): is it valid, and may it read this repository?"
            ) from exc
        why = f"the Hugging Face hub answered with an error: {_first_line(exc)}"
        raise HubSilent(f"train.model is {model}, and {why}. Try again later, or give a folder.", why=why) from exc
    except ValueError as exc:  # of json: a proxy's own page, for example
        why = f"what answered in the Hugging Face hub's place is not the hub ({_first_line(exc)})"
        remedy = "Check HF_ENDPOINT and the network's proxy, or give a folder."
        raise HubSilent(f"train.model is {model}, and {why}. {remedy}", why=why) from exc
    except (httpx.HTTPError, ConnectionError) as exc:  # OfflineModeIsEnabled is a ConnectionError
        raise HubSilent(
            f"train.model is {model}; it is neither a folder here nor in this machine's Hugging Face cache, and the "
            f"hub cannot be reached{_nearest(model)}. Check the name and the network, or give a folder. "
            f"({_first_line(exc)})",
            why="the hub cannot be reached from here",
        ) from exc


def _whose_token() -> str:
    """Whether somebody is signed in at the hub here, in words."""
    from huggingface_hub import get_token

    return "the account that is signed in here has not" if get_token() else "nobody is signed in here"


def _nearest(model: str) -> str:
    close = difflib.get_close_matches(model, KNOWN_MODELS, n=1)
    return f" (did you mean {close[0]}?)" if close and close[0] != model else ""


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0].rstrip(".")


@contextmanager
def foreign_model_errors(model: str, part: str) -> Iterator[None]:
    """Turn what transformers raises while it loads the `part` of a model into a ModelError."""
    from huggingface_hub.errors import GatedRepoError
    from safetensors import SafetensorError

    try:
        yield
    except RecursionError as exc:  # transformers 5.17 and a special token that is the empty text
        raise ModelError(
            f"The {part} of {model} cannot be loaded: a special token in it is the empty text. Look at eos_token, "
            "bos_token and unk_token in tokenizer_config.json and special_tokens_map.json."
        ) from exc
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as exc:
        if isinstance(exc, GatedRepoError) or isinstance(exc.__cause__, GatedRepoError):
            raise ModelError(
                f"{model} is handed out only to people who accepted its terms. Accept them on its page at the Hugging "
                "Face hub, and list HF_TOKEN under secrets."
            ) from exc
        if "trust_remote_code" in str(exc):
            raise ModelError(
                f"The {part} of {model} is code that comes with the model, and such code is not run. Name a checkpoint "
                "that transformers' own classes load; for InternLM how to make one is in docs/TRAINING.md (Models)."
            ) from exc
        raise ModelError(
            f"The {part} of {model} cannot be loaded: {_first_line(exc)}. Check that it is a decoder-only language "
            "model with weights in safetensors and that this version of transformers knows its architecture."
        ) from exc
