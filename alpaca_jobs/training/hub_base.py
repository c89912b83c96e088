"""A base model of the Hugging Face hub as its list of files and small files tell it; its weights are not fetched."""

from __future__ import annotations

from typing import Any, Final

from alpaca_jobs.training.base_model import INDEXES, SMALL_FILES, BaseModel, is_read_at_once, weight_files
from alpaca_jobs.training.hub import hub_answers

_LARGEST_BYTES: Final = 64 * 2**20  # of a small file; the index of DeepSeek-V3 is 9 MB


def fetch_base(model: str, revision: str | None, *, timeout_s: float) -> BaseModel:
    """Ask the hub for a model's files at a revision (None: its main branch), and read the small ones.

    Args:
        timeout_s: longest wait for each answer.

    Raises:
        HubSilent: it cannot be reached, or fails.
        ModelError: it knows no such model or revision, or this account may not download it.
    """
    from huggingface_hub import HfApi

    with hub_answers(model, revision):
        info: Any = HfApi().model_info(model, revision=revision, files_metadata=True, timeout=timeout_s)
    sizes = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    is_closed = bool(info.gated or info.private)
    if not sizes:  # a mirror that lists none
        return BaseModel(model, None, {}, revision=info.sha, is_closed=is_closed)
    files = weight_files(sizes)
    wanted = [name for name in (*SMALL_FILES, *_index_of(files)) if name in sizes and sizes[name] < _LARGEST_BYTES]
    with hub_answers(model, revision):
        texts = {name: _read(model, info.sha, name, timeout_s) for name in wanted}
        is_whole = is_read_at_once(files, lambda name, count: _read(model, info.sha, name, timeout_s, first=count))
    stored = getattr(info.safetensors, "parameters", None) or {}
    return BaseModel(
        model, sizes, texts, revision=info.sha, is_closed=is_closed, stored=dict(stored), is_whole=is_whole
    )  # fmt: skip


def _index_of(files: list[str]) -> list[str]:
    return [name for name in INDEXES if files and name.endswith(f"{files[0].rpartition('.')[2]}.index.json")]


def _read(model: str, commit: str, name: str, timeout_s: float, *, first: int = _LARGEST_BYTES) -> bytes:
    """A file's bytes, or the first of them."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    headers = build_hf_headers() | ({} if first == _LARGEST_BYTES else {"Range": f"bytes=0-{first - 1}"})
    url = hf_hub_url(model, name, revision=commit)
    with get_session().stream("GET", url, headers=headers, timeout=timeout_s, follow_redirects=True) as answer:
        if answer.status_code >= 400:
            answer.read()
        hf_raise_for_status(answer)
        read = bytearray()
        for block in answer.iter_bytes():
            read += block
            if len(read) >= first:  # a server may not heed the range
                break
    return bytes(read[:first])
