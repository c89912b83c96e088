"""What the teacher will be asked and what that costs, before the first request. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alpaca_jobs.generation.pricing import cost_usd
from alpaca_jobs.spec import DataSpec, TeacherSpec


@dataclass(frozen=True)
class TeacherAssumptions:
    """Priors about a teacher, each to be replaced by what a run of one's own reports.

    Attributes:
        accept_rate: share of the new tasks that survive parsing, filters and dedupe.
        tokens_per_task: one task in the numbered list, its instruction, input and output. A row of Alpaca's data has
            128 tokens with its training template, about 85 without; the list's own words add about 15.
        prompt_header_tokens: the list's requirements, before the first task.
        tokens_per_second: of one request in flight.
        offline_s: one request to the offline teacher on this machine, all that are in flight counted (22 requests took
            4 to 9 s on 2 busy cores, 2026-11-21).
        spread: standard deviation of the logarithm of what the teacher costs and takes.
        rows_per_second, usd_per_row: what an earlier run measured with this teacher; None for none.
        source: where the accept rate, and what was measured, come from.
    """

    accept_rate: float = 0.5
    tokens_per_task: float = 100.0
    prompt_header_tokens: float = 400.0
    tokens_per_second: float = 50.0
    offline_s: float = 0.3
    spread: float = 0.3
    rows_per_second: float | None = None
    usd_per_row: float | None = None
    source: str = "prior: ours, not measured yet"


@dataclass(frozen=True)
class TeacherEstimate:
    """What generation asks of the teacher.

    Attributes:
        rows: that will be kept: as many as the job wants, unless its max_requests ends the asking before.
        seconds: of generation, with all requests in flight that the job allows.
        cost_usd: None when the job states no prices; 0 for the offline teacher.
    """

    requests: int
    rows: int
    prompt_tokens: float
    completion_tokens: float
    seconds: float
    cost_usd: float | None


def estimate_teacher(data: DataSpec, assumed: TeacherAssumptions | None = None) -> TeacherEstimate:
    """Requests, tokens, time and price of generating `data.num_rows` rows.

    requests = num_rows / ((max_tasks_per_request - num_prompt_seeds) * accept_rate)
    """
    prior = assumed or TeacherAssumptions()
    new_tasks = data.max_tasks_per_request - data.num_prompt_seeds
    requests, rows = math.ceil(data.num_rows / (new_tasks * prior.accept_rate)), data.num_rows
    if data.max_requests is not None and data.max_requests < requests:
        requests = data.max_requests
        rows = max(1, math.floor(requests * new_tasks * prior.accept_rate))
    answer = new_tasks * prior.tokens_per_task
    if isinstance(data.teacher, TeacherSpec):
        answer = min(answer, data.teacher.max_tokens)
    prompt_tokens = requests * (prior.prompt_header_tokens + data.num_prompt_seeds * prior.tokens_per_task)
    return TeacherEstimate(
        requests=requests,
        rows=rows,
        prompt_tokens=prompt_tokens,
        completion_tokens=requests * answer,
        seconds=_seconds(data, requests, rows, answer, prior),
        cost_usd=_cost_usd(data, prompt_tokens, requests * answer, rows, prior),
    )


def _seconds(data: DataSpec, requests: int, rows: int, answer_tokens: float, prior: TeacherAssumptions) -> float:
    if prior.rows_per_second is not None:
        return rows / prior.rows_per_second
    if not isinstance(data.teacher, TeacherSpec):
        return requests * prior.offline_s
    return math.ceil(requests / (data.num_actors * data.concurrency)) * answer_tokens / prior.tokens_per_second


def _cost_usd(
    data: DataSpec, prompt_tokens: float, completion_tokens: float, rows: int, prior: TeacherAssumptions
) -> float | None:
    teacher = data.teacher
    if not isinstance(teacher, TeacherSpec):
        return 0.0
    if prior.usd_per_row is not None:
        return rows * prior.usd_per_row
    return cost_usd(teacher, round(prompt_tokens), round(completion_tokens))
