"""`alpaca-jobs launch`: show the plan and its price, ask, run, follow, report."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import data_preview, job_view, options, plan_view, render, starting


def launch(
    job_file: options.JobFile,
    infra: options.Infra = None,
    budget: options.Budget = None,
    deadline: options.Deadline = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="URI", help="Where its state lives, instead of the job's store.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, or a cloud's task, and start nothing.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start it, print its id, and leave.")] = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Run a job: rows, training, export, over as many attempts as it takes.

    Example: alpaca-jobs launch job.yaml --budget 40

    The plan is shown before anything starts, with its price by the hour and, where there is a bill, for the whole job.
    Ctrl-C leaves the run going and says how to return.
    """
    from alpaca_jobs.job_inputs import check_inputs

    changes = starting.changes_from(infra=infra, budget=budget, deadline=deadline, store=store)
    job = starting.load(job_file, changes)
    if not dry_run:  # what it would cost can be asked before the rows are here
        check_inputs(job)
    look = starting.look_at_base(job)
    priced = starting.price(job, contact=True, look=look) if job_view.costs_money(job) else None
    plan = starting.plan_of(job, look) if priced is None else priced.plan
    plan, bucket = starting.with_bucket(plan, contact=not dry_run)
    for words in (*look.words, *data_preview.warnings_of(job)):
        render.say(f"warning: {words}")
    grids = plan_view.plan_grids(plan, priced, bucket, look)
    if dry_run:
        if as_json:
            render.out_json(plan.to_json())
        elif not plan.is_local:
            from cluster.cloud.launching import preview_task

            for grid in grids:
                render.say_grid(grid)
            render.out(preview_task(plan))
        else:
            for grid in grids:
                render.out_grid(grid)
        return
    starting.check_installed(plan.job)
    starting.ask_teacher(plan.job)
    starting.agree(plan_view.question(plan), yes=yes, grids=grids)
    starting.make_bucket(bucket)
    found = starting.start(plan, None if priced is None else priced.estimate, look)
    starting.leave_or_follow(found, detach=detach, as_json=as_json)
