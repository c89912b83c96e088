"""The request prompt: requirements in our own words, then seed tasks as a numbered list that the teacher continues.

The list's format is Alpaca's to the letter (the parser, and every model tuned to continue it, depend on it); the
requirements above it are the same ones, in our words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from alpaca_jobs.generation.seeds import NO_INPUT, SeedTask

_WHITE_SPACE = re.compile(r"\s+")

_REQUIREMENTS = """\
Write a list of {num_tasks} varied tasks. They will be put to a text-only language model, and we will look at how well \
it does them.

What the list should be like:
1. Start the instructions with different verbs, so that the list covers many of them.
2. Vary the wording as well: mix questions with requests, plain language with formal.
3. Cover different kinds of task: open-ended writing, classification, extraction, rewriting, reasoning, planning, \
conversation, short code and so on.
4. A language model must be able to do each task by text alone. It cannot see or make anything but text, cannot call, \
book or remind anybody, and cannot act in the world.
5. Write everything in English.
6. Keep each instruction to one or two sentences; an order or a question are both fine.
7. Give each instruction an input that fits it: a concrete, realistic example, not a placeholder, demanding enough to \
be interesting and at most about 100 words long.
8. Not every instruction needs an input. A question of general knowledge, for instance, stands alone; then put \
"{no_input}" in the input field.
9. The output should be a good answer to the instruction and its input, under 100 words.

The {num_tasks} tasks:
"""


def encode_prompt(tasks: Sequence[SeedTask], *, num_tasks: int) -> str:
    """Return the prompt of one request; it ends with the cue of the first task that the teacher writes.

    Args:
        tasks: seed tasks to show, at least one, numbered from 1 in this order.
        num_tasks: how many tasks the finished list shall have, those shown included.

    Source: Stanford Alpaca, generate_instruction.py, encode_prompt (white space collapsed, a trailing colon dropped).
    """
    text = requirements(num_tasks)
    for number, task in enumerate(tasks, start=1):
        instruction = _WHITE_SPACE.sub(" ", task.instruction).strip().rstrip(":")
        text += (
            f"###\n{number}. Instruction: {instruction}\n"
            f"{number}. Input:\n{task.input or NO_INPUT}\n"
            f"{number}. Output:\n{task.output}\n"
        )
    return f"{text}###\n{cue(len(tasks) + 1)}"


def requirements(num_tasks: int) -> str:
    """Return what a list of so many tasks has to be like, for the beginning of a prompt."""
    return _REQUIREMENTS.format(num_tasks=num_tasks, no_input=NO_INPUT)


def cue(number: int) -> str:
    """Return what stands before task `number`; a completion goes on right after it."""
    return f"{number}. Instruction:"


def stop_sequences(num_tasks: int) -> tuple[str, ...]:
    """Return where the teacher has to stop so that the list ends with `num_tasks` tasks at most.

    Alpaca stopped at "\\n20" and "20.", which also cut every answer holding "in 2020." or a line like "20 eggs"; the
    whole cue of the task after the last cuts nothing else.
    """
    return (f"\n{cue(num_tasks + 1)}",)
