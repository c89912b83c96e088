"""The four shapes that instruction data comes in, read into one and written from it. Pure.

alpaca: {instruction, input, output}; with `history` ([[question, answer]]) or `system`, as LLaMA-Factory has them, it
is a conversation. self-instruct: {instruction, instances: [{input, output}]}. sharegpt: {id,
conversations: [{from: human|gpt|system, value}]}. openai: {messages: [{role: system|user|assistant, content}]}. In
both shapes of chats an answer with `weight: 0` is there to be read, and not learned, as OpenAI's fine-tuning has it.
Whatever else a record holds is left behind: the shapes have no common place for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from alpaca_jobs.data.record_files import Record
from alpaca_jobs.errors import DataError

Role = Literal["system", "user", "assistant"]
_FROM: Mapping[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "system": "system",
}  # fmt: skip
_CALLS = ("tool_calls", "function_call")
_SHAREGPT_NAME: Mapping[Role, str] = {"user": "human", "assistant": "gpt", "system": "system"}


@dataclass(frozen=True, slots=True)
class Turn:
    """Who says what; `is_learned` is False for an answer that a training leaves out of its loss."""

    role: Role
    text: str
    is_learned: bool = True


@dataclass(frozen=True, slots=True)
class Example:
    """One example of any shape: its turns, or, where a shape keeps them apart, one task with its input.

    `input` is None for a conversation; then `turns` are all there is.
    """

    name: str
    turns: tuple[Turn, ...]
    instruction: str = ""
    input: str | None = None


def detect_format(record: Record) -> str:
    """Return which shape a record has.

    Raises:
        DataError: none of them; names the fields it has.
    """
    for name, field in (
        ("sharegpt", "conversations"), ("openai", "messages"), ("self-instruct", "instances"), ("alpaca", "output"),
    ):  # fmt: skip
        if field in record.fields:
            return name
    have = ", ".join(sorted(record.fields)) or "none"
    raise DataError(
        f"{record.where} is of no shape known here; its fields are: {have}. Known are Alpaca's (instruction, input, "
        "output), Self-Instruct's (instances), ShareGPT's (conversations) and OpenAI's (messages)."
    )


def read_examples(records: Sequence[Record]) -> list[Example]:
    """Return the examples of records, each of the shape it has; an instruction with five instances gives five.

    Raises:
        DataError: a record that is none, or lacks a field; says which.
    """
    return [one for record in records for one in _READERS[detect_format(record)](record)]


def render_examples(examples: Sequence[Example], shape: str, *, reversible: bool = False) -> list[dict[str, Any]]:
    """Return records of a shape; those of one instruction are instances of one record in Self-Instruct's.

    Args:
        reversible: add what a shape has no place for (a row's id, and its instruction and input apart) as fields of
            their own, which readers here take up again, and keep the order where instances are put together.

    Raises:
        DataError: a conversation of more than one exchange has no place in alpaca or self-instruct.
    """
    if shape == "self-instruct":
        return _write_self_instruct(examples, only_neighbours=reversible)
    records = _WRITERS[shape](examples)
    return (
        [{**_beside(one, shape), **record} for one, record in zip(examples, records, strict=True)]
        if reversible
        else records
    )


def each_answer(example: Example) -> list[Example]:
    """A conversation once for each answer to be learned: up to that answer, the earlier ones only to be read.

    That is how a model meets each of them; what follows the last answer, and a conversation without one, is left out.
    """
    ends = [place for place, turn in enumerate(example.turns) if turn.role == "assistant" and turn.is_learned]
    if len(ends) == 1 and ends[0] == len(example.turns) - 1:
        return [example]
    made = []
    for number, end in enumerate(ends):
        earlier = (replace(one, is_learned=one.role != "assistant") for one in example.turns[:end])
        name = f"{example.name}_{number}" if example.name else ""
        made.append(Example(name, (*earlier, example.turns[end])))
    return made


def num_joined(examples: Sequence[Example]) -> int:
    """Count the rows whose input a chat's shape joins to the instruction."""
    return sum(bool(one.input) for one in examples)


def _beside(example: Example, shape: str) -> dict[str, Any]:
    named = {"id": example.name} if example.name else {}
    if shape == "alpaca" or example.input is None:
        return named
    return {**named, "instruction": example.instruction, "input": example.input}


def _read_alpaca(record: Record) -> list[Example]:
    given = record.text("input", may_be_empty=True) if "input" in record.fields else ""
    task = _task(record, record.text("instruction"), given, record.text("output", may_be_empty=True))
    before = _before(record)
    return [Example(task.name, (*before, *task.turns)) if before else task]


def _before(record: Record) -> list[Turn]:
    """What a row says before its own question: a system text, and earlier exchanges."""
    system = record.text("system", may_be_empty=True) if record.fields.get("system") else ""
    turns = [Turn("system", system)] if system else []
    earlier = record.fields.get("history") or []
    if not isinstance(earlier, list) or not all(_is_exchange(pair) for pair in earlier):
        raise DataError(
            f"{record.where}: 'history' is {str(earlier)[:60]!r}, but a list of [question, answer] is wanted. Correct "
            "or remove it."
        )
    for question, answer in earlier:
        turns += Turn("user", question), Turn("assistant", answer)
    return turns


def _is_exchange(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def _read_self_instruct(record: Record) -> list[Example]:
    instances = record.fields["instances"]
    if not isinstance(instances, list) or not all(isinstance(one, dict) for one in instances):
        raise DataError(f"{record.where}: 'instances' should be a list of objects with 'input' and 'output'.")
    parts = [Record(f"{record.where}, instance {number}", one) for number, one in enumerate(instances, start=1)]
    instruction = record.text("instruction")
    return [
        _task(record, instruction, part.text("input", may_be_empty=True), part.text("output", may_be_empty=True))
        for part in parts
    ]


def _task(record: Record, instruction: str, given: str, output: str) -> Example:
    asked = f"{instruction}\n\n{given}" if given else instruction
    turns = (Turn("user", asked), Turn("assistant", output))
    return Example(str(record.fields.get("id", "")), turns, instruction, given)


def _read_sharegpt(record: Record) -> list[Example]:
    return [_conversation(record, "conversations", "from", "value")]


def _read_openai(record: Record) -> list[Example]:
    return [_conversation(record, "messages", "role", "content")]


def _conversation(record: Record, field: str, who: str, what: str) -> Example:
    said = record.fields[field]
    if not isinstance(said, list) or not said:
        raise DataError(f"{record.where}: {field!r} should be a list of turns, but it is {str(said)[:60]!r}.")
    turns = []
    for number, one in enumerate(said, start=1):
        turn = Record(f"{record.where}, turn {number}", one if isinstance(one, dict) else {})
        if turn.fields.get(what) is None and (call := next((key for key in _CALLS if turn.fields.get(key)), None)):
            raise DataError(
                f"{turn.where} calls a tool ({call!r}) and says nothing, and turns are text here. Write the call into "
                f"{what!r} as the model shall say it, or take the conversation out."
            )
        role = _FROM.get(turn.text(who))
        if role is None:
            raise DataError(
                f"{turn.where}: {who!r} is {turn.fields[who]!r}, which is nobody known here ({', '.join(_FROM)})."
            )
        is_learned = role != "assistant" or learned(turn)
        turns.append(Turn(role, turn.text(what, may_be_empty=True), is_learned))
    name, instruction, given = (record.fields.get(key, "") for key in ("id", "instruction", "input"))
    if isinstance(instruction, str) and isinstance(given, str) and instruction:
        task = _task(record, instruction, given, turns[-1].text)
        if task.turns == tuple(turns):
            return task
    return Example(str(name), tuple(turns))


def learned(turn: Record) -> bool:
    """Whether a chat's answer is to be learned: `weight` is 1, or not given.

    Raises:
        DataError: it is neither 0 nor 1.
    """
    weight = turn.fields.get("weight")
    if weight is None:
        return True
    if isinstance(weight, int | float) and weight in (0, 1):
        return bool(weight)
    raise DataError(
        f"{turn.where}: 'weight' is {weight!r}, but 0 (an answer that is not learned) or 1 is wanted. Leave it out "
        "where the answer is to be learned."
    )


def _write_alpaca(examples: Sequence[Example]) -> list[dict[str, Any]]:
    return [
        {"instruction": instruction, "input": given, "output": output}
        for instruction, given, output in map(_as_task, examples)
    ]


def _write_self_instruct(examples: Sequence[Example], *, only_neighbours: bool = False) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for example, (instruction, given, output) in zip(examples, map(_as_task, examples), strict=True):
        place = places.get(instruction)
        if place is None or (only_neighbours and place != len(records) - 1):
            place = places[instruction] = len(records)
            name = example.name if only_neighbours and example.name else f"task_{place}"
            records.append({"id": name, "instruction": instruction, "instances": []})
        records[place]["instances"].append({"input": given, "output": output})
    return records


def _as_task(example: Example) -> tuple[str, str, str]:
    """Return instruction, input and output; a conversation must be one question and one answer."""
    if example.input is not None:
        return example.instruction, example.input, example.turns[-1].text
    spoken = [turn for turn in example.turns if turn.role != "system"]
    if not all(turn.is_learned for turn in spoken):
        raise DataError(
            f"conversation {example.name or 'without an id'!r} holds an answer that is not to be learned (weight 0); "
            "alpaca and self-instruct have no place for that. Convert to sharegpt or openai instead."
        )
    if [turn.role for turn in spoken] != ["user", "assistant"] or len(spoken) != len(example.turns):
        raise DataError(
            f"conversation {example.name or 'without an id'!r} has {len(example.turns)} turns "
            f"({', '.join(turn.role for turn in example.turns)}); alpaca and self-instruct hold one question and one "
            "answer. Convert to sharegpt or openai instead."
        )
    return spoken[0].text, "", spoken[1].text


def _write_sharegpt(examples: Sequence[Example]) -> list[dict[str, Any]]:
    return [
        {
            "id": example.name or f"chat_{number}",
            "conversations": [
                {"from": _SHAREGPT_NAME[turn.role], "value": turn.text, **_weight(turn)} for turn in example.turns
            ],
        }
        for number, example in enumerate(examples)
    ]


def _write_openai(examples: Sequence[Example]) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": turn.role, "content": turn.text, **_weight(turn)} for turn in one.turns]}
        for one in examples
    ]


def _weight(turn: Turn) -> dict[str, int]:
    return {} if turn.is_learned else {"weight": 0}


_READERS: Mapping[str, Callable[[Record], list[Example]]] = {
    "alpaca": _read_alpaca,
    "self-instruct": _read_self_instruct,
    "sharegpt": _read_sharegpt,
    "openai": _read_openai,
}
_WRITERS: Mapping[str, Callable[[Sequence[Example]], list[dict[str, Any]]]] = {
    "alpaca": _write_alpaca,
    "self-instruct": _write_self_instruct,
    "sharegpt": _write_sharegpt,
    "openai": _write_openai,
}
