"""The limits that the rows' ledger keeps: the job's, or those that a `resume` has set in their place.

control/limits-000001.json     put once by every `resume`; the newest counts, None in it stands for the job's own

A node has no other way to learn of them: `job.json` stays as it was launched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alpaca_jobs.spec import LimitsSpec
from checkpoints.lineage import AttemptRecord
from checkpoints.store import Store
from cluster.events import seconds_of, utc_now
from cluster.node.cost_so_far import machines_usd
from cluster.numbered_records import put_next_record, record_keys

_ADVICE = (
    "Raise it: alpaca-jobs resume RUN {} USD; or take the rows there are: alpaca-jobs export RUN --rows FILE. A lower "
    "data.teacher.max_tokens or max_billed_retries reserves less."
)
_DAMAGED = (
    "It holds the dollars that a resume allowed. Resume the run with the --budget and --teacher-budget it should have."
)
_KIND = "limits"


def put_limits(store: Store, *, max_usd: float | None, teacher_max_usd: float | None) -> None:
    """Record the dollars that a resume allows, in the run's own folder; None for what the job says.

    Raises:
        AlreadyExists: somebody else resumed the run at the same moment.
    """
    put_next_record(store, _KIND, {"max_usd": max_usd, "teacher_max_usd": teacher_max_usd})


def read_limits(store: Store, limits: LimitsSpec) -> LimitsSpec:
    """Return a job's limits as the newest resume has changed them."""
    keys = record_keys(store, _KIND)
    if not keys:
        return limits
    body = store.get_record(keys[-1], advice=_DAMAGED)
    given = {name: body[name] for name in ("max_usd", "teacher_max_usd") if body.get(name) is not None}
    return limits.model_copy(update=given)


@dataclass(frozen=True)
class TeacherLimit:
    """Most dollars that the teacher may have cost over all attempts; what that limit is, and what to do about it."""

    usd: float
    words: str
    advice: str


def teacher_limits(
    limits: LimitsSpec, records: Sequence[AttemptRecord], *, now_s: Callable[[], float] = lambda: seconds_of(utc_now())
) -> Callable[[], TeacherLimit | None]:
    """Return what says, at any moment, which limit is the nearest for the teacher; None for no limit.

    Of `limits.max_usd` it has what the machines of all attempts have left; a machine of unknown price counts nothing.

    Args:
        records: the run's attempts, the one at work included.
    """

    def nearest() -> TeacherLimit | None:
        found = []
        if limits.teacher_max_usd is not None:
            words = f"limits.teacher_max_usd is {limits.teacher_max_usd}"
            found.append(TeacherLimit(limits.teacher_max_usd, words, _ADVICE.format("--teacher-budget")))
        if limits.max_usd is not None:
            machines = machines_usd(records, now_s=now_s()) or 0.0
            words = f"limits.max_usd is {limits.max_usd}, of which the machines have taken {machines:.4f}"
            found.append(TeacherLimit(limits.max_usd - machines, words, _ADVICE.format("--budget")))
        return min(found, key=lambda one: one.usd, default=None)

    return nearest
