"""The filters on generated tasks, each under the name that drops are counted by; their values are the job's.

Source: Stanford Alpaca, generate_instruction.py, post_process_gpt3_response; the order is the same, and so is
Self-Instruct's (bootstrap_instructions.py).
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from functools import cache

from alpaca_jobs.generation.parse import ParsedTask
from alpaca_jobs.spec_filters import FiltersSpec

Filter = Callable[[ParsedTask, FiltersSpec], bool]


def _is_too_short(task: ParsedTask, filters: FiltersSpec) -> bool:
    return len(task.instruction.split()) < filters.min_words


def _is_too_long(task: ParsedTask, filters: FiltersSpec) -> bool:
    return len(task.instruction.split()) > filters.max_words


def _has_banned_word(task: ParsedTask, filters: FiltersSpec) -> bool:
    return bool(filters.banned_words) and _any_of(filters.banned_words).search(task.instruction) is not None


def _has_banned_start(task: ParsedTask, filters: FiltersSpec) -> bool:
    # Teachers like to begin with "Write a program", and then it is unclear whether it or its result is wanted.
    return task.instruction.startswith(filters.banned_starts)


def _starts_with_punctuation(task: ParsedTask, filters: FiltersSpec) -> bool:
    return filters.punctuation_start == "drop" and task.instruction[:1] in string.punctuation


def _starts_with_non_ascii(task: ParsedTask, filters: FiltersSpec) -> bool:
    return filters.non_ascii_start == "drop" and not task.instruction[:1].isascii()


def _has_no_output(task: ParsedTask, filters: FiltersSpec) -> bool:
    return filters.empty_output == "drop" and not task.output


FILTERS: tuple[tuple[str, Filter], ...] = (
    ("too_short", _is_too_short),
    ("too_long", _is_too_long),
    ("banned_word", _has_banned_word),
    ("banned_start", _has_banned_start),
    ("starts_with_punctuation", _starts_with_punctuation),
    ("starts_with_non_ascii", _starts_with_non_ascii),
    ("no_output", _has_no_output),
)
"""(reason, predicate) in the order they are asked; the first that holds names the drop."""


def drop_reason(task: ParsedTask, filters: FiltersSpec) -> str | None:
    """Return why a task is dropped, or None if every filter lets it pass."""
    return next((reason for reason, holds in FILTERS if holds(task, filters)), None)


@cache
def _any_of(words: tuple[str, ...]) -> re.Pattern[str]:
    """Match any of the words as a whole one. A word may begin or end with a mark, where no word boundary would be."""
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE)
