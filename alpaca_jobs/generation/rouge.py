"""ROUGE-L arithmetic exactly as `rouge_score` does it: its tokens, its floating-point expression, no stemmer.

Everything that decides about a duplicate goes through here; prefix_index.py only finds the pairs worth asking about.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

_TOKEN = re.compile(r"[a-z0-9]+")


def tokenize(text: str) -> list[str]:
    """Return rouge_score's tokens of a text: lower case, runs of ASCII letters and digits.

    The package splits on everything else and then throws empty tokens away, which is the same thing in one step.
    Source: rouge_score 0.1.2, tokenize.py, with stemmer=None, as Alpaca used it.
    """
    return _TOKEN.findall(text.lower())


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
