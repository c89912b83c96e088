"""Composes the offline teacher's answers to Self-Instruct's three kinds of requests, with some of their usual flaws."""

from __future__ import annotations

import random
import re

from alpaca_jobs.generation.offline_tasks import draw, make_task

_LIST = re.compile(r"^\d+\. (.+)\n(\d+)\.\Z", re.MULTILINE)
_VERDICT = re.compile(r"Task: (.+)\nIs it classification\?\Z")
_INSTANCES = re.compile(r"\n\nTask: .+\n\Z")
_LABELS = ("Positive", "Negative", "Neutral")


def compose_self_instruct(prompt: str, rng: random.Random) -> str | None:
    """Return the answer to a prompt of that recipe, None to any other."""
    if match := _LIST.search(prompt):
        return _instructions(rng, int(match[2]), match[1])
    if match := _VERDICT.search(prompt):
        return " Yes" if sum(match[1].encode()) % 4 == 0 else " No"
    if _INSTANCES.search(prompt):
        return _label_first(rng) if "Class label:" in prompt else _input_first(rng)
    return None


def _instructions(rng: random.Random, number: int, shown: str) -> str:
    made = [make_task(rng)[0] for _ in range(rng.randrange(5, 9))]
    if rng.random() < 0.3:
        made.insert(rng.randrange(len(made)), shown)  # copied, as teachers do
    if rng.random() < 0.2:
        made.append("Draw a picture of a quiet harbour at night.")
    return "\n".join(f" {one}" if place == 0 else f"{number + place}. {one}" for place, one in enumerate(made))


def _input_first(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return f"Output: {_facts(rng)}"
    numbers = range(1, rng.randrange(2, 5))
    examples = [f"Example {number}\nInput: {_note(rng)}\nOutput: {_facts(rng)}" for number in numbers]
    if rng.random() < 0.15:
        examples.append(f"Example {len(examples) + 1}\nInput: {_note(rng)}\nOutput:")  # nothing came to its mind
    return "\n".join(examples)


def _label_first(rng: random.Random) -> str:
    labels = rng.sample(_LABELS, rng.randrange(2, 4))
    return "\n".join(f"Class label: {label}\n{_note(rng)}" for label in labels)


def _note(rng: random.Random) -> str:
    topic, facts = draw(rng, "topics")
    return f"A note about {topic} for {draw(rng, 'audiences')}. {rng.choice(facts)}"


def _facts(rng: random.Random) -> str:
    return " ".join(draw(rng, "topics")[1][:2])
