"""`alpaca-jobs train`: training and export alone, on this machine, on rows that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli import data_preview, options, plan_view, render, starting
from cli.exits import Refused


def train(
    job_file: options.JobFile,
    rows: Annotated[
        Path | None, typer.Option("--rows", metavar="FILE", help="Rows to train on, instead of the job's data.from.")
    ] = None,
    store: Annotated[str | None, typer.Option("--store", metavar="URI", help="Instead of the job's store.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start it, print its id, and leave.")] = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Train on rows that exist and export the model, on this machine.

    Example: alpaca-jobs train job.yaml --rows rows.jsonl

    It is a run like any other: it can be killed, resumed and followed. A job for a cloud or for GPUs is for launch.
    """
    changes: dict[str, Any] = starting.changes_from(store=store)
    if rows is not None:
        licence = starting.load(job_file, {}).data.licence
        changes["data"] = {"from": str(rows.absolute()), **({} if licence is None else {"licence": licence})}
    plan = starting.make_plan(job_file, changes)
    if "generate" in plan.job.stages:
        raise Refused(f"{job_file} names no rows that exist. Add --rows FILE, or set data.from in the job.")
    if not plan.is_local:
        raise Refused(
            f"{job_file} is for {plan.candidates[0].infra}. Set compute.infra: local, or use alpaca-jobs launch."
        )
    for words in data_preview.warnings_of(plan.job):  # rows that are none are refused here, before a node starts
        render.say(f"warning: {words}")
    starting.check_installed(plan.job)
    starting.agree(plan_view.question(plan), yes=yes, grids=plan_view.plan_grids(plan))
    starting.leave_or_follow(starting.start(plan), detach=detach, as_json=as_json)
