"""When the rows are written: does what is left of `limits.max_usd` pay for training, as it was estimated at launch?

    left = limits.max_usd - the teacher - the machines so far, all attempts together
    left < the p50 of training's machines           -> the run ends here, before a GPU is bought that cannot finish

Asked once, by the attempt that wrote the last row: whoever resumes the run then goes on in spite of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alpaca_jobs.errors import BudgetExceeded
from checkpoints.lineage import counting_commits
from checkpoints.reader import list_commits
from cluster.events import seconds_of, utc_now
from cluster.job_record import read_estimate
from cluster.node.attempt_context import AttemptContext
from cluster.node.cost_so_far import machines_usd, teacher_usd
from cluster.node.limits import read_limits


def check_training_budget(ctx: AttemptContext) -> None:
    """End the run if this attempt wrote its last row, and what is left is less than training is expected to cost.

    Nothing is checked without `limits.max_usd`, without an estimate, or where a price that it needs is not known.

    Raises:
        BudgetExceeded: in words; all rows are committed.
    """
    if ctx.commits("train"):
        return  # so another attempt wrote the last row: nothing has to be read
    limit = read_limits(ctx.store, ctx.job.limits).max_usd
    training_usd = None if limit is None else expected_training_usd(read_estimate(ctx.store))
    if limit is None or not training_usd:
        return
    commits = counting_commits(ctx.log.records(), list_commits(ctx.store, ctx.layout), ctx.layout)
    if not commits or commits[0].stage != "generate" or commits[0].attempt != ctx.attempt:
        return
    machines = machines_usd(ctx.log.records(), now_s=seconds_of(utc_now())) or 0.0
    teacher = teacher_usd(ctx, commits[0]) or 0.0
    left = limit - machines - teacher
    if left >= training_usd:
        return
    ctx.events.emit(
        "budget", limit_usd=limit, teacher_usd=teacher, machines_usd=machines, left_usd=left, training_usd=training_usd
    )
    raise BudgetExceeded(
        f"The rows are written, but limits.max_usd is {limit:.2f} USD, of which the teacher has taken {teacher:.2f} "
        f"and machines {machines:.2f}; training is expected to cost {training_usd:.2f} (p50), and {max(left, 0.0):.2f} "
        "are left. So nothing is trained yet; a resume does it, as far as the budget lasts."
    )


def expected_training_usd(estimate: Mapping[str, Any] | None) -> float | None:
    """The p50 of what training's machines cost in an estimate's first place; None where it does not say."""
    candidates = (estimate or {}).get("candidates") or [{}]
    stages = {str(one.get("name")): one for one in candidates[0].get("stages") or ()}
    found = (stages.get("training", {}).get("cost_usd") or {}).get("p50")
    return None if found is None else float(found)
