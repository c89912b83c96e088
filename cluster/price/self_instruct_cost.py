"""What the Self-Instruct recipe will ask: three kinds of requests, counted and sized by its own prompts. Pure.

    N instructions = rows / rows of an instruction
    lists          = N / (new instructions of a list x share of them kept)
    classification = instances = N                       one request of each for every instruction kept

Sizes are those of the prompts that alpaca_jobs/generation/self_instruct_forms.py writes from the job's seed tasks, at
four bytes a token; answers are taken to be as long as what the seed tasks themselves hold.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from alpaca_jobs.generation import self_instruct_forms as forms
from alpaca_jobs.generation.request_maker import sample
from alpaca_jobs.generation.seeds import SeedTask
from alpaca_jobs.spec import DataSpec, TeacherSpec
from cluster.node.row_count import num_tokens
from cluster.price.asked_stage import AskedStage

ROWS_PER_INSTRUCTION = 82_439 / 52_445
"""Instances of one instruction that passed the filters. Source: Self-Instruct (arXiv:2212.10560), table 1."""
CLASSIFICATION_SHARE = 11_584 / 52_445
"""Instructions that are classification tasks. Source: the same table."""
_SAMPLES = 16
_LIST_NUMBER_TOKENS = 3  # "12. " and the line's end
_VERDICT_TEXT, _VERDICT_JSON = "Yes", '{"is_classification": false}'


def self_instruct_stages(
    data: DataSpec, seeds: Sequence[SeedTask], *, rows: int, accept_rate: float, rows_per_instruction: float
) -> tuple[AskedStage, ...]:
    """Count the three kinds of requests for so many rows.

    Args:
        seeds: the job's, at least one.
        accept_rate: share of a list's new instructions that are kept, above 0.
        rows_per_instruction: kept of each instruction, above 0; more than `data.max_instances` counts as that many.
    """
    shown = data.num_prompt_seeds + data.num_prompt_rows
    new = data.max_tasks_per_request - shown
    kept_each = min(rows_per_instruction, float(data.max_instances))
    instructions = math.ceil(rows / kept_each)
    lists = math.ceil(instructions / (new * accept_rate))
    is_json = isinstance(data.teacher, TeacherSpec) and data.teacher.answer_format == "json"
    verdict = _VERDICT_JSON if is_json else _VERDICT_TEXT
    list_tokens = new * (_LIST_NUMBER_TOKENS + statistics.fmean(num_tokens(seed.instruction) for seed in seeds))
    return (
        AskedStage(
            "instruction lists", lists, _list_prompt(data, seeds, shown, as_json=is_json),
            _at_most(list_tokens, forms.INSTRUCTION_TOKENS, data),
            f"{shown} shown, {new} new in each, {accept_rate:.0%} of them kept",
        ),
        AskedStage(
            "classification tests", instructions,
            statistics.fmean(
                num_tokens(forms.classification_prompt(one.instruction, seeds, as_json=is_json)) for one in seeds
            ),
            max(1.0, num_tokens(verdict)), "one for every instruction kept",
        ),
        AskedStage(
            "instances", instructions, _by_kind(data, seeds, is_json=is_json),
            _at_most(kept_each * _instance_tokens(seeds), forms.INSTANCE_TOKENS, data),
            f"one for every instruction kept, {kept_each:.2f} rows of each, "
            f"{CLASSIFICATION_SHARE:.0%} of them asked for labels first",
        ),
    )  # fmt: skip


def rows_per_instruction_seen(data: DataSpec, *, rows_per_request: float, accept_rate: float) -> float:
    """What a run's rows per request, all three kinds counted, say about the rows of one instruction.

    An instruction takes two requests and its share of a list: 2 + 1 / (new x accept_rate).
    """
    new = data.max_tasks_per_request - data.num_prompt_seeds - data.num_prompt_rows
    return rows_per_request * (2 + 1 / (new * accept_rate))


def batch_rounds(data: DataSpec, stages: Sequence[AskedStage], capacity: int) -> int:
    """Rounds of batches, one after the other: each kind follows from the last, `data.plan_ahead` lists at a time.

    Args:
        capacity: requests that are under way in batches at once.
    """
    cycles = math.ceil(stages[0].requests / data.plan_ahead)
    return cycles * sum(math.ceil(one.requests / cycles / capacity) for one in stages)


def _list_prompt(data: DataSpec, seeds: Sequence[SeedTask], shown: int, *, as_json: bool) -> float:
    texts = (
        [seed.instruction for seed in sample(seeds, shown, seed=data.seed, number=number)]
        for number in range(1, _SAMPLES + 1)
    )
    limit = data.max_tasks_per_request
    return statistics.fmean(
        num_tokens(forms.instructions_prompt(one, num_tasks=limit, as_json=as_json)) for one in texts
    )


def _by_kind(data: DataSpec, seeds: Sequence[SeedTask], *, is_json: bool) -> float:
    """The prompt for instances; the two kinds by their shares."""
    mean = 0.0
    for is_classification, share in ((True, CLASSIFICATION_SHARE), (False, 1 - CLASSIFICATION_SHARE)):
        sizes = [
            num_tokens(
                forms.instances_prompt(
                    seed.instruction, seeds, is_classification=is_classification,
                    max_instances=data.max_instances, as_json=is_json,
                )
            )
            for seed in seeds[:_SAMPLES]
        ]  # fmt: skip
        mean += share * statistics.fmean(sizes)
    return mean


def _instance_tokens(seeds: Sequence[SeedTask]) -> float:
    """One instance as the answer writes it: its two labels, its input and its output."""
    return statistics.fmean(num_tokens(f"Example 1\nInput: {seed.input}\nOutput: {seed.output}\n") for seed in seeds)


def _at_most(tokens: float, stage_limit: int, data: DataSpec) -> float:
    """No answer is longer than its request allows; a chat model has the teacher's own limit."""
    if not isinstance(data.teacher, TeacherSpec):
        return min(tokens, stage_limit)
    limit = data.teacher.max_tokens
    return min(tokens, limit if data.teacher.api == "chat" else min(limit, stage_limit))
