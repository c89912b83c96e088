"""An estimate as tables and as one line. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli import render, words

if TYPE_CHECKING:
    from cluster.launch.estimating import JobEstimate
    from cluster.plan import Placement
    from cluster.price.estimate import CandidateEstimate
    from cluster.price.estimate_factors import Factor
    from cluster.price.simulation import Quantiles

MAX_CANDIDATES = 8
NEVER = "never"
_COLUMNS = ("where", "machine", "pricing", ">time p10", ">p50", ">p90", ">cost p10", ">p50", ">p90", ">losses")
UNKNOWN_TIME = "how long it takes without GPUs is known after a first run on such a machine"


def estimate_grids(found: JobEstimate) -> list[render.Grid]:
    """Places with their hours and dollars; the first one's rows and training apart; its dollars; the factors."""
    first = found.candidates[0]
    grids = [_places(found), _stages(first), _parts(first, found.on_demand), _factors(found.factors)]
    return [grid for grid in grids if grid.rows]


def estimate_line(found: JobEstimate) -> str:
    """The first place's estimate in one line: `p50 $7.90 in 1.2 h, p90 $11.20 in 1.8 h`."""
    first = found.candidates[0]
    usd = first.cost_usd or first.machines_usd
    without = "" if first.cost_usd is not None else ", without the teacher, whose price is not known"
    if first.hours is None:
        return f"{_money(usd, 'p50')}{without}; {UNKNOWN_TIME}" if usd is not None else f"none: {UNKNOWN_TIME}"
    parts = [f"{name} {_money(usd, name)} in {_hours(first.hours, name)}" for name in ("p50", "p90")]
    return ", ".join(parts) + without


def teacher_limit_words(found: JobEstimate) -> list[str]:
    """That the teacher's own limit is below what it is expected to cost, where it is."""
    limit, usd = found.plan.job.limits.teacher_max_usd, found.candidates[0].parts_usd.get("teacher")
    if limit is None or usd is None or usd <= limit:
        return []
    return [
        f"limits.teacher_max_usd, {words.money(limit)}, is below the {words.money(usd)} that the teacher is "
        "expected to cost: the rows would stop short of it (resume --teacher-budget goes on)."
    ]


def training_limit_words(found: JobEstimate) -> list[str]:
    """That the rows are expected to leave too little of the budget for training, where they are.

    A run ends then when its rows are written, before a machine is started to train (cluster/node/training_budget.py).
    """
    limit, stages = found.plan.job.limits.max_usd, {one.name: one.cost_usd for one in found.candidates[0].stages}
    rows, training = stages.get("rows"), stages.get("training")
    if limit is None or rows is None or training is None or not training.p50 or limit - rows.p50 >= training.p50:
        return []
    return [
        f"limits.max_usd, {words.money(limit)}, less the {words.money(rows.p50)} that the rows are expected to cost, "
        f"does not pay the {words.money(training.p50)} of training (p50 each): the run would end when the rows are "
        "written, before it buys a machine to train."
    ]


def waiting_words(found: JobEstimate) -> list[str]:
    """What training would stand still for, a minute or more in all: its saves, where the job wants them more often than
    they can be stored, and the links between its GPUs.
    """
    from cluster.price.estimate_factors import GPUS_WAIT, WAITING

    waits = [(one, one.name.removeprefix("waiting ")) for one in found.factors if one.name in (WAITING, GPUS_WAIT)]
    return [
        f"Training would wait {words.duration(3600 * one.value)} {what}: {one.words}."
        for one, what in waits
        if 3600 * one.value >= 60
    ]


def limit_words(first: CandidateEstimate) -> list[str]:
    """How likely the job's own limits stop it, where that is at least one play in a hundred."""
    told = []
    for share, name in ((first.over_budget, "limits.max_usd"), (first.over_deadline, "limits.deadline_h")):
        if share is not None and share >= 0.01:
            told.append(f"{name} would stop it in {share:.0%} of the plays.")
    return told


def _places(found: JobEstimate) -> render.Grid:
    listed = [(str(number), one) for number, one in enumerate(found.candidates[:MAX_CANDIDATES], start=1)]
    if found.on_demand is not None:
        listed.append(("instead", found.on_demand))
    hidden = len(found.candidates) - MAX_CANDIDATES
    notes = [f"... and {hidden} more places; all of them: --json"] if hidden > 0 else []
    if found.candidates[0].hours is None:
        notes.append(f"No time: {UNKNOWN_TIME}.")
    notes += [*limit_words(found.candidates[0]), *teacher_limit_words(found), *training_limit_words(found)]
    notes += waiting_words(found)
    notes += found.unpriced
    notes += found.plan.notes
    notes.append(
        f"p10, p50, p90: what one play in ten, in two, nine in ten of {found.draws} (seed {found.seed}) stay under."
    )
    return render.Grid(
        ("try", *_COLUMNS),
        tuple((number, *_row(one)) for number, one in listed),
        title=f"Estimate of {found.plan.job.name}, the whole job",
        notes=tuple(notes),
    )


def _row(one: CandidateEstimate) -> tuple[str, ...]:
    return _cells(one.placement, one.hours, one.cost_usd or one.machines_usd, one.preemptions)


def _cells(place: Placement, hours: Quantiles | None, usd: Quantiles | None, preemptions: float) -> tuple[str, ...]:
    return (
        *_place(place),
        *(_hours(hours, name) for name in ("p10", "p50", "p90")),
        *(_money(usd, name) for name in ("p10", "p50", "p90")),
        words.number(preemptions, 2),
    )


def _stages(first: CandidateEstimate) -> render.Grid:
    """Rows and training, each on its own machines; no rows where there is but one of them."""
    several = first.stages if len(first.stages) > 1 else ()
    return render.Grid(
        ("part", *_COLUMNS),
        tuple((one.name, *_cells(one.placement, one.hours, one.cost_usd, one.preemptions)) for one in several),
        title="Its parts, one after the other",
        notes=(
            "The cost of a part is its machines, and for the rows the teacher. What belongs to neither stands below.",
        ),
    )


def _place(place: Placement) -> tuple[str, str, str]:
    nodes = f"{place.num_nodes} x " if place.num_nodes > 1 else ""
    machine = place.instance_type if place.gpus is None else f"{place.instance_type} ({place.gpus})"
    where = place.name if place.zone is None else f"{place.infra}/{place.zone}"
    return where, nodes + machine, place.pricing.value


def _parts(first: CandidateEstimate, other: CandidateEstimate | None) -> render.Grid:
    names = [name for name, usd in first.parts_usd.items() if usd is None or usd > 0]
    columns = ("part of the cost, on average", f">{_place(first.placement)[0]}")
    if other is None:
        return render.Grid(columns, tuple((name, _usd(first.parts_usd[name])) for name in names))
    return render.Grid(
        (*columns, ">on demand instead"),
        tuple((name, _usd(first.parts_usd[name]), _usd(other.parts_usd.get(name, 0.0))) for name in names),
    )


def _factors(found: Sequence[Factor]) -> render.Grid:
    rows = ((one.name, f"{_short(one.value)} {one.unit}".rstrip(), one.words, one.source) for one in found)
    return render.Grid(("factor", ">value", "how it comes about", "source"), tuple(rows))


def _short(value: float) -> str:
    """Three digits; large numbers as powers of ten, thousands apart where there is room."""
    if value == 0 or 0.001 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.3g}"


def _hours(found: Quantiles | None, name: str) -> str:
    if found is None:
        return words.MISSING
    value: float = getattr(found, name)
    return NEVER if math.isinf(value) else words.duration(value * 3600)


def _money(found: Quantiles | None, name: str) -> str:
    return words.MISSING if found is None else _usd(getattr(found, name))


def _usd(value: float | None) -> str:
    return NEVER if value is not None and math.isinf(value) else words.money(value)
