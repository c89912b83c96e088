"""`alpaca-jobs resume`: go on with a run that stopped, from its newest commit, elsewhere if asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli import options, render, review_view, starting, words

if TYPE_CHECKING:
    from alpaca_jobs.spec import JobSpec
    from cluster.plan import LaunchPlan


def resume(
    run: options.RunName = None,
    exclude_region: Annotated[
        list[str] | None,
        typer.Option("--exclude-region", metavar="REGION", help="Where it may not go this time. Repeatable."),
    ] = None,
    budget: options.Budget = None,
    teacher_budget: Annotated[
        float | None,
        typer.Option(
            "--teacher-budget",
            metavar="USD",
            callback=options.positive,
            help="The teacher's own limit (limits.teacher_max_usd).",
        ),
    ] = None,
    deadline: options.Deadline = None,
    gpus: Annotated[
        str | None, typer.Option("--gpus", metavar="NAME:COUNT", help="Other GPUs per machine (compute.gpus).")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option("--nodes", min=1, metavar="N", help="Another number of machines (compute.num_nodes).")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, metavar="N", help="Training ranks per machine without GPUs (compute.workers)."
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start it, print its id, and leave.")] = False,
    store: options.Store = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Go on with a run that was given up, cancelled or lost.

    Example: alpaca-jobs resume demo-x3fkd --exclude-region a

    Only the stages that are left are run. --budget and --teacher-budget count what was spent before, --deadline counts
    from now; what is left out is the job's own. With other machines (--gpus, --nodes, --workers) every step trains on
    the same rows as before, and their price is shown first; later starts of the run use them, too. Where the run waits
    for your review of its rows (data.review), this accepts them; to turn them down, `alpaca-jobs rm`.
    """
    from cli.finding import find_run
    from cluster.events import utc_now
    from cluster.launch.alive import refuse_supervised
    from cluster.launch.launching import resume_run
    from cluster.runs.run_view import RunState, read_plan, view_run

    found = find_run(run, store)
    refuse_supervised(found.run_id, found.home, what="resume it")
    plan, _ = read_plan(found.root, found.run_id)
    view = view_run(found.root, found.run_id, is_alive=found.is_alive_here)
    starting.check_installed(plan.job, until=plan.until)
    other = _on_other_machines(plan.job, gpus=gpus, nodes=nodes, workers=workers)
    rows = [
        ("stopped" if view.state.is_over else "state", view.words or view.state.value),
        ("goes on from", str(view.newest_commit or "the start: nothing is committed yet")),
        ("price", words.rate((other or plan).candidates[0].job_price_per_hour_usd)),
    ]
    if other is not None:
        before = f"{_machines(plan)}; {words.rate(plan.candidates[0].job_price_per_hour_usd)}"
        rows[2:2] = [("machines", _machines(other)), ("before", before)]
    if view.state is RunState.REVIEW:
        card = str(review_view.card_file(found))
        rows[1:1] = [("data card", card), ("accepts", f"its {words.number(view.rows)} rows")]
    if view.state is not RunState.DONE:  # a run that is done is refused below, without a question
        starting.agree(f"Resume {found.run_id}?", yes=yes, grids=[render.pairs(f"Resume {found.run_id}", rows)])
    elif plan.until == "generate":
        render.say(starting.how_to_get_the_rows(found.run_id))
    since = utc_now()
    resume_run(
        found.root,
        found.run_id,
        found.home,
        exclude_regions=exclude_region or (),
        max_usd=budget,
        teacher_max_usd=teacher_budget,
        deadline_h=deadline,
        machines=other,
    )
    starting.leave_or_follow(found, detach=detach, as_json=as_json, since=since)


def _machines(plan: LaunchPlan) -> str:
    return f"{plan.candidates[0]}; {words.plural(plan.world_size, 'rank')} for training"


def _on_other_machines(
    job: JobSpec, *, gpus: str | None, nodes: int | None, workers: int | None
) -> LaunchPlan | None:  # fmt: skip
    """A plan of the job for the machines that were asked for; None if none were.

    Raises:
        SpecError, PlanError: a job that cannot be like this, or that nothing fits.
    """
    asked = {"compute.gpus": gpus, "compute.num_nodes": nodes, "compute.workers": workers}
    changes = {key: value for key, value in asked.items() if value is not None}
    if not changes:
        return None
    from alpaca_jobs.spec_io import change_job

    changed = change_job(job, changes)
    look = starting.look_at_base(changed)
    starting.say_unseen(look)
    return starting.plan_of(changed, look)
