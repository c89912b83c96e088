"""What `data preview` would warn of, for a job whose rows and tokenizer are on this machine; nothing is fetched."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from alpaca_jobs.spec import JobSpec

NUM_ROWS = 2000
"""Rows that are looked at: enough to see what is wrong with a file, quick enough for every launch."""
MAX_BYTES = 200 * 2**20


def local_warnings(job: JobSpec) -> list[str]:
    """Return sentences about the first NUM_ROWS rows; none where rows or tokenizer are not here.

    Raises:
        DataError: rows of another recipe, or rows that cannot be read.
    """
    source = job.data.from_
    if source is None or "://" in source or not _is_small_file(source) or not _is_tokenizer_here(job.train.model):
        return []
    from alpaca_jobs.training.preview import preview_tokens
    from alpaca_jobs.training.reading import first_training_records

    records = first_training_records(source, job.train, NUM_ROWS)
    return [found.words for found in preview_tokens(records, job.train, places=()).warnings]


def _is_small_file(source: str) -> bool:
    path = Path(source).expanduser()
    return path.is_file() and path.stat().st_size <= MAX_BYTES


def _is_tokenizer_here(model: str) -> bool:
    if any(find_spec(name) is None for name in ("numpy", "tokenizers", "huggingface_hub")):
        return False
    if model == "tiny-llama":
        return True
    if find_spec("transformers") is None:
        return False
    folder = Path(model).expanduser()
    if folder.is_dir():
        return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    from huggingface_hub import try_to_load_from_cache

    return model.count("/") == 1 and isinstance(try_to_load_from_cache(model, "tokenizer_config.json"), str)
