"""Licence and lineage of rows: which teacher wrote them, from which seeds, under which terms. For data and model cards.

The terms of known teachers come from teacher_terms.json, each with its source and date: facts to read up, no advice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from alpaca_jobs.generation.seeds import BUILTIN, SeedTask
from alpaca_jobs.spec import DataSpec, TeacherSpec

_OPENAI_HOST = "api.openai.com"


def lineage_of(
    data: DataSpec, seeds: Sequence[SeedTask] | None = None, *, beside: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return where a job's rows come from, and under which terms, as names and sentences in a fixed order.

    Args:
        seeds: the job's seed tasks, for their number and digest; None leaves those out.
        beside: what lies beside the rows of `data.from` (lineage_file.py), if anything does; the job's own licence
            stands before what is said there.
    """
    if data.from_ is not None and beside:
        own = {} if data.licence is None else {"licence of the rows": data.licence}
        return {**beside, "rows": _file_name(data.from_), **own}
    if data.from_ is not None:
        licence = data.licence or "not stated; name it in data.licence"
        return {"rows": _file_name(data.from_), "licence of the rows": licence}
    facts = {
        "recipe": data.recipe,
        "seed tasks": _seeds_in_words(data, seeds),
        "licence of the seed tasks": _seed_licence(data),
        "similarity threshold": f"ROUGE-L F {data.similarity_threshold}",
    }
    if not isinstance(data.teacher, TeacherSpec):
        terms = "demo data composed by rule; fit for trying only"
        return {**facts, "teacher": "the offline demo teacher", "terms": terms}
    return {**facts, **teacher_lineage(data.teacher)}


def teacher_lineage(teacher: TeacherSpec) -> dict[str, str]:
    """Return who wrote something, and under which terms."""
    if teacher.serve is not None:
        own = f"What {teacher.model} wrote is subject to its licence. Read it before you publish rows or weights."
        terms = " ".join([*known_terms(teacher.model, ""), own])
        return {"teacher": f"{teacher.model}, served by the run itself", "terms": terms}
    host = urlsplit(teacher.base_url or f"https://{_OPENAI_HOST}").hostname or "an unknown host"
    known = known_terms(teacher.model, host)
    general = (
        f"What {teacher.model} wrote is subject to the terms of whoever runs {host} and to the model's licence; some "
        "forbid training models that compete with it. Read them before you publish rows or weights."
    )
    return {"teacher": f"{teacher.model} at {host}", "terms": " ".join([*known, general])}


def known_terms(model: str, host: str) -> list[str]:
    """Return what is known here of the terms of a model and of who serves it: sentences with source and date."""
    table, name = _table(), model.rpartition("/")[2].lower()
    found = [entry for entry in table["hosts"] if host == entry["host"] or host.endswith(f".{entry['host']}")]
    found += [entry for entry in table["models"] if re.search(entry["pattern"], name)]
    return [f"{entry['says'][0].upper()}{entry['says'][1:]} ({entry['source']})." for entry in found]


def seeds_digest(seeds: Sequence[SeedTask]) -> str:
    """Return the SHA-256 of seed tasks, in hex: of what they say, in their order, not of how their file is written."""
    body = [[seed.instruction, seed.input, seed.output] for seed in seeds]
    return hashlib.sha256(json.dumps(body, ensure_ascii=False).encode()).hexdigest()


def lineage_in_words(lineage: Mapping[str, str]) -> str:
    """Return the pairs as lines of a Markdown table's body."""
    return "".join(f"| {name} | {value.replace('|', '/')} |\n" for name, value in lineage.items())


def _seeds_in_words(data: DataSpec, seeds: Sequence[SeedTask] | None) -> str:
    name = "alpaca-jobs' own" if data.seed_tasks == BUILTIN else _file_name(data.seed_tasks)
    return name if seeds is None else f"{name}: {len(seeds):,} tasks, SHA-256 {seeds_digest(seeds)}"


def _seed_licence(data: DataSpec) -> str:
    if data.seed_tasks == BUILTIN:
        return "Apache-2.0"
    return data.licence or "not stated; name it in data.licence"


def _file_name(source: str) -> str:
    """The folder of a file on somebody's disk is nobody else's business."""
    return source.rpartition("/")[2] or source


@cache
def _table() -> Any:
    text = resources.files("alpaca_jobs.data").joinpath("teacher_terms.json").read_text(encoding="utf-8")
    return json.loads(text)
