"""Token ids back to text, for people to read; training never needs it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alpaca_jobs.training.hub import foreign_model_errors
from alpaca_jobs.training.tokenizer import write_folder

_UNFINISHED = "\ufffd"
_MOST_BYTES = 4  # of a character in UTF-8


def token_texts(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> tuple[str, ...]:
    """Return the text of each token, so that all of them together are the text.

    A token is decoded after the one before it, since tokenizers drop a space at the beginning of a text. Where several
    tokens make one character, the last of them has it and the others are empty.
    """
    texts: list[str] = []
    start = 0  # of the tokens that no text was given for
    for place in range(len(ids)):
        before = list(ids[max(0, start - 1) : start])
        known = decode(before) if before else ""
        made = decode([*before, *ids[start : place + 1]])[len(known) :]
        is_open = made.endswith(_UNFINISHED) and place + 1 < len(ids) and place + 1 - start < _MOST_BYTES
        texts.append("" if is_open else made)
        start = start if is_open else place + 1
    return tuple(texts)


def token_decoder(files: Mapping[str, bytes]) -> Callable[[Sequence[int]], str]:
    """Return a function from ids to their text, special tokens included, for a tokenizer's files.

    Raises:
        ModelError: the files are not a tokenizer.
    """
    if "tokenizer.json" in files:
        from tokenizers import Tokenizer

        fast = Tokenizer.from_str(files["tokenizer.json"].decode())
        return lambda ids: str(fast.decode(list(ids), skip_special_tokens=False))
    with tempfile.TemporaryDirectory() as scratch:
        write_folder(files, Path(scratch))
        with foreign_model_errors("the tokenizer", "tokenizer"):
            from transformers import AutoTokenizer

            slow: Any = AutoTokenizer.from_pretrained(scratch)
    return lambda ids: str(slow.decode(list(ids), skip_special_tokens=False))
