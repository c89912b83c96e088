"""What a job does, as a list for people. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli import words

if TYPE_CHECKING:
    from alpaca_jobs.spec import JobSpec


def costs_money(job: JobSpec) -> bool:
    """Whether there will be a bill: for machines of a cloud, or for a teacher that is paid."""
    return not job.compute.is_local or (job.data.teacher is not None and not isinstance(job.data.teacher, str))


def job_rows(job: JobSpec) -> list[tuple[str, str]]:
    """What a job does, a line for each stage and one for the machines."""
    data, train, compute = job.data, job.train, job.compute
    rows = [("job", f"{job.name}: {' -> '.join(job.stages)}")]
    if data.from_ is not None:
        rows.append(("data", f"rows from {data.from_}"))
    else:
        teacher = data.teacher if data.teacher is None or isinstance(data.teacher, str) else data.teacher.model
        rows.append(("data", f"{words.plural(data.num_rows, 'row')} by {teacher}, seed tasks {data.seed_tasks}"))
    epochs = f"{train.epochs:g} epoch{'' if train.epochs == 1 else 's'}"
    length = epochs if train.max_steps is None else words.plural(train.max_steps, "step")
    rows.append(
        (
            "train",
            f"{train.model}, recipe {train.recipe}, {length}, global batch {train.global_batch_size}, "
            f"learning rate {train.learning_rate:g}, at most {train.max_length} tokens a row",
        )
    )
    if train.eval is not None:
        source = train.eval.file or f"{train.eval.fraction:g} of the rows"
        often = "once an epoch" if train.eval.every_steps is None else f"every {train.eval.every_steps} steps"
        stop = "" if train.eval.stop_after is None else f", stops after {train.eval.stop_after} without a lower loss"
        state = "best" if job.exports_best else "last"
        rows.append(("evaluation", f"{source} held out, {often}{stop}; the {state} state is exported"))
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
