"""Made-up instructions with the statistics that matter to dedupe; no data set is needed, and any number can be had.

Words follow Zipf's law over 40,000 invented ones; 70 % of the new instructions begin with one of 300 common openings;
lengths are log-normal with 13 words on average (Alpaca's 52,002 have 13.6); a given share are near-duplicates: an
earlier instruction with one or two words replaced, added or removed.
"""

from __future__ import annotations

import random
from itertools import accumulate

_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"
_NUM_WORDS, _NUM_OPENINGS = 40_000, 300


def make_instructions(count: int, *, seed: int = 0, near_duplicates: float = 0.4) -> list[str]:
    """Return `count` instructions; the same arguments always give the same ones."""
    rng = random.Random(seed)
    words = [_word(number) for number in range(_NUM_WORDS)]
    common = list(accumulate(1 / (number + 8) for number in range(_NUM_WORDS)))
    openings = [rng.choices(words, cum_weights=common, k=rng.randint(2, 5)) for _ in range(_NUM_OPENINGS)]
    popular = list(accumulate(1 / (number + 3) for number in range(_NUM_OPENINGS)))
    originals: list[list[str]] = []
    texts = []
    for _ in range(count):
        if originals and rng.random() < near_duplicates:
            text = _change(rng, rng.choice(originals), words, common)
        else:
            text = rng.choices(openings, cum_weights=popular)[0][:] if rng.random() < 0.7 else []
            length = min(60, max(4, round(rng.lognormvariate(2.48, 0.42))))
            text += rng.choices(words, cum_weights=common, k=max(1, length - len(text)))
            originals.append(text)
        texts.append(" ".join(text).capitalize() + ".")
    return texts


def _change(rng: random.Random, text: list[str], words: list[str], common: list[float]) -> list[str]:
    text = list(text)
    for _ in range(rng.choice((1, 1, 1, 2, 2))):
        place, kind = rng.randrange(len(text)), rng.random()
        new = [] if kind < 0.2 and len(text) > 4 else rng.choices(words, cum_weights=common)
        text[place : place + (kind < 0.8)] = new
    return text


def _word(number: int) -> str:
    word, number = "", number + 7
    while number:
        number, digit = divmod(number, len(_CONSONANTS) * len(_VOWELS))
        word += _CONSONANTS[digit // len(_VOWELS)] + _VOWELS[digit % len(_VOWELS)]
    return word
