"""What a translation must not touch: code, addresses, placeholders and numbers. Pure.

Code blocks, inline code, URLs, e-mail addresses and placeholders are taken out of a text and stand in it as markers
such as ⟦3⟧, which a translator keeps; afterwards each is put back to the letter. Numbers stay in the text, because
grammar depends on them, and are compared instead.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_KEPT = re.compile(
    r"```.*?```"  # code block
    r"|`[^`\n]+`"  # inline code
    r"|<<<\d+>>>"  # our own headings (translate.py), quoted
    r"|https?://[^\s<>\"')\]]+"
    r"|[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    r"|\{\{[^{}\n]{1,60}\}\}|\$?\{[A-Za-z_][\w.]{0,60}\}"  # {{name}}, {name}, ${name}
    r"|%\([A-Za-z_]\w*\)[sdf]|%[sdf]\b"
    r"|</?[A-Za-z][\w-]{0,30}(?:\s[^<>\n]{0,200})?/?>",  # tags
    re.DOTALL,
)
_MARKER = re.compile(r"⟦\s*(\d+)\s*⟧")
_NUMBER = re.compile(r"\d{1,3}(?:[.,\u00a0\u202f' ]\d{3})+(?!\d)|\d+")
_SEPARATORS = re.compile(r"\D")
MIN_DIGITS = 2
"""Shorter numbers may be written as words in another language (2 apples, duas maçãs) and are not compared."""


def protect(text: str, kept: list[str]) -> str:
    """Return a text with markers for what must not change; what they stand for is added to `kept`.

    A marker that stands in the text already is protected like everything else, so that nothing is mistaken for ours.
    """

    def take(match: re.Match[str]) -> str:
        kept.append(match[0])
        return f"⟦{len(kept)}⟧"

    return re.sub(f"{_MARKER.pattern}|{_KEPT.pattern}", take, text, flags=re.DOTALL)


def restore(text: str, kept: Sequence[str]) -> str:
    """Return a text with its markers replaced by what they stand for; call `has_all_markers` before."""
    return _MARKER.sub(lambda match: kept[int(match[1]) - 1] if 0 < int(match[1]) <= len(kept) else match[0], text)


def has_words(text: str) -> bool:
    """Whether anything but markers, numbers and signs is left to be translated."""
    return any(char.isalpha() for char in _MARKER.sub(" ", text))


def without_markers(text: str) -> str:
    """Return a text without its markers, which are in no language."""
    return _MARKER.sub(" ", text)


def has_all_markers(source: str, made: str) -> bool:
    """Whether a translation has exactly the markers of its source, whatever their order."""
    return Counter(_MARKER.findall(source)) == Counter(_MARKER.findall(made))


def has_all_numbers(source: str, made: str) -> bool:
    """Whether every number of at least MIN_DIGITS digits is in the translation, however its digits are grouped."""
    return not (_numbers(_MARKER.sub(" ", source)) - _numbers(_MARKER.sub(" ", made)))


def _numbers(text: str) -> Counter[str]:
    plain = unicodedata.normalize("NFKC", text)  # full-width digits
    found = (_SEPARATORS.sub("", one) for one in _NUMBER.findall(plain))
    return Counter(one for one in found if len(one) >= MIN_DIGITS)
