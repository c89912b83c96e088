"""`alpaca-jobs estimate`: what a whole job will cost and how long it will take, before anything runs."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import estimate_view, options, render, starting


def estimate(
    job_file: options.JobFile,
    infra: options.Infra = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Rows to train on, where the job's file cannot be counted here.")
    ] = None,
    row_tokens: Annotated[
        float | None,
        typer.Option(
            "--row-tokens", min=1, callback=options.finite, help="Tokens of a row on average, template included."
        ),
    ] = None,
    parameters: Annotated[
        float | None,
        typer.Option(
            "--parameters", min=1, callback=options.finite, help="Size of a model that is not known here, such as 7e9."
        ),
    ] = None,
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="Learn from the reports of earlier runs.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", help="Of the simulation; the same seed gives the same numbers.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Estimate a job: dollars and hours in every place it may run, with every factor and its source.

    Example: alpaca-jobs estimate job.yaml --infra aws

    Speeds and preemptions that earlier runs have measured replace the priors.
    """
    from alpaca_jobs.generation.seeds import check_seed_file
    from cluster.launch.estimating import Counted, estimate_plan, gather_facts, plan_with
    from cluster.launch.planner import offers_for

    job = starting.load(job_file, starting.changes_from(infra=infra))
    if "generate" in job.stages:
        check_seed_file(job.data)
    counted = Counted(rows, row_tokens, None if parameters is None else round(parameters))
    look = starting.look_at_base(job)
    starting.say_unseen(look)
    past = starting.past_runs() if history else ()
    facts = gather_facts(job, past=past, counted=counted, base=look.base)
    offers = offers_for(job)
    found = estimate_plan(plan_with(job, facts, offers), facts, offers, seed=seed)
    if as_json:
        render.out_json(found.to_json())
    else:
        for grid in estimate_view.estimate_grids(found):
            render.out_grid(grid)
