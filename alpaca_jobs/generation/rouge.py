"""ROUGE-L arithmetic exactly as `rouge_score` does it: its tokens, its floating-point expression, no stemmer.

Everything that decides about a duplicate goes through `least_lcs`; similarity.py only finds the pairs worth asking.
"""

from __future__ import annotations

import re
from functools import lru_cache

_TOKEN = re.compile(r"[a-z0-9]+")


def tokenize(text: str) -> list[str]:
    """Return rouge_score's tokens of a text: lower case, runs of ASCII letters and digits.

    The package splits on everything else and then throws empty tokens away, which is the same thing in one step.
    Source: rouge_score 0.1.2, tokenize.py, with stemmer=None, as Alpaca used it.
    """
    return _TOKEN.findall(text.lower())


def f_measure(lcs: int, m: int, n: int) -> float:
    """Return the ROUGE-L F of two texts of m and n tokens whose longest common subsequence has `lcs` tokens.

    The order of operations is rouge_score's: at exactly 0.7 the rounding decides, and it has to be the same rounding.
    Swapping m and n changes no bit, since both sums and products of two floats commute.
    """
    if m == 0 or n == 0 or lcs == 0:
        return 0.0
    precision, recall = lcs / n, lcs / m
    return 2 * precision * recall / (precision + recall)


@lru_cache(maxsize=65536)
def least_lcs(m: int, n: int, threshold: float) -> int:
    """Return the smallest LCS length with which two texts of m and n tokens are duplicates: F > threshold.

    Args:
        m, n: tokens of the two texts.
        threshold: 0 to 1.

    Returns:
        A length from 1 on; more than min(m, n) when no LCS makes them duplicates.
    """
    # F = 2 lcs / (m + n) up to rounding, so the answer is next to where the real numbers cross the threshold.
    guess = max(1, int(threshold * (m + n) / 2) - 1)
    while guess <= min(m, n) and not f_measure(guess, m, n) > threshold:
        guess += 1
    return guess
