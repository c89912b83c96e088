"""`alpaca-jobs runs`: every run in the stores that were used from here."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options, render, report_view


def runs(
    store: options.Store = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show at most so many, the newest.")] = 20,
    as_json: options.Json = False,
) -> None:
    """List runs, the newest first.

    Example: alpaca-jobs runs --store s3://my-runs
    """
    from checkpoints.errors import Damaged
    from cli.finding import FoundRun, launched_at, open_stores
    from cluster.errors import PlanError, RunNotFound
    from cluster.runs.home import Home
    from cluster.runs.run_view import list_runs, view_run

    home = Home.default()
    found = [FoundRun(root, run_id, home) for root in open_stores(home, store) for run_id in list_runs(root)]
    found.sort(key=lambda one: (launched_at(one.root, one.run_id), one.run_id), reverse=True)
    views = []
    for one in found[:limit]:
        try:
            views.append(view_run(one.root, one.run_id, is_alive=one.is_alive_here).to_json())
        except RunNotFound:
            continue  # removed meanwhile
        except (Damaged, PlanError) as exc:
            render.say(f"{one.run_id} is left out: {exc}")
    if as_json:
        render.out_json(views)
    elif views:
        render.out_grid(report_view.runs_grid(views))
    else:
        render.say(f"No run in {store or 'any store used from here'}. Start one: alpaca-jobs launch JOB")
    if len(found) > limit:
        render.say(f"{len(found) - limit} older ones are not shown; see them with --limit {len(found)}.")
