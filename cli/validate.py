"""`alpaca-jobs validate`: check a job file and say what it would do; nothing runs, nothing is contacted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, render, words
from cli.exits import Refused

if TYPE_CHECKING:
    from alpaca_jobs.spec import JobSpec


def validate(
    job_file: Annotated[Path | None, typer.Argument(metavar="JOB", help="The job file.", show_default=False)] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Print the job with every default written out, as YAML.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of job files, for editors.")] = False,
    as_json: options.Json = False,
) -> None:
    """Check a job file: unknown keys, values that cannot be, parts that do not fit together.

    Example: alpaca-jobs validate job.yaml
    """
    from alpaca_jobs.spec_io import job_schema, load_job, render_job

    if schema:
        render.out_json(job_schema())
        return
    if job_file is None:
        raise Refused("Which job file? alpaca-jobs validate JOB, or alpaca-jobs validate --schema")
    job = load_job(job_file)
    if full:
        render.out(render_job(job).rstrip("\n"))
    elif as_json:
        render.out_json({"ok": True, "job": str(job_file), "name": job.name, "stages": list(job.stages)})
    else:
        render.out_grid(render.pairs(f"{job_file}: this job can be run", job_rows(job)))


def job_rows(job: JobSpec) -> list[tuple[str, str]]:
    """What a job does, a line for each stage and one for the machines."""
    data, train, compute = job.data, job.train, job.compute
    rows = [("job", f"{job.name}: {' -> '.join(job.stages)}")]
    if data.from_ is not None:
        rows.append(("data", f"rows from {data.from_}"))
    else:
        teacher = data.teacher if data.teacher is None or isinstance(data.teacher, str) else data.teacher.model
        rows.append(("data", f"{words.plural(data.num_rows, 'row')} by {teacher}, seed tasks {data.seed_tasks}"))
    length = f"{train.epochs:g} epochs" if train.max_steps is None else words.plural(train.max_steps, "step")
    rows.append(
        (
            "train",
            f"{train.model}, recipe {train.recipe}, {length}, global batch {train.global_batch_size}, "
            f"learning rate {train.learning_rate:g}, at most {train.max_length} tokens a row",
        )
    )
    gpus = "CPU" if compute.gpus is None else f"GPUs {compute.gpus}"
    rows.append(("compute", f"{gpus}, {words.plural(compute.num_nodes, 'node')}, on {', '.join(compute.infra)}"))
    rows.append(("store", job.store))
    rows.append(("limits", _limits(job)))
    return rows


def _limits(job: JobSpec) -> str:
    limits: dict[str, Any] = {
        "money": None if job.limits.max_usd is None else words.money(job.limits.max_usd),
        "teacher": None if job.limits.teacher_max_usd is None else words.money(job.limits.teacher_max_usd),
        "time": None if job.limits.deadline_h is None else f"{job.limits.deadline_h:g} h",
    }
    return ", ".join(f"{name} {value}" for name, value in limits.items() if value is not None) or "none"
