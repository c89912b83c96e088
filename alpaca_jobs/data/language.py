"""Which language a text is in, as far as py3langid can tell, and what languages are called. Only `is_in` loads it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from alpaca_jobs.errors import DataError

NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "gl": "Galician", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "ms": "Malay",
    "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "sk": "Slovak", "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil",
    "th": "Thai", "tl": "Tagalog", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip
"""ISO 639-1 code -> English name; py3langid tells all of them."""
_SCRIPTS = {"zh": ("CJK",), "ja": ("HIRAGANA", "KATAKANA"), "ko": ("HANGUL",)}
MIN_LETTERS = 20
"""Letters that a text needs before its language is judged; of a script with a sign a word or syllable, a third."""
_NEAR = 3
"""The target has to be among so many best guesses: short Portuguese is often taken for Galician."""


def language_name(code: str) -> str:
    """Return a language's English name.

    Raises:
        DataError: no code known here.
    """
    if code not in NAMES:
        raise DataError(f"{code!r} is no language code known here. Known are {', '.join(NAMES)}.")
    return NAMES[code]


def is_long_enough(text: str) -> bool:
    """Whether a text has letters enough for its language to be told."""
    letters = [char for char in text if char.isalpha()]
    dense = any(_is_of(char, scripts) for scripts in _SCRIPTS.values() for char in letters[:MIN_LETTERS])
    return len(letters) >= (MIN_LETTERS // 3 if dense else MIN_LETTERS)


def is_in(text: str, code: str, *, not_in: str) -> bool:
    """Whether a text can be in a language: one of the best guesses, and a better one than the language it came from.

    Texts that are too short to tell are taken to be. A language with a script of its own has to show it.
    """
    letters = [char for char in text if char.isalpha()]
    needed = MIN_LETTERS // 3 if code in _SCRIPTS else MIN_LETTERS
    if len(letters) < needed:
        return True
    if code in _SCRIPTS and not any(_is_of(char, _SCRIPTS[code]) for char in letters):
        return False
    from py3langid import rank

    order = [str(found) for found, _ in rank(text)]
    if code not in order:
        return True
    place = order.index(code)
    return place < _NEAR and (code == not_in or not_in not in order or place < order.index(not_in))


def _is_of(char: str, scripts: Sequence[str]) -> bool:
    return unicodedata.name(char, "").startswith(tuple(scripts))
