"""Composes the offline teacher's answers: good tasks, and on purpose every mistake that a filter must catch.

The same request digest always gives the same answer; nothing else goes in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from alpaca_jobs.generation.offline_self_instruct import compose_self_instruct
from alpaca_jobs.generation.offline_tasks import Task, draw, make_task, phrases
from alpaca_jobs.generation.offline_translation import compose_translation

_SHOWN = re.compile(r"^\d+\. Instruction: (.+)$", re.MULTILINE)
_CUE = re.compile(r"(\d+)\. Instruction:\s*\Z")
FLAW_SHARE = 0.34
"""Share of tasks that are spoiled; together with chance duplicates about two thirds of the tasks are good."""


def compose_answer(prompt: str, digest: bytes) -> tuple[str, str]:
    """Return (text, finish_reason) for a prompt that ends with the cue of the next task.

    Args:
        prompt: the request's prompt; what it shows is sometimes copied, as teachers do.
        digest: of the whole request; seeds every choice.
    """
    rng = random.Random(int.from_bytes(digest, "big"))
    match = _CUE.search(prompt)
    if (translation := compose_translation(prompt, rng)) is not None:
        return translation
    if match is None and (other := compose_self_instruct(prompt, rng)) is not None:
        return other, "stop"
    if match is None:
        return "This is a demo teacher: it only knows the prompts of its own recipes.", "stop"
    if rng.random() < 0.015:
        return "", "content_filter"
    number, shown, text = int(match[1]), _SHOWN.findall(prompt), ""
    for place in range(rng.randrange(8, 14)):
        task = _spoil(rng, shown) if rng.random() < FLAW_SHARE else make_task(rng)
        shown.append(task[0])
        text += ("" if place == 0 else f"###\n{number + place}. Instruction:") + _render(rng, number + place, task)
    if rng.random() < 0.15:
        # As if the token limit had been hit in the middle of the last task.
        return text[: len(text) - rng.randrange(5, 40)], "length"
    return text + "###\n", "stop"


def _render(rng: random.Random, number: int, task: Task) -> str:
    instruction, given, output = task
    lines = [f" {instruction}", f"{number}. Input:\n{given or '<noinput>'}", f"{number}. Output:\n{output}"]
    if rng.random() < 0.03:  # a piece that is no task: a field is missing, or numbered wrong
        broken = rng.choice(
            (lines[:2], [lines[0], lines[2]], [*lines[:2], lines[2].replace(f"{number}.", "Answer", 1)])
        )
        lines = broken
    return "\n".join(lines) + "\n"


def _spoil(rng: random.Random, shown: list[str]) -> Task:
    flaw: Callable[[random.Random, list[str]], Task] = rng.choice(_FLAWS)
    return flaw(rng, shown)


def _too_short(rng: random.Random, shown: list[str]) -> Task:
    topic, facts = draw(rng, "topics")
    return f"Explain {topic.split()[-1]}.", "", facts[0]


def _too_long(rng: random.Random, shown: list[str]) -> Task:
    facts = " ".join(fact for _, some in rng.sample(phrases()["topics"], 9) for fact in some)
    return (
        f"Read these notes carefully and say what they have in common. {facts}",
        "",
        "All of them state simple facts.",
    )


def _banned_word(rng: random.Random, shown: list[str]) -> Task:
    topic, facts = draw(rng, "topics")
    ask = rng.choice(
        (
            "Draw a picture that shows {} to {}.",
            "Look at the image of {} and describe it to {}.",
            "Choose background music for a talk about {} given to {}.",
            "Make a diagram of {} for {}.",
            "Open the attached file on {} and summarize it for {}.",
        )
    )
    return ask.format(topic, draw(rng, "audiences")), "", facts[0]


def _program(rng: random.Random, shown: list[str]) -> Task:
    does, arguments, body = draw(rng, "functions")
    instruction = f"Write a program for {draw(rng, 'purposes')} that {does}."
    return instruction, "", f"def program({arguments}):\n    {body}"


def _punctuation(rng: random.Random, shown: list[str]) -> Task:
    instruction, given, output = make_task(rng)
    return rng.choice(("- ", "(Optional) ", '"', "* ")) + instruction, given, output


def _non_ascii(rng: random.Random, shown: list[str]) -> Task:
    topic, facts = draw(rng, "topics")
    opening = rng.choice(
        ("Écris un petit texte sur", "¿Qué sabes de", "Übersetze einen Satz über", "Ответь коротко про")
    )
    return f"{opening} {topic} ({draw(rng, 'audiences')})", "", facts[0]


def _no_output(rng: random.Random, shown: list[str]) -> Task:
    instruction, given, _ = make_task(rng)
    return instruction, given, ""


def _popular(rng: random.Random, shown: list[str]) -> Task:
    """An instruction that teachers come back to again and again."""
    topic = rng.choice(("healthy", "calm", "fit", "rested", "safe"))
    instruction = rng.choice(
        (
            f"Give three useful tips for staying {topic} every day.",
            f"What are the most important habits of people who stay {topic}?",
            f"Describe a typical day of somebody who wants to stay {topic}.",
        )
    )
    return instruction, "", "Sleep enough, eat well and take a walk every day."


def _repeat(rng: random.Random, shown: list[str]) -> Task:
    """Nearly what the list already holds, one word more or less."""
    if not shown:
        return _popular(rng, shown)
    words = rng.choice(shown).split()
    if rng.random() < 0.5 and len(words) > 8:
        del words[rng.randrange(1, len(words) - 1)]
    else:
        words.append("Please.")
    return " ".join(words), "", "It is the same task as before, so the answer is the same."


_FLAWS: tuple[Callable[[random.Random, list[str]], Task], ...] = (
    _too_short,
    _too_long,
    _banned_word,
    _program,
    _punctuation,
    _non_ascii,
    _no_output,
    _popular,
    _repeat,
    _repeat,
    _repeat,
)
