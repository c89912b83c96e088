"""Alpaca's filters on generated tasks, each under the name that drops are counted by.

Source: Stanford Alpaca, generate_instruction.py, post_process_gpt3_response; the order is the same.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from alpaca_jobs.generation.parse import ParsedTask

MIN_WORDS = 4
MAX_WORDS = 150
BANNED_WORDS = (
    "image",
    "images",
    "graph",
    "graphs",
    "picture",
    "pictures",
    "file",
    "files",
    "map",
    "maps",
    "draw",
    "plot",
    "go to",
    "video",
    "audio",
    "music",
    "flowchart",
    "diagram",
)
"""Words for things that a text model cannot see or make."""
_BANNED = re.compile(rf"\b(?:{'|'.join(BANNED_WORDS)})\b", re.IGNORECASE)


def _is_too_short(task: ParsedTask) -> bool:
    return len(task.instruction.split()) < MIN_WORDS


def _is_too_long(task: ParsedTask) -> bool:
    return len(task.instruction.split()) > MAX_WORDS


def _has_banned_word(task: ParsedTask) -> bool:
    return _BANNED.search(task.instruction) is not None


def _asks_for_a_program(task: ParsedTask) -> bool:
    # Teachers like to add this to tasks, and then it is unclear whether the program or its result is wanted.
    return task.instruction.startswith("Write a program")


def _starts_with_punctuation(task: ParsedTask) -> bool:
    return task.instruction[:1] in string.punctuation


def _starts_with_non_ascii(task: ParsedTask) -> bool:
    return not task.instruction[:1].isascii()


def _has_no_output(task: ParsedTask) -> bool:
    return not task.output


FILTERS: tuple[tuple[str, Callable[[ParsedTask], bool]], ...] = (
    ("too_short", _is_too_short),
    ("too_long", _is_too_long),
    ("banned_word", _has_banned_word),
    ("write_a_program", _asks_for_a_program),
    ("starts_with_punctuation", _starts_with_punctuation),
    ("starts_with_non_ascii", _starts_with_non_ascii),
    # Ours, not Alpaca's: 28 of its 52,002 rows have no output, and teach a model to say nothing.
    ("no_output", _has_no_output),
)
"""(reason, predicate) in the order they are asked; the first that holds names the drop."""


def drop_reason(task: ParsedTask) -> str | None:
    """Return why a task is dropped, or None if every filter lets it pass. An empty instruction is too short."""
    return next((reason for reason, holds in FILTERS if holds(task)), None)
