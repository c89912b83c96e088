"""Turns a teacher's continuation of the list into tasks, and counts the pieces that are none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from alpaca_jobs.generation.encode import cue
from alpaca_jobs.generation.seeds import NO_INPUT

MALFORMED = "malformed"
CUT_OFF = "cut_off"

_HEADER = re.compile(r"\s*(\d+)\.\s+Instruction:")
_STARTS_OWN_ITEM = re.compile(r"\s*(?:###\s*)?\d+\.\s+Instruction:")
_FIELDS = ("Instruction", "Input", "Output")


@dataclass(frozen=True, slots=True)
class ParsedTask:
    """One task as the teacher wrote it, white space around its fields removed; `index` counts pieces from 0."""

    index: int
    instruction: str
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """The tasks of one answer in their order, and how many pieces were not tasks, by reason."""

    tasks: tuple[ParsedTask, ...]
    drops: Mapping[str, int]


def parse_answer(text: str, *, num_shown: int, finish_reason: str) -> ParsedAnswer:
    """Split an answer at `###` into tasks.

    Args:
        text: the completion, which goes on right after the prompt's cue; a chat model may repeat the cue.
        num_shown: tasks the prompt showed.
        finish_reason: "length" means the answer hit its token limit, so its last piece is cut off and dropped.

    Returns:
        Tasks and drops. A piece is a task when it holds Instruction, Input and Output once, in this order, under one
        number. Alpaca also wanted the number to be the next one of the list, so a teacher that miscounted once lost
        every later task; that is not asked for here.

    Source: Stanford Alpaca, generate_instruction.py, post_process_gpt3_response.
    """
    if not _STARTS_OWN_ITEM.match(text):
        text = cue(num_shown + 1) + text
    pieces = text.split("###")
    drops: dict[str, int] = {}
    if finish_reason == "length":
        pieces.pop()
        drops[CUT_OFF] = 1
    tasks = []
    pieces = [piece for piece in pieces if piece.strip()]  # nothing between two separators is not a broken task
    for index, piece in enumerate(pieces):
        task = _parse_piece(piece, index)
        if task is None:
            drops[MALFORMED] = drops.get(MALFORMED, 0) + 1
        else:
            tasks.append(task)
    return ParsedAnswer(tuple(tasks), drops)


def _parse_piece(piece: str, index: int) -> ParsedTask | None:
    header = _HEADER.match(piece)
    if header is None:
        return None
    # parts: what stands before, then name and text of each field in turn
    parts = re.split(rf"\b{header[1]}\.\s+({'|'.join(_FIELDS)}):", piece)
    if tuple(parts[1::2]) != _FIELDS:
        return None
    instruction, given, output = (part.strip() for part in parts[2::2])
    return ParsedTask(index, instruction, "" if given.lower() == NO_INPUT else given, output)
