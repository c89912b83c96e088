"""`alpaca-jobs drill JOB --infra aws`: terminate a machine of one's own on purpose, and see the run come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cli import event_lines, plan_view, render, starting, words
from cli.ending import end_runs
from cli.exits import ExitCode

if TYPE_CHECKING:
    from cluster.events import Event


def drill_on_cloud(
    job_file: Path, *, infra: Sequence[str], gpus: str | None, max_usd: float, kills: int, yes: bool, as_json: bool
) -> None:
    """Show the plan with its price, ask, launch, terminate its machine, and show what came of it."""
    from cluster.cloud.aws_account import AwsAccount
    from cluster.launch.cloud_drill import check_drillable, run_cloud_drill
    from cluster.runs.home import Home

    changes: dict[str, Any] = starting.changes_from(infra=infra, budget=max_usd)
    if gpus is not None:
        changes |= {"compute.gpus": gpus, "compute.workers": None}
    job = starting.load(job_file, changes)
    look = starting.look_at_base(job)
    starting.say_unseen(look)
    priced = starting.price(job, contact=True, look=look)
    plan, bucket = starting.with_bucket(priced.plan, contact=True)
    check_drillable(plan, kills)
    question = f"Launch {plan.run_id} and terminate its machine {kills} time(s), for {words.money(max_usd)} at most?"
    starting.agree(question, yes=yes, grids=plan_view.plan_grids(plan, priced, bucket, look))
    starting.make_bucket(bucket)
    thinning = event_lines.Thinning()

    def hear(what: Event | str) -> None:
        line = what if isinstance(what, str) else event_lines.line_of(what) if thinning.lets_through(what) else None
        if line:
            render.say(line)

    estimate = None if priced.estimate is None else priced.estimate.to_json()
    try:
        result = run_cloud_drill(plan, Home.default(), AwsAccount(), kills=kills, on_event=hear, estimate=estimate)
    except KeyboardInterrupt:
        end_runs([plan.run_id])
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    body = result.to_json()
    if as_json:
        render.out_json(body)
    else:
        render.out_grid(cloud_drill_grid(body))
    raise typer.Exit(ExitCode.DONE if result.is_good else ExitCode.JOB_FAILED)


def cloud_drill_grid(body: Mapping[str, Any]) -> render.Grid:
    """What came of a drill on a cloud."""
    kills, back = body["kills"], body["back_s"]
    rows = [("terminated", f"{len(kills)} of {body['wanted']} times")]
    for kill, seconds in zip(kills, back, strict=True):
        came = "it did not come back" if seconds is None else f"the next new step {words.duration(seconds)} later"
        rows.append(("", f"{', '.join(kill['machines'])} in {kill['place']}, after step {kill['step']}: {came}"))
    rows += [
        ("places", " -> ".join(body["places"])),
        ("lost steps", str(sum(body["lost_steps"]))),
        ("outcome", body["outcome"]),
    ]
    notes = (
        f"What it cost: alpaca-jobs receipt {body['run_id']}",
        f"Delete it: alpaca-jobs rm {body['run_id']} --bucket",
    )
    return render.pairs(f"{body['run_id']}, whose machine was terminated on purpose", rows, notes)
