"""`alpaca-jobs validate`: check a job file, plan it, and say what it would do; nothing runs, the hub alone is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import data_preview, job_view, options, plan_view, render, starting
from cli.exits import Refused


def validate(
    job_file: Annotated[Path | None, typer.Argument(metavar="JOB", help="The job file.", show_default=False)] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Print the job with every default written out, as YAML.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of job files, for editors.")] = False,
    as_json: options.Json = False,
) -> None:
    """Check a job file: unknown keys, values that cannot be, machines that nobody sells or that cannot hold the model.

    A base model of the Hugging Face hub, or of another run, is looked at: its list of files and the small ones.

    Example: alpaca-jobs validate job.yaml
    """
    from alpaca_jobs.job_inputs import check_inputs
    from alpaca_jobs.spec_io import job_schema, load_job, render_job

    if schema:
        render.out_json(job_schema())
        return
    if job_file is None:
        raise Refused("Which job file? alpaca-jobs validate JOB, or alpaca-jobs validate --schema")
    job = load_job(job_file)
    if full:
        render.out(render_job(job).rstrip("\n"))
        return
    check_inputs(job)
    look = starting.look_at_base(job)
    priced = starting.price(job, contact=False, look=look)
    warnings = [*look.words, *data_preview.warnings_of(job)]
    first = priced.plan.candidates[0]
    if as_json:
        estimate = None if priced.estimate is None else priced.estimate.candidates[0].to_json()
        render.out_json(
            {
                "ok": True,
                "job": str(job_file),
                "name": job.name,
                "stages": list(job.stages),
                "num_candidates": len(priced.plan.candidates),
                "first_candidate": first.to_json(),
                "estimate": estimate,
                "base_model": None if look.base is None else look.base.to_json(),
                "notes": list(priced.plan.notes),
                "warnings": warnings,
            }
        )
        return
    others = len(priced.plan.candidates) - 1
    place = ("first place", f"{first}" + (f"; {others} more to go on in" if others else ""))
    rows = [*job_view.job_rows(job), *plan_view.base_rows(look), place, *plan_view.estimate_rows(priced)]
    notes = (*priced.plan.notes, *(f"warning: {words}" for words in warnings))
    render.out_grid(render.pairs(f"{job_file}: this job can be run", rows, notes))
