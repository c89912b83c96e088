"""ROUGE-L arithmetic exactly as `rouge_score` does it: its tokens, its floating-point expression, no stemmer.

Everything that decides about a duplicate goes through here; prefix_index.py only finds the pairs worth asking about.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

END = "\x00"
"""Stands after each text's tokens in what `token_bytes` returns; no token holds it, nor is it white space."""


_KEPT = frozenset("abcdefghijklmnopqrstuvwxyz0123456789" + END)
_ONLY_TOKENS = bytes(ord(small) if (small := chr(code).lower()) in _KEPT else ord(" ") for code in range(256))
"""For bytes.translate: ASCII letters become small, digits and END stay, everything else is a space."""
_BECOME_ASCII = {"\u0130": "i ", "\u212a": "k"}
"""The two characters beyond ASCII whose small form has an ASCII letter or digit (\u0130: i and a mark)."""


def token_bytes(texts: Iterable[str]) -> bytes:
    """Return rouge_score's tokens of all texts as one piece, with END after each text, and spaces between all of them.

    rouge_score lowers a text, puts a space for every run of other characters than ASCII letters and digits, splits, and
    throws empty tokens away; the same here, but on the bytes of all texts at once.
    Source: rouge_score 0.1.2, tokenize.py, with stemmer=None, as Alpaca used it.
    """
    joined = f" {END} ".join([*(text.replace(END, " ") for text in texts), ""])
    if not joined.isascii():
        for character, small in _BECOME_ASCII.items():
            joined = joined.replace(character, small)
    return joined.encode("ascii", "replace").translate(_ONLY_TOKENS)


def is_read(text: str) -> bool:
    """Whether at least half of a text's letters are a to z, those that rouge_score reads.

    Of a Russian or Chinese text it reads a number or a foreign name at most: texts that share it are the same to it,
    and texts without one are never alike, even where they are the same.
    """
    if text.isascii():
        return True
    read = [character.isascii() for character in text if character.isalpha()]
    return 2 * sum(read) >= len(read)


def f_measure(lcs: npt.ArrayLike, m: npt.ArrayLike, n: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the ROUGE-L F of pairs of texts, bit for bit what rouge_score computes.

    At exactly 0.7 the rounding decides, so the order of operations is rouge_score's; IEEE division, sum and product
    have the same bits in numpy and in Python. Swapping m and n changes none, since sums and products commute.

    Args:
        lcs: tokens in the longest common subsequence, one number per pair.
        m, n: tokens of the two texts; no text may be empty where lcs is not 0.

    Source: rouge_score 0.1.2, scoring.py, fmeasure, and rouge_scorer.py, _score_lcs.
    """
    lcs, m, n = np.broadcast_arrays(lcs, m, n)
    scores = np.zeros(lcs.shape)
    some = lcs > 0
    precision, recall = lcs[some] / n[some], lcs[some] / m[some]
    scores[some] = 2 * precision * recall / (precision + recall)
    return scores
