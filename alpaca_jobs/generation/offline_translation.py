"""The offline teacher's answers to translation requests: no translation, but text that shows the path works.

Every line of a part gets the sign of the language in front, "[demo pt]", and every word its vowels marked; markers and
numbers stay. Some answers are wrong on purpose (cut off, empty, untranslated, a marker lost), as a teacher's are.
"""

from __future__ import annotations

import random
import re

_REQUEST = re.compile(r"\ATranslate the parts below into (\w+) ")
_HEAD = re.compile(r"^<<<(\d+)>>>[ \t]*$", re.MULTILINE)
_PIECE = re.compile(r"(⟦\s*\d+\s*⟧)")
_VOWELS = str.maketrans("aeiouAEIOU", "âêîôûÂÊÎÔÛ")
FLAW_SHARE = 0.08


def compose_translation(prompt: str, rng: random.Random) -> tuple[str, str] | None:
    """Return (text, finish_reason) for a translation request, None for any other prompt."""
    match = _REQUEST.match(prompt)
    if match is None:
        return None
    pieces = _HEAD.split(prompt)
    parts = [piece.strip("\n") for piece in pieces[2::2]]
    made = [_pretend(part, match[1]) for part in parts]
    if rng.random() < FLAW_SHARE:
        flaw = rng.randrange(4)
        if flaw == 0:
            return _render(made)[: len(_render(made)) // 2], "length"
        if flaw == 1:
            made[-1] = ""
        if flaw == 2:
            made = parts
        if flaw == 3:
            made = [_PIECE.sub("", part) + " 999" for part in made[:-1]]
    return _render(made), "stop"


def _pretend(text: str, language: str) -> str:
    lines = []
    for line in text.split("\n"):
        pieces = _PIECE.split(line)
        changed = "".join(piece if _PIECE.fullmatch(piece) else piece.translate(_VOWELS) for piece in pieces)
        lines.append(f"[demo {language}] {changed}" if line.strip() else line)
    return "\n".join(lines)


def _render(parts: list[str]) -> str:
    return "\n".join(f"<<<{place}>>>\n{text}" for place, text in enumerate(parts, start=1))
