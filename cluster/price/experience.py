"""What earlier runs have shown, from their reports: speeds, preemptions, teachers. It replaces the priors of estimates.

Pure; cluster/price/past_runs.py reads the reports.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alpaca_jobs.known_models import SizedModel, size_of
from alpaca_jobs.spec import DataSpec, JobSpec, TeacherSpec
from cluster.hazard import spot_hazard
from cluster.node.pace import Pace, TrainingPace
from cluster.plan import SECONDS_PER_HOUR, LaunchPlan, Pricing
from cluster.price.assumptions import Assumptions, MeasuredSpeed, MeasuredSteps
from cluster.price.hardware import peak_flops
from cluster.price.self_instruct_cost import rows_per_instruction_seen
from cluster.price.teacher_cost import TeacherAssumptions
from cluster.price.throughput import flops_per_parameter, measured_mfu
from cluster.recovery import StopReason

_SPREAD_MEASURED = 0.1  # of ln(speed), at least: other machines of the same kind, other rows
_TAKEN_AWAY = (StopReason.PREEMPTED.value, StopReason.LOST.value)


@dataclass(frozen=True)
class PastRun:
    """A run that has a report."""

    run_id: str
    launched_at: str
    plan: LaunchPlan
    report: Mapping[str, Any]

    @property
    def pace(self) -> Pace:
        """How fast it worked, as far as its report says."""
        return Pace.from_json(self.report.get("pace"))


def learn(job: JobSpec, past: Sequence[PastRun], *, read: SizedModel | None = None) -> Assumptions:
    """The priors, with every one replaced that earlier runs have measured for such a job.

    Args:
        read: the size of its model as its files tell it; None for what is known of it by its name.
    """
    preemptions, node_hours = _spot_history(past)
    taught = _teacher(job, past)
    assumed = Assumptions(
        measured=_speeds(job, past, read or size_of(job.train.model)),
        steps=_steps(job, past) if job.compute.gpus is None else (),
        hazard=spot_hazard(own_preemptions=preemptions, own_node_hours=node_hours),
    )
    return replace(assumed, teacher=replace(assumed.teacher, **taught)) if taught else assumed


def _speeds(job: JobSpec, past: Sequence[PastRun], model: SizedModel | None) -> tuple[MeasuredSpeed, ...]:
    """MFU by GPU, of runs that train the same model in the same way."""
    measured: dict[str, list[tuple[str, float]]] = {}
    for run in past:
        pace, place = run.pace.training, run.plan.candidates[0]
        if model is None or pace is None or place.gpus is None or not _trains_alike(job, run.plan.job):
            continue
        gpu = place.gpus.partition(":")[0]
        peak = peak_flops(gpu, infra=place.infra, instance_type=place.instance_type)
        if peak is not None and pace.seconds > 0:
            mfu = measured_mfu(
                num_parameters=model.active_parameters, tokens=pace.tokens, seconds=pace.seconds,
                num_gpus=pace.ranks, peak_flops=peak, flops_per_parameter=flops_per_parameter(job.train),
            )  # fmt: skip
            measured.setdefault(gpu, []).append((run.run_id, mfu))
    return tuple(
        MeasuredSpeed(gpu, *_mean_and_spread([mfu for _, mfu in runs]), _measured_by([name for name, _ in runs]))
        for gpu, runs in measured.items()
    )


def _steps(job: JobSpec, past: Sequence[PastRun]) -> tuple[MeasuredSteps, ...]:
    """Steps and the rest of runs without GPUs that make the same steps with as many ranks, by machine."""
    alike: dict[str, list[tuple[PastRun, TrainingPace]]] = {}
    for run in past:
        pace, place, other = run.pace.training, run.plan.candidates[0], run.plan.job
        if (
            pace is not None
            and place.gpus is None
            and _trains_alike(job, other)
            and other.train.global_batch_size == job.train.global_batch_size
            and other.compute.threads_per_worker == job.compute.threads_per_worker
            and pace.ranks == (job.compute.workers or 1) * job.compute.num_nodes
        ):
            alike.setdefault(place.instance_type, []).append((run, pace))
    return tuple(
        MeasuredSteps(
            instance_type,
            *_mean_and_spread([pace.seconds / pace.steps for _, pace in runs]),
            statistics.median(_rest_s(run, pace) for run, pace in runs),
            _measured_by([run.run_id for run, _ in runs]),
        )
        for instance_type, runs in alike.items()
    )


def _rest_s(run: PastRun, pace: TrainingPace) -> float:
    """Seconds of an attempt that were neither steps nor answers nor a wait for them, on average."""
    answered_s = 0.0 if run.pace.generation is None else run.pace.generation.seconds
    goodput = run.report["goodput"]
    rest_s = goodput["wall_s"] - goodput.get("teacher_wait_s", 0.0) - pace.seconds - answered_s
    return max(float(rest_s), 0.0) / max(len(run.report["attempts"]), 1)


def _spot_history(past: Sequence[PastRun]) -> tuple[int, float]:
    """(machines taken away, machine hours) of spot machines on clouds."""
    preemptions, hours = 0, 0.0
    for run in past:
        if run.plan.is_local:
            continue  # pretend regions are emptied by drills, not by a market
        for attempt in run.report["attempts"]:
            if attempt["pricing"] == Pricing.SPOT:
                hours += run.plan.num_nodes * attempt["seconds"] / SECONDS_PER_HOUR
                preemptions += attempt["stop_reason"] in _TAKEN_AWAY
    return preemptions, hours


def _teacher(job: JobSpec, past: Sequence[PastRun]) -> dict[str, Any]:
    """What the newest run with the same teacher, asked in the same way, says about it; empty without one."""
    for run in past:
        pace, other = run.pace.generation, run.plan.job
        if pace is None or job.data.from_ is not None or not _asks_alike(job, other):
            continue
        rows, usd = run.report.get("rows"), run.report.get("teacher_usd")
        return {
            **_yield(job.data, pace.rows / pace.requests),
            "rows_per_second": pace.rows / pace.seconds,
            "usd_per_row": usd / rows if rows and usd is not None else None,
            "spread": _SPREAD_MEASURED,
            "source": _measured_by([run.run_id]),
        }
    return {}


def _yield(data: DataSpec, rows_per_request: float) -> dict[str, float]:
    """What the rows of a request, all kinds of requests counted, say about a recipe's own number."""
    if data.recipe == "self-instruct":
        rate = TeacherAssumptions().accept_rate
        return {
            "rows_per_instruction": rows_per_instruction_seen(data, rows_per_request=rows_per_request, accept_rate=rate)
        }
    return {"accept_rate": rows_per_request / (data.max_tasks_per_request - data.num_prompt_seeds)}


_DECIDES_THE_SPEED = (
    "model", "method", "lora", "recipe", "packing", "max_length", "dtype", "gradient_checkpointing", "exactness",
    "engine", "sharding", "cpu_offload", "attention", "cross_entropy", "compile", "tf32",
)  # fmt: skip


def _trains_alike(job: JobSpec, other: JobSpec) -> bool:
    """Whether the speed of one says something about the other; what changes only the rows' number does not matter."""
    return all(getattr(job.train, key) == getattr(other.train, key) for key in _DECIDES_THE_SPEED)


def _asks_alike(job: JobSpec, other: JobSpec) -> bool:
    def asked(one: JobSpec) -> tuple[Any, ...]:
        data = one.data
        teacher: Any = data.teacher
        if isinstance(teacher, TeacherSpec):
            served = (teacher.serve, teacher.server.gpus, teacher.server.args)
            teacher = (teacher.model, teacher.base_url, teacher.api, teacher.answer_format, teacher.batch_api, served)
        return (
            teacher, data.recipe, data.max_instances, data.plan_ahead,
            data.seed_tasks, data.num_prompt_seeds, data.max_tasks_per_request, data.similarity_threshold,
            data.num_actors, data.concurrency, one.compute.is_local,
        )  # fmt: skip

    return other.data.from_ is None and asked(job) == asked(other)


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Geometric mean, and the standard deviation of the logarithms, which one run alone cannot say."""
    logs = [math.log(value) for value in values]
    spread = statistics.stdev(logs) if len(logs) > 1 else 0.0
    return math.exp(statistics.fmean(logs)), max(spread, _SPREAD_MEASURED)


def _measured_by(run_ids: Sequence[str]) -> str:
    more = f" and {len(run_ids) - 2} more" if len(run_ids) > 2 else ""
    return f"measured: {', '.join(run_ids[:2])}{more}"
