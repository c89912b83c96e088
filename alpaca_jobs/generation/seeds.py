"""Seed tasks: the examples by people that show the teacher what a task looks like, from files in either known format.

`seed_tasks.jsonl` beside this file is our own set ("builtin"), in the Self-Instruct format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from alpaca_jobs.data.record_files import Record, load_records, parse_records
from alpaca_jobs.errors import DataError
from alpaca_jobs.spec import DataSpec

BUILTIN = "builtin"
NO_INPUT = "<noinput>"


@dataclass(frozen=True, slots=True)
class SeedTask:
    """One task written by a person.

    Attributes:
        instruction, input, output: as in a row; the input may be empty.
        name: its id in the file, or where it stood.
        is_classification: whether the answer is one of few labels; None when the file does not say.
    """

    instruction: str
    input: str
    output: str
    name: str = ""
    is_classification: bool | None = None


def load_seed_tasks(source: str) -> tuple[SeedTask, ...]:
    """Read seed tasks, in the order of their file.

    Args:
        source: "builtin", a path, or an fsspec URI; Self-Instruct JSON lines (`instruction`, `instances` with `input`
            and `output`; the first instance is used, as Alpaca does) or Alpaca JSON (`instruction`, `input`, `output`;
            a list or JSON lines).

    Raises:
        DataError: nothing there, not JSON, empty, a record without its fields, or a task twice; says which line.
    """
    if source == BUILTIN:
        text = resources.files("alpaca_jobs.generation").joinpath("seed_tasks.jsonl").read_text(encoding="utf-8")
        records = parse_records(text, "the built-in seed tasks")
    else:
        records = load_records(source)
    tasks = tuple(_parse_task(record) for record in records)
    _refuse_duplicates(records, tasks)
    return tasks


def check_enough(seeds: Sequence[SeedTask], data: DataSpec) -> None:
    """Refuse fewer seed tasks than one request shows.

    Raises:
        DataError: says how many there are and how many are wanted.
    """
    if len(seeds) < data.num_prompt_seeds:
        raise DataError(
            f"{data.seed_tasks}: there are {len(seeds)} seed tasks, but every request shows "
            f"{data.num_prompt_seeds} (data.num_prompt_seeds). Add tasks, or show {max(1, len(seeds))}."
        )


def check_seed_file(data: DataSpec) -> None:
    """Read a job's seed tasks where they lie on this machine, and refuse what a launch would refuse.

    Raises:
        DataError: as `load_seed_tasks` and `check_enough`.
    """
    if "://" not in data.seed_tasks:
        check_enough(load_seed_tasks(data.seed_tasks), data)


def seed_warnings(data: DataSpec) -> list[str]:
    """Return what a job's seed tasks lack for its recipe, in sentences; only files of this machine are looked at."""
    if data.recipe != "self-instruct" or data.from_ is not None or "://" in data.seed_tasks:
        return []
    seeds = load_seed_tasks(data.seed_tasks)
    if any(seed.is_classification is not None for seed in seeds):
        return []
    return [
        f"None of the {len(seeds):,} tasks in {data.seed_tasks} says is_classification: the classification test is "
        "asked without a worked example, and so are tasks with labels. Add it to each task (true or false)."
    ]


def _parse_task(record: Record) -> SeedTask:
    instance = _first_instance(record) if "instances" in record.fields else record
    label = record.fields.get("is_classification")
    if label is not None and not isinstance(label, bool):
        raise DataError(f"{record.where}: 'is_classification' is {label!r}, but true or false is wanted. Correct it.")
    given = instance.text("input", may_be_empty=True) if "input" in instance.fields else ""
    return SeedTask(
        instruction=record.text("instruction"),
        input="" if given.strip().lower() == NO_INPUT else given,
        output=instance.text("output"),
        name=str(record.fields.get("id", record.where)),
        is_classification=label,
    )


def _first_instance(record: Record) -> Record:
    instances: Any = record.fields["instances"]
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        raise DataError(
            f"{record.where}: 'instances' should be a list that starts with an object holding 'input' and 'output', "
            f"but it is {str(instances)[:60]!r}. Give the task at least one instance."
        )
    return Record(f"{record.where}, first instance", instances[0])


def _refuse_duplicates(records: Sequence[Record], tasks: Sequence[SeedTask]) -> None:
    first: dict[tuple[str, str], str] = {}
    for record, task in zip(records, tasks, strict=True):
        key = (" ".join(task.instruction.split()), " ".join(task.input.split()))
        if key in first:
            raise DataError(
                f"{record.where} repeats the task of {first[key]} ({task.instruction[:60]!r}). "
                "Every seed task should be there once, or the teacher copies it: remove one of the two."
            )
        first[key] = record.where
