"""What a whole job will cost and how long it will take, before it runs. Pure; docs/ESTIMATE.md checks it.

    LaunchPlan + Workload + TeacherEstimate + SideMachines + Assumptions -> CandidateEstimate for every place

Rows are written first (on a machine without GPUs), then the training runs; each is played many times
(cluster/price/simulation.py), and the n-th play of the one is followed by the n-th play of the other.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.course import Course
from cluster.plan import SECONDS_PER_HOUR, LaunchPlan, Placement
from cluster.price.assumptions import Assumptions
from cluster.price.courses import STATE_BYTES_PER_PARAMETER, base_bytes, generation_course, training_course
from cluster.price.side_machines import SideMachines
from cluster.price.simulation import Played, Quantiles, play, quantiles
from cluster.price.teacher_cost import TeacherEstimate
from cluster.price.workload import Workload

_GB = 1e9
_HOURS_PER_MONTH = 730.0
DRAWS = 400
_TEACHER = "teacher"


@dataclass(frozen=True)
class StageEstimate:
    """One stage of the job, on the machines that carry it out.

    Attributes:
        name: rows or training.
        hours: from its first machine's boot to its end.
        cost_usd: its machines, and for rows the teacher; None when a price is unknown. The store and the controller
            belong to no stage.
        preemptions: mean over the plays.
        course: what was played.
    """

    name: str
    placement: Placement
    hours: Quantiles
    cost_usd: Quantiles | None
    preemptions: float
    course: Course

    def to_json(self) -> dict[str, Any]:
        """Plain values; a quantile of plays that never end is null."""
        return {
            "name": self.name,
            "placement": self.placement.to_json(),
            "hours": _quantiles_json(self.hours),
            "cost_usd": _quantiles_json(self.cost_usd),
            "preemptions": self.preemptions,
            "course": asdict(self.course),
        }


@dataclass(frozen=True)
class CandidateEstimate:
    """The whole job, trained in one place.

    Attributes:
        hours: from the first machine's boot to the last byte of the model; None where no speed is known (a
            machine without GPUs, before a first run on one).
        machines_usd: everything but the teacher; None when a price is unknown. cost_usd: all; None when any is.
        preemptions: mean over the plays, all stages.
        parts_usd: mean of each part of the cost; None for one whose price is unknown.
        course: the training that was played.
        stages: rows, where they are written, and training, each on its own; empty where no speed is known.
        over_budget, over_deadline: share of the plays that cross the job's own limits; None without such a limit.
    """

    placement: Placement
    hours: Quantiles | None
    machines_usd: Quantiles | None
    cost_usd: Quantiles | None
    preemptions: float
    parts_usd: Mapping[str, float | None]
    course: Course | None
    stages: tuple[StageEstimate, ...] = ()
    over_budget: float | None = None
    over_deadline: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; a quantile of plays that never end is null."""
        return {
            "placement": self.placement.to_json(),
            "hours": _quantiles_json(self.hours),
            "cost_usd": _quantiles_json(self.cost_usd),
            "machines_usd": _quantiles_json(self.machines_usd),
            "preemptions": self.preemptions,
            "stages": [one.to_json() for one in self.stages],
            "parts_usd": {name: _finite(value) for name, value in self.parts_usd.items()},
            "over_budget": self.over_budget,
            "over_deadline": self.over_deadline,
        }


@dataclass(frozen=True)
class _Case:
    """What all places of one estimate share, and the plays that places with the same course share."""

    plan: LaunchPlan
    work: Workload
    assumed: Assumptions
    teacher: TeacherEstimate | None
    side: SideMachines
    draws: int
    seed: int
    teacher_usd: list[float] | None
    games: dict[tuple[Course, str], tuple[Played, ...]] = field(default_factory=dict)

    def play(self, course: Course, stage: str) -> tuple[Played, ...]:
        """Stages have dice of their own: bad luck in one says nothing about the other."""
        if (course, stage) not in self.games:
            seed = self.seed if stage == "train" else self.seed + 1
            self.games[course, stage] = play(course, draws=self.draws, seed=seed)
        return self.games[course, stage]


def estimate_candidates(
    plan: LaunchPlan,
    work: Workload,
    assumed: Assumptions | None = None,
    *,
    teacher: TeacherEstimate | None = None,
    side: SideMachines | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[CandidateEstimate, ...]:
    """Estimate the job in every place of a plan, in the plan's order.

    Args:
        work: cluster/price/workload.py.
        teacher: cluster/price/teacher_cost.py; None for a job whose rows exist.
        side: the machines beside those that train; None for none.
        draws, seed: of the simulation; the same seed gives the same numbers.

    Raises:
        PlanError: a place whose speed is not known.
    """
    priors = assumed or Assumptions()
    teacher_usd = _teacher_usd(teacher, priors.teacher.spread, draws, seed)
    case = _Case(plan, work, priors, teacher, side or SideMachines(), draws, seed, teacher_usd)
    return tuple(_estimate(case, place) for place in plan.candidates)


def _estimate(case: _Case, place: Placement) -> CandidateEstimate:
    course = training_course(place, case.plan.job, case.work, case.assumed)
    if course is None:
        return _of_unknown_speed(place, case.draws, case.teacher_usd)
    trained = case.play(course, "train")
    writer, writing, written = _generation(case, place)
    walls_s = [one.wall_s + other.wall_s for one, other in zip(written, trained, strict=True)]
    bills = _bills(case, course, (writer, written), (place, trained))
    machines = _sum(list(bills.values()))
    totals = _sum([machines, case.teacher_usd])
    limits = case.plan.job.limits
    hours = [wall_s / SECONDS_PER_HOUR for wall_s in walls_s]
    return CandidateEstimate(
        placement=place,
        hours=quantiles(hours),
        machines_usd=_quantiles_of(machines),
        cost_usd=_quantiles_of(totals),
        preemptions=_mean([one.losses + other.losses for one, other in zip(written, trained, strict=True)]),
        parts_usd={
            name: None if bill is None else _mean(bill) for name, bill in {**bills, _TEACHER: case.teacher_usd}.items()
        },
        course=course,
        stages=(
            *([_stage("rows", writer, writing, written, [case.teacher_usd])] if writing is not None else []),
            _stage("training", place, course, trained),
        ),
        over_budget=_share_over(totals, limits.max_usd),
        over_deadline=_share_over(hours, limits.deadline_h),
    )


def _of_unknown_speed(place: Placement, draws: int, teacher_usd: list[float] | None) -> CandidateEstimate:
    """How long is unknown, and so is what that costs, unless an hour costs nothing."""
    machines = [0.0] * draws if place.price_per_hour_usd == 0 else None
    parts = {"training machines": machines, _TEACHER: teacher_usd}
    means = {name: None if bill is None else _mean(bill) for name, bill in parts.items()}
    totals = _quantiles_of(_sum([machines, teacher_usd]))
    return CandidateEstimate(place, None, _quantiles_of(machines), totals, 0.0, means, None)


def _stage(
    name: str, place: Placement, course: Course, games: Sequence[Played], others: Sequence[list[float] | None] = ()
) -> StageEstimate:
    """A stage by its plays; `others`: what it costs beside machines, play by play."""
    bills = [_all(place.usd_for(one.billed_s) for one in games), *others]
    hours = quantiles([one.wall_s / SECONDS_PER_HOUR for one in games])
    return StageEstimate(name, place, hours, _quantiles_of(_sum(bills)), _mean([one.losses for one in games]), course)


def _generation(case: _Case, place: Placement) -> tuple[Placement, Course | None, tuple[Played, ...]]:
    """The machine that has the rows written, what that is made of, and its plays; plays of nothing where rows exist."""
    writer = case.side.generation or place
    if case.teacher is None:
        return writer, None, (Played(0.0, 0.0, 0),) * case.draws
    course = generation_course(
        writer, case.plan.job.data, case.teacher, case.assumed, boots=case.side.generation is not None
    )
    return writer, course, case.play(course, "generate")


def _bills(
    case: _Case,
    course: Course,
    generation: tuple[Placement, Sequence[Played]],
    training: tuple[Placement, Sequence[Played]],
) -> dict[str, list[float] | None]:
    """Dollars of every play, by part; None for a part whose price is unknown."""
    (writer, written), (place, trained) = generation, training
    bills: dict[str, list[float] | None] = {}
    if case.teacher is not None:
        bills["generation machine"] = _all(writer.usd_for(one.billed_s) for one in written)
    bills["training machines"] = _all(place.usd_for(one.billed_s) for one in trained)
    if place.infra == "local":
        return bills
    bills["state between regions"] = [_egress_usd(case, one) for one in trained]
    bills["checkpoints kept"] = [_storage_usd(case, one) for one in trained]
    both = list(zip(written, trained, strict=True))
    bills["requests to the store"] = [_requests_usd(case, course, one, other) for one, other in both]
    if case.side.controller is not None:
        watched = [case.side.controller.usd_for(one.wall_s + other.wall_s) for one, other in both]
        bills["controller"] = _all(watched)
    return bills


def state_gb(work: Workload) -> float:
    """One checkpoint, in GB (1e9 bytes): what is trained; of LoRA the adapters."""
    return work.trained_parameters * STATE_BYTES_PER_PARAMETER / _GB


def _egress_usd(case: _Case, game: Played) -> float:
    """State that crosses regions: read where a loss took the run to, and every save from there, as the store does not
    move; beside adapters, a base model in a store is read as well, by every machine. The hub's is fetched for nothing.
    """
    if len({place.name for place in case.plan.candidates}) == 1:
        return 0.0  # there is no other
    reads_base = case.work.trained is not None and "://" in case.plan.job.train.model
    base_gb = case.plan.num_nodes * base_bytes(case.work) / _GB if reads_base else 0.0
    moved_gb = game.saves_away * state_gb(case.work) + game.losses_away * (state_gb(case.work) + base_gb)
    return moved_gb * case.assumed.egress_usd_per_gb


def kept_gb(plan: LaunchPlan, work: Workload) -> float:
    """Checkpoints kept at a time, together."""
    return plan.job.checkpoints.keep * state_gb(work)


def _storage_usd(case: _Case, game: Played) -> float:
    months = game.wall_s / SECONDS_PER_HOUR / _HOURS_PER_MONTH
    return kept_gb(case.plan, case.work) * months * case.assumed.storage_usd_per_gb_month


def _requests_usd(case: _Case, course: Course, written: Played, trained: Played) -> float:
    """Blocks written at every save and read after every loss, and what a node writes because it lives."""
    assumed = case.assumed
    blocks = state_gb(case.work) * _GB / assumed.request_bytes
    saves = course.work_s / course.save_interval_s
    idle = (written.billed_s + trained.billed_s) * assumed.idle_writes_per_s
    return (saves * blocks + idle) * assumed.write_usd + trained.losses * blocks * assumed.read_usd


def _teacher_usd(teacher: TeacherEstimate | None, spread: float, draws: int, seed: int) -> list[float] | None:
    """What the teacher costs in every play, around what was computed; None where its price is unknown."""
    if teacher is None:
        return [0.0] * draws
    if teacher.cost_usd is None:
        return None
    dice = (random.Random(f"teacher/{seed}/{number}") for number in range(draws))
    return [teacher.cost_usd * math.exp(one.gauss(0.0, spread)) for one in dice]


def _all(values: Any) -> list[float] | None:
    listed = list(values)
    return None if any(value is None for value in listed) else listed


def _sum(bills: Sequence[list[float] | None]) -> list[float] | None:
    """Play by play; None as soon as one part is unknown."""
    known = [bill for bill in bills if bill is not None]
    return [sum(shares) for shares in zip(*known, strict=True)] if len(known) == len(bills) else None


def _share_over(values: Sequence[float] | None, limit: float | None) -> float | None:
    return None if values is None or limit is None else sum(value > limit for value in values) / len(values)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


def _quantiles_of(values: Sequence[float] | None) -> Quantiles | None:
    return None if values is None else quantiles(values)


def _quantiles_json(found: Quantiles | None) -> dict[str, float | None] | None:
    return None if found is None else {"p10": _finite(found.p10), "p50": _finite(found.p50), "p90": _finite(found.p90)}
