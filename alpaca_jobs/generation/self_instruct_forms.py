"""Self-Instruct's prompts and what is read out of the answers: instructions, classification test, instances. Pure.

The three formats (numbered list; "Is it classification?"; "Task: / Example / Output:" and "Task: / Class label:") are
the original's; headers are in our own words, and the worked examples are the job's own seed tasks.
Source: Self-Instruct (arXiv:2212.10560), sections 2.2 and A, and its bootstrap_instructions.py,
generate_instances.py, prepare_for_finetuning.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_jobs.generation.parse import CUT_OFF
from alpaca_jobs.generation.seeds import SeedTask
from alpaca_jobs.spec_filters import FiltersSpec

NUM_YES_EXAMPLES, NUM_NO_EXAMPLES = 12, 19
"""Worked examples of the classification test. Source: Self-Instruct, appendix A.2."""
NUM_INSTANCE_EXAMPLES = 8
INSTRUCTION_TOKENS, VERDICT_TOKENS, INSTANCE_TOKENS = 1024, 16, 1024
"""Most tokens of an answer by its kind, where the teacher continues a text."""
CONTRADICTORY, SAME_AS_INPUT, ENDS_WITH_COLON, REPEATED = (
    "contradictory", "output_is_input", "ends_with_colon", "repeated_instance",
)  # fmt: skip
NO_OUTPUT, NO_INSTANCE = "no_output", "no_instance"
OVER_MAX_INSTANCES = "over_max_instances"
NO_VERDICT = "no_verdict"
"""A classification test that was answered with neither yes nor no; it counts as no, as in the original."""
ORIGINAL = FiltersSpec()

_SPACE = re.compile(r"\s+")
_NUMBER = re.compile(r"(?:^|\n)\s*\d+\s?\.\s+")
_EXAMPLE = re.compile(r"(?:^|\n)\s*Example\s?\d*\.?[ \t]*(?:\n|$)")
_OUTPUT = re.compile(r"(?:^|\n)\s*Output\s*\d*\s*:")
_LABEL = re.compile(r"(?:^|\n)\s*Class label:")
_INPUT = re.compile(r"^Input\s*\d*\s*:\s*")


@dataclass(frozen=True, slots=True)
class Instance:
    """One input with its output; the input may be empty."""

    input: str
    output: str


def instructions_prompt(shown: Sequence[str], *, num_tasks: int, as_json: bool) -> str:
    """Return the prompt that asks for new instructions after the `shown` ones."""
    if as_json:
        listed = json.dumps({"instructions": list(map(_one_line, shown))}, ensure_ascii=False, indent=1)
        return (
            f"Here are instructions for a text-only language model:\n{listed}\nWrite {num_tasks - len(shown)} new "
            "ones, varied in topic, verb and kind of task, each doable by text alone. "
            'Answer with JSON: {"instructions": [...]}'
        )
    listed = "".join(f"{number}. {_one_line(text)}\n" for number, text in enumerate(shown, start=1))
    return f"Continue this list of varied tasks for a text-only language model:\n{listed}{len(shown) + 1}."


def parse_instructions(text: str, finish_reason: str, *, as_json: bool) -> list[str] | None:
    """Return the new instructions of an answer, white space collapsed; None if it cannot be read.

    The last one is left out when the answer hit its length limit; whoever calls counts that.
    """
    if as_json:
        found = _json_list(text, "instructions")
        return None if found is None else [_one_line(one) for one in found if isinstance(one, str) and one.strip()]
    pieces = _NUMBER.split(re.sub(r"^\s*\d+\s?\.\s+", "", text))
    if finish_reason == "length":
        pieces.pop()
    lines = [_one_line(piece) for piece in pieces]
    return [line[0].upper() + line[1:] for line in lines if line]


def classification_prompt(instruction: str, seeds: Sequence[SeedTask], *, as_json: bool) -> str:
    """Return the question whether the answers to an instruction are a limited set of labels."""
    yes = [seed.instruction for seed in seeds if seed.is_classification][:NUM_YES_EXAMPLES]
    no = [seed.instruction for seed in seeds if seed.is_classification is False][:NUM_NO_EXAMPLES]
    step = max(1, len(no) // max(1, len(yes)))
    shown: list[tuple[str, str]] = []
    for place, text in enumerate(no):
        shown.append((text, "No"))
        if place % step == step - 1 and yes:
            shown.append((yes.pop(0), "Yes"))
    shown += [(text, "Yes") for text in yes]
    examples = "".join(f"Task: {_one_line(text)}\nIs it classification? {answer}\n\n" for text, answer in shown)
    ending = 'Answer with JSON: {"is_classification": true} or false.' if as_json else "Is it classification?"
    return (
        "Can the following task be regarded as a classification task, whose answer is one of a few labels?\n\n"
        f"{examples}Task: {_one_line(instruction)}\n{ending}"
    )


def parse_classification(text: str, *, as_json: bool) -> bool:
    """Return the verdict; whatever is not a yes is a no, as in the original."""
    if as_json:
        return _json_object(text).get("is_classification") is True
    return text.strip().lower().startswith("yes")


def has_verdict(text: str, *, as_json: bool) -> bool:
    """Whether a classification test was answered at all: yes or no, whatever follows."""
    if as_json:
        return isinstance(_json_object(text).get("is_classification"), bool)
    return text.strip().lower().startswith(("yes", "no"))


def instances_prompt(
    instruction: str, seeds: Sequence[SeedTask], *, is_classification: bool, max_instances: int, as_json: bool
) -> str:
    """Return the request for instances: input first, or, for classification, each label first and then its input.

    Asked for the input first, a teacher writes inputs for one label only.
    """
    examples = [seed for seed in seeds if bool(seed.is_classification) == is_classification][:NUM_INSTANCE_EXAMPLES]
    render = _label_first if is_classification else _input_first
    shown = "".join(f"Task: {_one_line(seed.instruction)}\n{render(seed)}\n\n" for seed in examples)
    if is_classification:
        header = "For each task, give every label that it can be answered with, and an input that has this label."
    else:
        header = f"Give examples for each task, up to {max_instances}. A task that needs no input has its output alone."
    form = 'Answer with JSON: {"instances": [{"input": "...", "output": "..."}]}\n' if as_json else ""
    return f"{header}\n\n{shown}{form}Task: {_one_line(instruction)}\n"


def parse_instances(
    text: str, finish_reason: str, *, is_classification: bool, max_instances: int, as_json: bool,
    filters: FiltersSpec = ORIGINAL,
) -> tuple[list[Instance], Mapping[str, int]]:  # fmt: skip
    """Return the instances of an answer that pass the original's filters, and what was dropped by reason.

    Dropped, as far as `filters` says so: no output; output equal to the input; input or output ending in a colon (cut
    off); instances said twice; all of them when one input has two outputs. Dropped in any case: the last one of an
    answer that hit its length limit, and those after `max_instances`.
    """
    drops: dict[str, int] = {}
    if as_json:
        found = _json_instances(text)
    else:
        found = _parse_labels(text) if is_classification else _parse_examples(text)
        if finish_reason == "length" and found:
            found.pop()
            drops[CUT_OFF] = 1
    kept: list[Instance] = []
    for one in found:
        reason = _problem(one, kept, filters)
        if reason is None:
            kept.append(one)
        else:
            drops[reason] = drops.get(reason, 0) + 1
    outputs = {one.input: one.output for one in kept if one.input}
    is_contradictory = any(one.input and outputs[one.input] != one.output for one in kept)
    if is_contradictory and filters.contradictory == "drop":
        return [], {**drops, CONTRADICTORY: len(kept)}
    if len(kept) > max_instances:
        drops[OVER_MAX_INSTANCES] = len(kept) - max_instances
    return kept[:max_instances], drops if found or drops else {NO_INSTANCE: 1}


def schema_of(kind: str) -> dict[str, Any]:
    """Return the JSON schema of an answer: instructions, classification or instances."""
    text: dict[str, Any] = {"type": "string"}
    pair = {"input": text, "output": text}
    fields: dict[str, dict[str, Any]] = {
        "instructions": {"instructions": {"type": "array", "items": text}},
        "classification": {"is_classification": {"type": "boolean"}},
        "instances": {"instances": {"type": "array", "items": closed_object(pair)}},
    }
    return closed_object(fields[kind])


def closed_object(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with these fields and no others, as strict structured output wants it."""
    return {"type": "object", "properties": dict(fields), "required": list(fields), "additionalProperties": False}


def _problem(one: Instance, kept: Sequence[Instance], filters: FiltersSpec) -> str | None:
    found = (
        (NO_OUTPUT, filters.empty_output, not one.output),
        (SAME_AS_INPUT, filters.output_is_input, bool(one.output) and one.input == one.output),
        (ENDS_WITH_COLON, filters.ends_with_colon, one.input.endswith(":") or one.output.endswith(":")),
        (REPEATED, filters.repeated_instance, one in kept),
    )
    return next((reason for reason, verdict, holds in found if holds and verdict == "drop"), None)


def _parse_examples(text: str) -> list[Instance]:
    if _EXAMPLE.search(text):
        pieces = [piece for piece in _EXAMPLE.split(text) if piece.strip()]
    else:
        pieces = [text] if _OUTPUT.search(text) else []
    found = []
    for piece in pieces:
        given, *outputs = _OUTPUT.split(piece)
        # Without "Output:" an example is all output; after a second one the teacher began another example.
        pair = (given, outputs[0]) if outputs else ("", given)
        found.append(Instance(_INPUT.sub("", pair[0].strip()).strip(), pair[1].strip()))
    return found


def _parse_labels(text: str) -> list[Instance]:
    found = []
    for piece in _LABEL.split(text)[1:]:
        label, _, given = piece.strip().partition("\n")
        found.append(Instance(_INPUT.sub("", given.strip()).strip(), label.strip()))
    return found


def _input_first(seed: SeedTask) -> str:
    return f"Example 1\nInput: {seed.input}\nOutput: {seed.output}" if seed.input else f"Output: {seed.output}"


def _label_first(seed: SeedTask) -> str:
    return f"Class label: {seed.output}\n{seed.input}".rstrip()


def _json_object(text: str) -> Mapping[str, Any]:
    """Return the object in a text, also when it stands between other words or in a fence."""
    start, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[start : end + 1]) if start >= 0 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _json_list(text: str, key: str) -> list[Any] | None:
    found = _json_object(text).get(key)
    return found if isinstance(found, list) else None


def _json_instances(text: str) -> list[Instance]:
    found = [one for one in _json_list(text, "instances") or [] if isinstance(one, dict)]
    return [Instance(*(str(one.get(name) or "").strip() for name in ("input", "output"))) for one in found]


def _one_line(text: str) -> str:
    return _SPACE.sub(" ", text).strip().rstrip(":")
