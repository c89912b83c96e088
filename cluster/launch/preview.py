"""A look at what a teacher would write: a job's own first requests, asked from here; no run, and no traces."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alpaca_jobs.data.rows import Row
from alpaca_jobs.errors import BudgetExceeded, TeacherGarbage
from alpaca_jobs.generation.completer import Completer, TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.pricing import asked_directly
from alpaca_jobs.generation.recipe import make_recipe
from alpaca_jobs.generation.seeds import load_seed_tasks
from alpaca_jobs.generation.statistics import GenerationStatistics
from alpaca_jobs.spec import JobSpec, TeacherSpec
from cluster.node.in_flight import in_flight_of
from cluster.node.ledger import worst_case_usd
from cluster.node.offline_server import teacher_endpoint

MAX_BARREN = 10
"""Answers in a row without a row before a preview is given up: enough to see that something is wrong."""
ROWS_PER_REQUEST = 8.0
"""Expected of one request, so that a few rows are not asked for many times over; Alpaca's list gives 5 to 15."""


@dataclass
class Preview:
    """Rows of a job's first requests.

    Attributes:
        requests: those that were asked and read.
        at_most_usd: what they cost, tries of unknown cost at their worst case; None while the price is unknown.
    """

    rows: list[Row] = field(default_factory=list)
    statistics: GenerationStatistics = field(default_factory=GenerationStatistics)
    requests: list[TeacherRequest] = field(default_factory=list)
    at_most_usd: float | None = 0.0


def preview_rows(job: JobSpec, count: int) -> Preview:
    """Ask a job's teacher for `count` rows, by the very requests that its run would begin with.

    Raises:
        DataError: the job has its rows already, or its seed tasks cannot be used.
        BudgetExceeded: the next requests could cost more than limits.teacher_max_usd.
        TeacherError: the teacher does not answer, or not with rows.
    """
    with tempfile.TemporaryDirectory() as scratch, teacher_endpoint(job.data.teacher, Path(scratch)) as teacher:
        return asyncio.run(_preview(job, teacher, count))


async def _preview(job: JobSpec, teacher: TeacherSpec, count: int) -> Preview:
    data = job.data.model_copy(update={"num_rows": count})
    teacher = asked_directly(teacher).model_copy(update={"patience_s": 0.0})  # somebody sits there and waits
    recipe = make_recipe(data, load_seed_tasks(data.seed_tasks), (), ())
    found = Preview()
    completer = Completer(teacher, api_key=os.environ.get(teacher.api_key_env) if teacher.api_key_env else None)
    try:
        while len(found.rows) < count:
            wanted = min(recipe.num_wanted(ROWS_PER_REQUEST), in_flight_of(data.num_actors, data.concurrency).capacity)
            numbers = range(len(found.requests) + 1, len(found.requests) + 1 + wanted)
            batch = [request for number in numbers if (request := recipe.request(number)) is not None]
            _check_budget(job, teacher, batch, found.at_most_usd or 0.0)
            for answer in await asyncio.gather(*(_ask(completer, request) for request in batch)):
                consumed = recipe.consume(answer)
                found.rows += consumed.rows
                found.statistics.add(consumed)
                found.statistics.check_progress(answer.text, limit=MAX_BARREN)
                known = None not in (found.at_most_usd, answer.at_most_usd)
                found.at_most_usd = (found.at_most_usd or 0.0) + (answer.at_most_usd or 0.0) if known else None
            found.requests += batch
    finally:
        await completer.close()
    return found


async def _ask(completer: Completer, request: TeacherRequest) -> TeacherAnswer:
    try:
        return await completer.complete(request)
    except TeacherGarbage as exc:
        if not isinstance(exc.answer, TeacherAnswer):
            raise
        return exc.answer


def _check_budget(job: JobSpec, teacher: TeacherSpec, batch: Sequence[TeacherRequest], spent_usd: float) -> None:
    limit = job.limits.teacher_max_usd
    prices = [worst_case_usd(request, teacher) for request in batch]
    if limit is None:
        return
    if None in prices:
        raise BudgetExceeded(
            f"limits.teacher_max_usd is {limit}, but the price of {teacher.model} is unknown, so the limit cannot be "
            "kept. Set data.teacher.price_per_million_input_usd and _output_usd."
        )
    if spent_usd + sum(price or 0.0 for price in prices) > limit:
        raise BudgetExceeded(
            f"The next {len(batch)} requests of this preview could bring it above limits.teacher_max_usd, {limit}. "
            "Raise it, or lower data.teacher.max_tokens."
        )
