"""Cleaning shared chats (ShareGPT's shape): HTML to Markdown, broken and foreign ones dropped, long ones split.

What FastChat did to the chats that Vicuna was trained on, each drop counted with its reason. A chat that is fine stays
as it is, to the letter.
Source: FastChat, fastchat/data/clean_sharegpt.py, optional_clean.py, split_long_conversation.py (2023).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alpaca_jobs.data.formats import Example, Turn
from alpaca_jobs.data.language import is_long_enough, language_name

EMPTY, NOT_IN_TURN, REPEATED, FOREIGN, BLOCKED = "empty", "not_in_turn", "repeated", "foreign", "blocked"
BLOCKED_ANSWERS = ("Too many requests in 1 hour. Try again later.",)
"""Answers that are the service's, not the model's. Source: FastChat, clean_sharegpt.py."""
_TAG = re.compile(
    r"</?(?:div|p|span|pre|code|ol|ul|li|h[1-6]|table|thead|tbody|tr|td|th|br|a|strong|em)\b[^<>]*>", re.I
)
_FENCE = re.compile(r"^\s*```", re.MULTILINE)
_INLINE_CODE = re.compile(r"`[^`\n]*`")
_COPY_BUTTON = re.compile(r"^[ \t]*Copy code[ \t]*$\n?", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
_LANGUAGE_CLASS = re.compile(r"language-([\w+#-]+)")
_LANGUAGE_CHARACTERS = 4000  # of a chat, that its language is told by


@dataclass
class Cleaned:
    """Chats that stay, in order; how many were dropped by reason; how many had HTML; how many parts were split off.

    `num_too_long`: parts of one exchange that is longer than the limit by itself; training cuts them.
    """

    chats: list[Example] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)
    num_html: int = 0
    num_split: int = 0
    num_too_long: int = 0


def num_words(turns: Sequence[Turn]) -> int:
    """Words of a chat, by white space."""
    return sum(len(turn.text.split()) for turn in turns)


def clean_chats(
    chats: Sequence[Example],
    *,
    language: str | None = None,
    max_length: int | None = None,
    length: Callable[[Sequence[Turn]], int] = num_words,
    blocked: Collection[str] = BLOCKED_ANSWERS,
) -> Cleaned:
    """Clean chats, in order. HTML is converted in answers alone: in a question it is what the question is about.

    Args:
        language: ISO 639-1 code, such as en; chats told to be in another are dropped, those too short to tell are not.
            None keeps all.
        max_length: a longer chat is split between two exchanges; one exchange is never cut. None splits none.
        length: of a chat, in the unit of `max_length`: words, or a model's tokens (training/chat_length.py).
        blocked: a chat with an answer that says this and nothing else is dropped.

    Raises:
        DataError: a language that is no code known here.
    """
    if language is not None:
        language_name(language)
    found, seen = Cleaned(), set()
    is_blocked = frozenset(text.strip() for text in blocked)
    for chat in chats:
        turns = tuple(
            replace(turn, text=to_markdown(turn.text)) if turn.role == "assistant" else turn for turn in chat.turns
        )
        found.num_html += turns != chat.turns
        turns = _from_question_to_answer(turns)
        reason = _problem(turns)
        key = hashlib.sha256(repr(turns).encode()).digest()
        if reason is None and key in seen:
            reason = REPEATED
        if reason is None and any(_is_answer_of(is_blocked, turn) for turn in turns):
            reason = BLOCKED
        if reason is None and language is not None and _language_of(turns) not in (None, language):
            reason = FOREIGN
        if reason is not None:
            found.drops[reason] += 1
            continue
        seen.add(key)
        parts = _split(turns, max_length, length)
        found.num_too_long += max_length is not None and sum(length(part) > max_length for part in parts)
        found.num_split += len(parts) - 1
        names = [chat.name] if len(parts) == 1 else [f"{chat.name}_{number}" for number in range(len(parts))]
        found.chats += [Example(name, part) for name, part in zip(names, parts, strict=True)]
    return found


def to_markdown(text: str) -> str:
    """Return a text with its HTML as Markdown; one that is Markdown already, or only quotes tags as code, as it is."""
    if _FENCE.search(text) or not _TAG.search(_INLINE_CODE.sub("", text)):
        return text
    from markdownify import markdownify

    made: str = markdownify(
        text, heading_style="ATX", bullets="-", escape_asterisks=False, escape_underscores=False, escape_misc=False,
        code_language_callback=_code_language,
    )  # fmt: skip
    return _BLANK_LINES.sub("\n\n", _COPY_BUTTON.sub("", made)).strip()


def _code_language(element: Any) -> str:
    """Return the language of a <pre>, which exports write on the <code> inside it."""
    names = " ".join(name for one in (element, *element.find_all("code")) for name in one.get("class", ()))
    match = _LANGUAGE_CLASS.search(names)
    return match[1] if match else ""


def _from_question_to_answer(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Leave out what is said before the first question and after the last answer; a system text stays in front."""
    system = [turn for turn in turns[:1] if turn.role == "system"]
    rest = list(turns[len(system) :])
    while rest and rest[0].role != "user":
        rest.pop(0)
    while rest and rest[-1].role != "assistant":
        rest.pop()
    return (*system, *rest)


def _problem(turns: Sequence[Turn]) -> str | None:
    spoken = [turn for turn in turns if turn.role != "system"]
    if not spoken or any(not turn.text.strip() for turn in spoken):
        return EMPTY
    roles = [turn.role for turn in turns[len(turns) - len(spoken) :]]
    return None if roles == ["user", "assistant"] * (len(spoken) // 2) else NOT_IN_TURN


def _is_answer_of(texts: Collection[str], turn: Turn) -> bool:
    """Whether a turn is one of these answers; FastChat knows them with an exclamation mark in front, too."""
    said = turn.text.strip()
    return turn.role == "assistant" and (said in texts or said.removeprefix("!") in texts)


def _language_of(turns: Sequence[Turn]) -> str | None:
    """The code of a chat's language; None where it is too short to tell."""
    text = " ".join(turn.text for turn in turns if turn.role != "system")
    if not is_long_enough(text):
        return None
    from py3langid import classify

    code: str = classify(text[:_LANGUAGE_CHARACTERS])[0]
    return code


def _split(
    turns: tuple[Turn, ...], max_length: int | None, length: Callable[[Sequence[Turn]], int]
) -> list[tuple[Turn, ...]]:
    """Return the parts of a chat, each of whole exchanges and with the system text in front."""
    if max_length is None or length(turns) <= max_length:
        return [turns]
    system = tuple(turn for turn in turns if turn.role == "system")
    spoken = turns[len(system) :]
    parts: list[tuple[Turn, ...]] = []
    for place in range(0, len(spoken), 2):
        exchange = spoken[place : place + 2]
        if parts and length((*parts[-1], *exchange)) <= max_length:
            parts[-1] += exchange
        else:
            parts.append((*system, *exchange))
    return parts
