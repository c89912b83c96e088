"""What launch, train, generate and resume share: from a job file to a plan that was agreed to, and to a run's end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cli import follow, render, report_view, review_view
from cli.exits import ExitCode, Refused, require_modules
from cli.finding import FoundRun

if TYPE_CHECKING:
    from alpaca_jobs.spec import JobSpec, TeacherSpec
    from alpaca_jobs.training.base_look import Look
    from cluster.cloud.aws_bucket import Bucket
    from cluster.launch.estimating import Facts, JobEstimate
    from cluster.plan import LaunchPlan
    from cluster.price.account_limits import AccountLimits
    from cluster.price.experience import PastRun
    from cluster.price.offers import PriceList


def changes_from(
    *,
    infra: Sequence[str] | None = None,
    budget: float | None = None,
    deadline: float | None = None,
    store: str | None = None,
) -> dict[str, Any]:
    """What the options change in a job: dotted key -> value."""
    given = {
        "compute.infra": list(infra) if infra else None,
        "limits.max_usd": budget,
        "limits.deadline_h": deadline,
        "store": store,
    }
    return {key: value for key, value in given.items() if value is not None}


def make_plan(job_file: Path, changes: Mapping[str, Any]) -> LaunchPlan:
    """Read a job, change it as the options say, and decide where it may run.

    Raises:
        SpecError, DataError, PlanError: a job that cannot be, an input that is not there, or a job that nothing fits.
    """
    from alpaca_jobs.job_inputs import check_inputs

    job = load(job_file, changes)
    check_inputs(job)
    return plan_of(job)


def load(job_file: Path, changes: Mapping[str, Any]) -> JobSpec:
    """Read a job and change it as the options say.

    Raises:
        SpecError: a job that cannot be.
    """
    from alpaca_jobs.spec_io import change_job, load_job

    job = load_job(job_file)
    return change_job(job, changes) if changes else job


def check_key(teacher: TeacherSpec) -> None:
    """Refuse to ask a teacher whose key is not in this shell: it would be asked in vain."""
    name = teacher.api_key_env
    if teacher.needs_key and name is not None and not os.environ.get(name):
        raise Refused(
            f"Asking {teacher.model} needs the key in {name}, not set in this shell. Set it: export {name}=..."
        )


def plan_of(job: JobSpec, look: Look | None = None) -> LaunchPlan:
    """Plan a job under a new run id.

    Args:
        look: what was found of its base model.
    """
    from cluster.launch.estimating import size_told
    from cluster.launch.planner import offers_for, plan_launch, side_offers_for
    from cluster.runs.run_ids import new_run_id

    offers, base = offers_for(job), None if look is None else look.base
    return plan_launch(
        job, run_id=new_run_id(job.name), offers=offers, side_offers=side_offers_for(job, offers),
        read=None if base is None else size_told(base), base_bytes=None if base is None else base.fetched_bytes,
    )  # fmt: skip


@dataclass(frozen=True)
class Priced:
    """A plan and what it will cost; `estimate` is None where that cannot be said, and `unknown` says why."""

    plan: LaunchPlan
    estimate: JobEstimate | None
    unknown: str


def look_at_base(job: JobSpec) -> Look:
    """Look at a job's base model before anything is paid for: a few seconds at most.

    Raises:
        ModelError: it is not there, or cannot be trained.
    """
    from alpaca_jobs.training import base_look

    return base_look.look_at_base(job)


def say_unseen(look: Look | None) -> None:
    """Say what could not be looked at of a base model, where no plan is shown that says it."""
    for words in () if look is None else look.words:
        render.say(f"warning: {words}")


def price(job: JobSpec, *, contact: bool, look: Look | None = None) -> Priced:
    """Plan a job by all that is known about it, and estimate it.

    Args:
        look: what was found of its base model.
        contact: whether stores that are not on this machine may be asked about earlier runs, and AWS, where somebody is
            signed in, about regions and quotas.

    Raises:
        PlanError: a job that no offer fits.
    """
    from cluster.errors import PlanError
    from cluster.launch.estimating import estimate_plan, gather_facts
    from cluster.launch.planner import offers_for

    base = None if look is None else look.base
    facts, offers = gather_facts(job, past=past_runs(contact=contact), base=base), offers_for(job)
    try:
        plan, limits = _plan(job, facts, offers, contact=contact)
    except PlanError:
        say_unseen(look)
        raise
    try:
        return Priced(plan, estimate_plan(plan, facts, offers, limits=limits), "")
    except PlanError as exc:
        return Priced(plan, None, str(exc))


def _plan(job: JobSpec, facts: Facts, offers: PriceList, *, contact: bool) -> tuple[LaunchPlan, AccountLimits]:
    """The plan, on what this account may have where AWS can be asked about it; and what it answered."""
    from cluster.launch.asking_account import has_credentials, plan_within_account
    from cluster.launch.estimating import plan_with
    from cluster.price.account_limits import NOT_ASKED

    if not contact or "aws" not in job.compute.infra or not has_credentials():
        return plan_with(job, facts, offers), NOT_ASKED
    return plan_within_account(job, offers, lambda limits: plan_with(job, facts, offers, limits))


def with_bucket(plan: LaunchPlan, *, contact: bool) -> tuple[LaunchPlan, Bucket | None]:
    """The plan with the bucket that `store: auto` stands for on a cloud, and that bucket; any other plan as it is.

    Args:
        contact: whether AWS may be asked; else a name stands there that says what is not known.

    Raises:
        ClusterError: no bucket can be had like this; says how to make one.
    """
    if plan.store_uri != "auto":
        return plan, None
    from dataclasses import replace

    from cluster.cloud.aws_account import AwsAccount
    from cluster.launch import store_auto

    if not contact:
        return store_auto.preview(plan), None
    bucket = store_auto.bucket_for(plan, AwsAccount())
    return replace(plan, store_uri=bucket.uri), bucket


def make_bucket(bucket: Bucket | None) -> None:
    """Make the bucket that a plan was shown with, if it is not there."""
    if bucket is None or bucket.exists:
        return
    from cluster.cloud import aws_bucket
    from cluster.cloud.aws_account import AwsAccount

    aws_bucket.make_bucket(AwsAccount(), bucket)
    render.say(f"Made {bucket.name} in {bucket.region}.")


def past_runs(*, contact: bool = True) -> tuple[PastRun, ...]:
    """Earlier runs in the stores that were used from here, the newest first; a store that cannot be read is said."""
    from checkpoints.errors import CheckpointError
    from checkpoints.store import Store
    from cluster.runs.home import Home

    stores = [uri for uri in Home.default().stores() if contact or uri.startswith("file://")]
    if not stores:
        return ()  # what reading takes is not imported for nothing
    from cluster.price.past_runs import read_past_runs

    found: list[PastRun] = []
    for uri in stores:
        try:
            found += read_past_runs([Store.open(uri)])
        except CheckpointError as exc:
            render.say(f"Nothing is learned from the runs in {uri}: {exc}")
    return tuple(sorted(found, key=lambda one: one.launched_at, reverse=True))


def agree(question: str, *, yes: bool, grids: Sequence[render.Grid]) -> None:
    """Show what is about to happen on stderr and ask.

    Raises:
        Refused: nobody is there to ask, and --yes was not given.
        typer.Exit: the answer was no; 130.
    """
    for grid in grids:
        render.say_grid(grid)
    if yes:
        return
    if not render.can_ask():
        raise Refused("Nobody is here to agree to this (no terminal). Add --yes to go ahead without being asked.")
    if not render.ask(question):
        render.say("Nothing was done.")
        raise typer.Exit(ExitCode.INTERRUPTED)


def check_installed(job: JobSpec, *, until: str | None = None) -> None:
    """Stop before anything starts when this machine lacks what its own nodes would need, as far as the run goes.

    Raises:
        MissingExtra: with the pip line.
    """
    if job.compute.is_local:
        generates = ("openai", "rapidfuzz", "rouge_score") if "generate" in job.stages else ()
        trains = () if until == "generate" else ("torch", "transformers", *job.train.track)
        require_modules("ray", *trains, *generates)


def ask_teacher(job: JobSpec) -> None:
    """Warn where the teacher, asked from here for its models, does not know the job's; only one that is asked for money
    or stands elsewhere has a name that can be wrong."""
    from alpaca_jobs.spec import TeacherSpec

    if isinstance(job.data.teacher, TeacherSpec):
        from cluster.launch.teacher_preflight import teacher_warnings

        for line in teacher_warnings(job, os.environ):
            render.say(f"warning: {line}")


def start(plan: LaunchPlan, estimate: JobEstimate | None = None, look: Look | None = None) -> FoundRun:
    """Start the planned run; Ctrl-C until then leaves nothing behind. The estimate is kept for its receipt.

    Args:
        look: what was found of its base model, so that it is not looked at again.
    """
    from checkpoints.store import Store
    from cluster.launch.launching import start_run
    from cluster.runs.home import Home

    home = Home.default()
    try:
        start_run(plan, home, estimate=None if estimate is None else estimate.to_json(), look=look)
    except KeyboardInterrupt:
        render.say("Interrupted before the run had started; nothing of it is left.")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    return FoundRun(Store.open(plan.store_uri), plan.run_id, home)


def _after_review_stop(found: FoundRun, *, as_json: bool) -> None:
    """Ask whoever is there whether the rows are good; without a terminal the run just waits."""
    from cluster.events import utc_now
    from cluster.launch.launching import resume_run

    render.say_grid(review_view.review_grid(found))
    if not as_json and render.can_ask() and render.ask("Train on these rows?"):
        since = utc_now()
        resume_run(found.root, found.run_id, found.home)
        leave_or_follow(found, detach=False, as_json=as_json, since=since)
    render.say(
        f"{found.run_id} is waiting for your review, and nothing of it is running.\n"
        f"  accept the rows: alpaca-jobs resume {found.run_id}\n"
        f"  throw them away: alpaca-jobs rm {found.run_id}"
    )


def how_to_get_the_rows(run_id: str) -> str:
    """How what a teacher was paid for is had, whatever became of the run."""
    return f"The rows so far: alpaca-jobs export {run_id} --rows FILE (.jsonl, .parquet or .json)"


def _ends_with_rows(found: FoundRun) -> bool:
    """Whether the run was to write rows and nothing else."""
    from cluster.runs.run_view import read_plan

    return read_plan(found.root, found.run_id)[0].until == "generate"


def leave_or_follow(found: FoundRun, *, detach: bool, as_json: bool, since: str = "") -> None:
    """Hand the run over, or follow it to its end and print its report; exits with the run's own code."""
    if detach:
        if as_json:
            render.out_json({"run_id": found.run_id, "store": found.root.uri})
        else:
            render.out(found.run_id)
            render.say(follow.how_to_come_back(found))
        return
    try:
        exit_code, report = follow.follow_to_the_end(found, since=since)
    except typer.Exit:
        if _ends_with_rows(found):
            render.say(how_to_get_the_rows(found.run_id))
        raise
    if report is not None and as_json:
        render.out_json(report)
    elif report is not None:
        for grid in report_view.report_grids(report):
            render.out_grid(grid)
    if report is not None and report["compute_usd"] != 0 and not as_json:
        render.say(f"What it cost, machine by machine: alpaca-jobs receipt {found.run_id}")
    if report is not None and report["outcome"] == "review":
        _after_review_stop(found, as_json=as_json)
    elif exit_code == ExitCode.DONE and not as_json and _ends_with_rows(found):
        render.say(how_to_get_the_rows(found.run_id))
    elif exit_code == ExitCode.DONE and not as_json:
        render.say(f"The model: alpaca-jobs export {found.run_id} --to FOLDER")
    elif exit_code == ExitCode.STOPPED_BY_LIMIT and report is not None and report["rows"] and not as_json:
        render.say(how_to_get_the_rows(found.run_id))
    raise typer.Exit(exit_code)
