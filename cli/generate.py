"""`alpaca-jobs generate`: the rows of a job and nothing else, asked for from this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import job_view, options, plan_view, preview_view, render, rows_file, starting, words
from cli.exits import ExitCode, Refused, require_modules
from cli.follow import follow_to_the_end

if TYPE_CHECKING:
    from cluster.plan import LaunchPlan


def generate(
    job_file: options.JobFile,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to: .jsonl, .parquet or .json.")
    ] = None,
    preview: Annotated[
        int | None, typer.Option("--preview", metavar="N", min=1, help="Only show N rows; no run, no file.")
    ] = None,
    budget: options.Budget = None,
    store: Annotated[str | None, typer.Option("--store", metavar="URI", help="Instead of the job's store.")] = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Have the teacher write the rows of a job, and stop there.

    Example: alpaca-jobs generate job.yaml --out rows.jsonl

    Look first: alpaca-jobs generate job.yaml --preview 5

    It is a run like any other, on this machine whatever compute says: it can be killed, resumed and followed.
    """
    if preview is not None:
        show_preview(job_file, preview, out=out, yes=yes, as_json=as_json)
        return
    if out is None:
        raise Refused("Where should the rows go? Name a file: --out FILE; or look at some first: --preview 5")
    rows_file.check_writable(out)
    # On this machine, and with none of the regions and GPUs that were meant for the training.
    changes = {"compute": {"infra": ["local"], "workers": 1}, **starting.changes_from(budget=budget, store=store)}
    plan = replace(starting.make_plan(job_file, changes), until="generate")
    priced = starting.price(plan.job, contact=True) if job_view.costs_money(plan.job) else None
    if plan.until not in plan.job.stages:
        raise Refused(f"{job_file} has its rows already (data.from is {plan.job.data.from_}); nothing is generated.")
    starting.check_installed(plan.job, until=plan.until)
    starting.ask_teacher(plan.job)
    starting.agree(_question(plan, priced), yes=yes, grids=plan_view.plan_grids(plan, priced))
    found = starting.start(plan, None if priced is None else priced.estimate)
    try:
        exit_code, report = follow_to_the_end(found)
        if exit_code != ExitCode.DONE:
            raise typer.Exit(exit_code)
    except typer.Exit:
        render.say(starting.how_to_get_the_rows(found.run_id))
        raise
    num_rows = rows_file.write_run_rows(out, found.root.child(found.run_id))
    if as_json:
        render.out_json({"run_id": found.run_id, "out": str(out), "rows": num_rows, "report": report})
    else:
        render.out(str(out))
        render.say(f"{words.plural(num_rows, 'row')}. Train on them: alpaca-jobs train {job_file} --rows {out}")


def _question(plan: LaunchPlan, priced: starting.Priced | None) -> str:
    """What is asked before a teacher is paid: the machine is this one, and costs nothing."""
    teacher = plan.job.data.teacher
    if priced is None or priced.estimate is None or teacher is None or isinstance(teacher, str):
        return plan_view.question(plan)
    usd = priced.estimate.candidates[0].parts_usd.get("teacher")
    price = "a price that is not known" if usd is None else f"about {words.money(usd)}"
    return f"Have {teacher.model} write {words.plural(plan.job.data.num_rows, 'row')} for {price}?"


def show_preview(job_file: Path, count: int, *, out: Path | None, yes: bool, as_json: bool) -> None:
    """Show what the job's teacher would write, by the first requests of the job itself."""
    from alpaca_jobs.spec import TeacherSpec
    from alpaca_jobs.spec_io import load_job
    from cluster.launch.preview import preview_rows

    if out is not None:
        raise Refused("--preview shows rows and writes none: leave --out away, or leave --preview away.")
    job = load_job(job_file)
    if "generate" not in job.stages:
        raise Refused(f"{job_file} has its rows already (data.from is {job.data.from_}); nothing is generated.")
    require_modules("openai", "rapidfuzz", "numpy")
    if isinstance(job.data.teacher, TeacherSpec):
        starting.check_key(job.data.teacher)
        asked = f"Ask {job.data.teacher.model} for {words.plural(count, 'row')}? They are shown, paid for and not kept."
        starting.agree(asked, yes=yes, grids=())
    found = preview_rows(job, count)
    if as_json:
        render.out_json(preview_view.preview_json(found))
    else:
        render.out(preview_view.preview_text(found))
        render.say(preview_view.preview_notes(found))
