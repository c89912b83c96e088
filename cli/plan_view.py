"""A launch plan as tables: what would run, where, and what it costs by the hour. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli import estimate_view, render, words
from cli.job_view import job_rows

if TYPE_CHECKING:
    from alpaca_jobs.training.base_look import Look
    from cli.starting import Priced
    from cluster.cloud.aws_bucket import Bucket
    from cluster.plan import LaunchPlan, Placement

MAX_CANDIDATES = 10


def plan_grids(
    plan: LaunchPlan, priced: Priced | None = None, bucket: Bucket | None = None, look: Look | None = None
) -> list[render.Grid]:
    """The job with its estimate, where there is one to show, then the places it may run, best first.

    `bucket`: what `store: auto` uses, or makes; `look`: what was found of the base model.
    """
    rows = [row for row in job_rows(plan.job) if row[0] != "store"]
    rows += base_rows(look)
    rows += [("ranks", f"{plan.world_size} for training"), ("store", f"{plan.store_uri}/{plan.run_id}")]
    rows += [("bucket", str(bucket))] if bucket is not None else []
    rows.append(("recovery", f"{plan.job.compute.recover}, saved {_interval(plan)}"))
    if priced is not None:
        rows += estimate_rows(priced)
    hidden = len(plan.candidates) - MAX_CANDIDATES
    notes = ([f"... and {hidden} more"] if hidden > 0 else []) + list(plan.notes)
    places = render.Grid(
        ("try", "where", "machine", "pricing", ">nodes", ">price each", ">price of all"),
        tuple(_place_row(number, place) for number, place in enumerate(plan.candidates[:MAX_CANDIDATES], start=1)),
        notes=tuple(notes),
    )
    return [render.pairs(f"Plan for {plan.run_id}", rows), places]


def base_rows(look: Look | None) -> list[tuple[str, str]]:
    """What was found of the base model, in a line; none where it was not looked at."""
    return [] if look is None or look.base is None else [("base model", str(look.base))]


def estimate_rows(priced: Priced) -> list[tuple[str, str]]:
    """The estimate of the whole job in a line, and which limits it may meet; or why there is none."""
    if priced.estimate is None:
        return [("estimate", f"none: {priced.unknown}")]
    rows = [("estimate", estimate_view.estimate_line(priced.estimate))]
    told = estimate_view.limit_words(priced.estimate.candidates[0])
    told += estimate_view.teacher_limit_words(priced.estimate) + estimate_view.training_limit_words(priced.estimate)
    told += estimate_view.waiting_words(priced.estimate)
    return rows + [("", line) for line in told]


def question(plan: LaunchPlan) -> str:
    """What is asked before money is spent."""
    return (
        f"Launch {plan.run_id} in {plan.candidates[0].name} at {words.rate(plan.candidates[0].job_price_per_hour_usd)}?"
    )


def _place_row(number: int, place: Placement) -> tuple[str, ...]:
    return (
        str(number),
        place.name if place.zone is None else f"{place.infra}/{place.zone}",
        place.instance_type if place.gpus is None else f"{place.instance_type} ({place.gpus})",
        place.pricing.value,
        str(place.num_nodes),
        words.rate(place.price_per_hour_usd),
        words.rate(place.job_price_per_hour_usd),
    )


def _interval(plan: LaunchPlan) -> str:
    interval = plan.job.checkpoints.interval_steps
    if isinstance(interval, int):
        return f"every {words.plural(interval, 'step')}"
    return f"as often as {words.share(plan.job.checkpoints.max_overhead)} of the time allows"
