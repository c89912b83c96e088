"""A base model of the Hugging Face hub as its list of files and small files tell it; its weights are not fetched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from alpaca_jobs.training.base_model import INDEXES, SMALL_FILES, BaseModel, weight_files
from alpaca_jobs.training.hub import hub_answers

_LARGEST_BYTES: Final = 64 * 2**20  # of a small file; the index of DeepSeek-V3 is 9 MB
_ZIP: Final = b"PK"


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
    if not sizes:  # a mirror that lists none
        return BaseModel(model, None, {}, revision=info.sha, is_closed=bool(info.gated or info.private))
    files = weight_files(sizes)
    is_closed = bool(info.gated or info.private)
    wanted = [name for name in (*SMALL_FILES, *_index_of(files)) if name in sizes and sizes[name] < _LARGEST_BYTES]
    with hub_answers(model, revision):
        texts = {name: b"".join(_read(model, info.sha, name, timeout_s)) for name in wanted}
        is_whole = None
        if files and not files[0].endswith(".safetensors"):
            is_whole = not b"".join(_read(model, info.sha, files[0], timeout_s, first=len(_ZIP))).startswith(_ZIP)
    stored = getattr(info.safetensors, "parameters", None) or {}
    return BaseModel(
        model, sizes, texts, revision=info.sha, is_closed=is_closed, stored=dict(stored),
        is_whole=is_whole if files and not files[0].endswith(".safetensors") else False,
    )  # fmt: skip


def _index_of(files: list[str]) -> list[str]:
    return [name for name in INDEXES if files and name.endswith(f"{files[0].rpartition('.')[2]}.index.json")]


def _read(model: str, commit: str, name: str, timeout_s: float, *, first: int | None = None) -> Iterator[bytes]:
    """A file's bytes, or the first of them."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    headers = build_hf_headers() | ({} if first is None else {"Range": f"bytes=0-{first - 1}"})
    url = hf_hub_url(model, name, revision=commit)
    with get_session().stream("GET", url, headers=headers, timeout=timeout_s, follow_redirects=True) as answer:
        if answer.status_code >= 400:
            answer.read()
        hf_raise_for_status(answer)
        read = 0
        for block in answer.iter_bytes():
            read += len(block)
            yield block
            if read >= (first or _LARGEST_BYTES):  # a server may not heed the range
                return
