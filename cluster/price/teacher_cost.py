"""What the teacher will be asked and what that costs, before the first request. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from alpaca_jobs.generation.batch_lines import BATCHES_AT_ONCE
from alpaca_jobs.generation.pricing import cost_usd
from alpaca_jobs.generation.seeds import BUILTIN, SeedTask, load_seed_tasks
from alpaca_jobs.spec import DataSpec, TeacherSpec
from cluster.price.asked_stage import AskedStage
from cluster.price.self_instruct_cost import ROWS_PER_INSTRUCTION, batch_rounds, self_instruct_stages
from cluster.price.served_cost import START_S, ServedSpeed, served_speed

BATCH_ROUND_S = 24 * 3600.0
"""Until a batch is answered, at most; often sooner. Source: OpenAI, "Batch API" guide (completion window 24 h)."""

AUTO_IN_FLIGHT = 32
"""Requests in flight that each actor comes to where the job leaves it to `auto`; ours, not measured yet."""

BATCH_SOURCE = "prior, an upper bound: OpenAI's Batch API guide, answered within 24 h"
SIZES_SOURCE = "kinds: Self-Instruct, table 1; tokens: the recipe's own prompts and seeds, bytes / 4"


@dataclass(frozen=True)
class TeacherAssumptions:
    """Priors about a teacher, each to be replaced by what a run of one's own reports.

    Attributes:
        accept_rate: share of the new tasks (self-instruct: of the new instructions) that survive parsing, filters and
            dedupe.
        rows_per_instruction: kept of each instruction (self-instruct only).
        tokens_per_task: one task in the numbered list, its instruction, input and output. A row of Alpaca's data has
            128 tokens with its training template, about 85 without; the list's own words add about 15.
        prompt_header_tokens: the list's requirements, before the first task.
        tokens_per_second: of one request in flight.
        offline_s: one request to the offline teacher on this machine, all that are in flight counted (22 requests took
            4 to 9 s on 2 busy cores, 2026-11-21).
        batch_round_s: from sending batches to their answers.
        spread: standard deviation of the logarithm of what the teacher costs and takes.
        rows_per_second, usd_per_row: what an earlier run measured with this teacher; None for none.
        source: where the accept rate, and what was measured, come from.
    """

    accept_rate: float = 0.5
    rows_per_instruction: float = ROWS_PER_INSTRUCTION
    tokens_per_task: float = 100.0
    prompt_header_tokens: float = 400.0
    tokens_per_second: float = 50.0
    offline_s: float = 0.3
    batch_round_s: float = BATCH_ROUND_S
    spread: float = 0.3
    rows_per_second: float | None = None
    usd_per_row: float | None = None
    source: str = "prior: ours, not measured yet"


@dataclass(frozen=True)
class TeacherEstimate:
    """What generation asks of the teacher.

    Attributes:
        requests: of all kinds together.
        rows: that will be kept: as many as the job wants, unless its max_requests ends the asking before.
        seconds: of generation, with all requests in flight that the job allows.
        cost_usd: None when the job states no prices; 0 for the offline teacher.
        stages: the kinds of requests, in the order in which they follow from each other.
        rounds: of batches, one after the other; None for a teacher that is asked directly, or whose pace was measured.
        served: how fast a model of the run's own is taken to answer; None for any other, or where it was measured.
    """

    requests: int
    rows: int
    prompt_tokens: float
    completion_tokens: float
    seconds: float
    cost_usd: float | None
    stages: tuple[AskedStage, ...] = ()
    rounds: int | None = None
    served: ServedSpeed | None = None


def estimate_teacher(
    data: DataSpec, assumed: TeacherAssumptions | None = None, seeds: Sequence[SeedTask] = ()
) -> TeacherEstimate:
    """Requests, tokens, time and price of generating `data.num_rows` rows.

    Alpaca: requests = num_rows / ((max_tasks_per_request - num_prompt_seeds) * accept_rate); Self-Instruct:
    cluster/price/self_instruct_cost.py.

    Args:
        seeds: the job's seed tasks, for the size of its prompts (self-instruct only); none for the package's own.
    """
    prior = assumed or TeacherAssumptions()
    stages = _stages(data, prior, seeds)
    requests, rows = sum(one.requests for one in stages), data.num_rows
    if data.max_requests is not None and data.max_requests < requests:
        rows = max(1, data.num_rows * data.max_requests // requests)
        stages, requests = _cut(stages, data.max_requests), data.max_requests
    prompt_tokens = sum(one.all_prompt_tokens for one in stages)
    completion_tokens = sum(one.all_answer_tokens for one in stages)
    rounds = _rounds(data, stages, prior)
    return TeacherEstimate(
        requests=requests,
        rows=rows,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        seconds=_seconds(data, stages, rows, rounds, prior),
        cost_usd=_cost_usd(data, prompt_tokens, completion_tokens, rows, prior),
        stages=stages,
        rounds=rounds,
        served=_served(data, prior),
    )


def _stages(data: DataSpec, prior: TeacherAssumptions, seeds: Sequence[SeedTask]) -> tuple[AskedStage, ...]:
    if data.recipe == "self-instruct":
        return self_instruct_stages(
            data, seeds or load_seed_tasks(BUILTIN), rows=data.num_rows, accept_rate=prior.accept_rate,
            rows_per_instruction=prior.rows_per_instruction,
        )  # fmt: skip
    new_tasks = data.max_tasks_per_request - data.num_prompt_seeds
    answer = new_tasks * prior.tokens_per_task
    if isinstance(data.teacher, TeacherSpec):
        answer = min(answer, data.teacher.max_tokens)
    return (
        AskedStage(
            "task lists",
            math.ceil(data.num_rows / (new_tasks * prior.accept_rate)),
            prior.prompt_header_tokens + data.num_prompt_seeds * prior.tokens_per_task,
            answer,
            f"{data.num_prompt_seeds} shown, {new_tasks} new in each, {prior.accept_rate:.0%} of them kept",
        ),
    )


def _cut(stages: Sequence[AskedStage], requests: int) -> tuple[AskedStage, ...]:
    """The same kinds in the same proportions, `requests` in all."""
    whole = sum(one.requests for one in stages)
    others = [replace(one, requests=one.requests * requests // whole) for one in stages[:-1]]
    last = replace(stages[-1], requests=requests - sum(one.requests for one in others))
    return (*others, last)


def _rounds(data: DataSpec, stages: Sequence[AskedStage], prior: TeacherAssumptions) -> int | None:
    if not isinstance(data.teacher, TeacherSpec) or not data.teacher.batch_api or prior.rows_per_second is not None:
        return None
    capacity = BATCHES_AT_ONCE * data.teacher.batch_requests
    if data.recipe == "self-instruct":
        return batch_rounds(data, stages, capacity)
    return math.ceil(stages[0].requests / capacity)


def _served(data: DataSpec, prior: TeacherAssumptions) -> ServedSpeed | None:
    if not isinstance(data.teacher, TeacherSpec) or data.teacher.serve is None or prior.rows_per_second is not None:
        return None
    return served_speed(data, tokens_per_second_each=prior.tokens_per_second)


def _seconds(
    data: DataSpec, stages: Sequence[AskedStage], rows: int, rounds: int | None, prior: TeacherAssumptions
) -> float:
    if prior.rows_per_second is not None:
        return rows / prior.rows_per_second
    if not isinstance(data.teacher, TeacherSpec):
        return sum(one.requests for one in stages) * prior.offline_s
    if rounds is not None:
        return rounds * prior.batch_round_s
    if (speed := _served(data, prior)) is not None:
        return START_S + sum(one.all_answer_tokens for one in stages) / speed.tokens_per_second
    at_once = data.num_actors * (AUTO_IN_FLIGHT if data.concurrency == "auto" else data.concurrency)
    return sum(math.ceil(one.requests / at_once) * one.answer_tokens / prior.tokens_per_second for one in stages)


def _cost_usd(
    data: DataSpec, prompt_tokens: float, completion_tokens: float, rows: int, prior: TeacherAssumptions
) -> float | None:
    teacher = data.teacher
    if not isinstance(teacher, TeacherSpec):
        return 0.0
    if prior.usd_per_row is not None:
        return rows * prior.usd_per_row
    return cost_usd(teacher, round(prompt_tokens), round(completion_tokens))
