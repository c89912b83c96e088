"""What the teacher will be asked and what that costs, before the first request. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    """

    accept_rate: float = 0.5
    tokens_per_task: float = 100.0
    prompt_header_tokens: float = 400.0
    tokens_per_second: float = 50.0


@dataclass(frozen=True)
class TeacherEstimate:
    """What generation asks of the teacher.

    Attributes:
        seconds: of generation, with all requests in flight that the job allows.
        cost_usd: None when the job states no prices; 0 for the offline teacher.
    """

    requests: int
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
    requests = math.ceil(data.num_rows / (new_tasks * prior.accept_rate))
    if data.max_requests is not None:
        requests = min(requests, data.max_requests)
    answer = new_tasks * prior.tokens_per_task
    if isinstance(data.teacher, TeacherSpec):
        answer = min(answer, data.teacher.max_tokens)
    prompt_tokens = requests * (prior.prompt_header_tokens + data.num_prompt_seeds * prior.tokens_per_task)
    rounds = math.ceil(requests / (data.num_actors * data.concurrency))
    return TeacherEstimate(
        requests=requests,
        prompt_tokens=prompt_tokens,
        completion_tokens=requests * answer,
        seconds=rounds * answer / prior.tokens_per_second,
        cost_usd=_cost_usd(data, prompt_tokens, requests * answer),
    )


def _cost_usd(data: DataSpec, prompt_tokens: float, completion_tokens: float) -> float | None:
    teacher = data.teacher
    if not isinstance(teacher, TeacherSpec):
        return 0.0
    if teacher.price_per_million_input_usd is None or teacher.price_per_million_output_usd is None:
        return None
    return (
        prompt_tokens * teacher.price_per_million_input_usd + completion_tokens * teacher.price_per_million_output_usd
    ) / 1e6
