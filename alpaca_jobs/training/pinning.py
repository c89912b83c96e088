"""Which commit of a base model a run trains: settled once, at launch, so that every attempt loads the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from alpaca_jobs.errors import ModelError
from alpaca_jobs.training.hub import HUB_TIMEOUT_S, TINY_LLAMA, HubSilent, ask_hub, is_path
from alpaca_jobs.training.known_faults import check_config
from alpaca_jobs.training.revision import cached_commit
from alpaca_jobs.training.run_models import check_run_model, is_run
from checkpoints.errors import CheckpointError

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Pinned:
    """The revision to write into the job, and what is to be said about it; both may be empty."""

    revision: str | None
    words: str = ""


def pin_revision(
    model: str, revision: str | None, *, timeout_s: float = HUB_TIMEOUT_S, asks: bool = True
) -> Pinned:  # fmt: skip
    """Settle a base model's revision: the commit that a branch, a tag or nothing at all stands for now.

    The hub is asked first: a branch may have moved since the cache was filled. Where it cannot be asked, the cache's
    commit is taken; where that is not there either, nothing is pinned. Both are said in words.

    Args:
        asks: whether the hub is asked; not where it was silent just now.

    Raises:
        ModelError: there is no such model or revision, a revision of something that has none, a run that has exported
            no whole model, or a folder with quantised weights.
    """
    if model == TINY_LLAMA or is_run(model) or is_path(model):
        if revision is not None:
            raise ModelError(
                f"train.revision is {revision}, but train.model is {model}, which is no model of the Hugging Face hub "
                "and has no revisions. Leave train.revision out."
            )
        if Path(model).expanduser().is_dir():
            check_config(Path(model).expanduser(), model)
        return _look_at_run(model) if is_run(model) else Pinned(None)
    if revision is not None and _COMMIT.fullmatch(revision):
        return Pinned(revision)
    if find_spec("huggingface_hub") is None:
        return Pinned(revision, f"The revision of {model} is not pinned: huggingface_hub is not installed here.")
    shown = revision or "main"
    if asks:
        try:
            return Pinned(ask_hub(model, revision=revision, timeout_s=timeout_s))
        except HubSilent:
            pass  # the cache may know
    commit = cached_commit(model, revision)
    if commit is not None:
        words = f"The hub cannot be reached: {model} is pinned to {shown} as this cache has it, {commit[:12]}."
        return Pinned(commit, words)
    return Pinned(
        revision,
        f"The revision of {model} is not pinned: the hub cannot be reached from here, and the cache lacks {shown}. "
        "Every attempt takes what the hub has then; set train.revision to a commit to be sure.",
    )


def _look_at_run(uri: str) -> Pinned:
    try:
        check_run_model(uri)
    except CheckpointError as exc:  # a store that only the nodes reach
        return Pinned(None, f"The model of {uri} was not looked at: its store cannot be read from here ({exc}).")
    return Pinned(None)
