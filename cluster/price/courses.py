"""From a place and the work to be done there to a Course that can be played (cluster/price/simulation.py). Pure."""

from __future__ import annotations

from dataclasses import replace

from alpaca_jobs.spec import DataSpec, JobSpec
from cluster.course import Course
from cluster.errors import PlanError
from cluster.plan import Placement, Pricing
from cluster.price.assumptions import Assumptions, MeasuredSteps
from cluster.price.hardware import peak_flops
from cluster.price.teacher_cost import TeacherEstimate
from cluster.price.throughput import Throughput
from cluster.price.workload import Workload

WEIGHTS_BYTES_PER_PARAMETER = 2  # base weights as they are published
STATE_BYTES_PER_PARAMETER = (
    12  # a checkpoint, of what is trained: float32 parameter and AdamW's two moments, 81 GB for a 7B
)
EXPORT_BYTES_PER_PARAMETER = 4  # the finished model, float32


def base_bytes(work: Workload) -> float:
    """The base model, as each machine fetches it: what its files say, else two bytes a parameter."""
    return float(WEIGHTS_BYTES_PER_PARAMETER * work.num_parameters if work.base_bytes is None else work.base_bytes)


def num_gpus(place: Placement) -> int:
    """GPUs of all machines of a place together; 0 without."""
    return place.num_nodes * int(place.gpus.partition(":")[2] or 1) if place.gpus else 0


def training_course(place: Placement, job: JobSpec, work: Workload, assumed: Assumptions) -> Course | None:
    """What training in one place is made of; None without GPUs before an earlier run was timed on such a machine.

    Raises:
        PlanError: a GPU whose peak is not known.
    """
    if place.gpus is None:
        return _course_without_gpus(place, job, work, assumed)
    if work.given_s is not None:
        return _course_with_gpus(place, job, work, assumed, work_s=work.given_s, spread=0.0)
    gpu = place.gpus.partition(":")[0]
    peak = peak_flops(gpu, infra=place.infra, instance_type=place.instance_type)
    if peak is None:
        raise PlanError(
            f"The bfloat16 peak of {gpu} ({place.instance_type} in {place.name}) is not known, so training there "
            "cannot be priced. Take another GPU, or measure with a short run: train.max_steps: 20."
        )
    speed = assumed.speed_on(gpu)
    throughput = Throughput(num_gpus(place), peak, speed.mfu, flops_per_parameter=work.flops_per_parameter)
    work_s = throughput.seconds(num_parameters=work.active_parameters, tokens=work.tokens)
    return _course_with_gpus(place, job, work, assumed, work_s=work_s, spread=speed.spread)


def _course_with_gpus(
    place: Placement, job: JobSpec, work: Workload, assumed: Assumptions, *, work_s: float, spread: float
) -> Course:
    byte_s = work.num_parameters / place.num_nodes / assumed.transfer_bytes_per_s  # one byte of every parameter
    trained_s = work.trained_parameters / place.num_nodes / assumed.transfer_bytes_per_s  # and of what is trained
    base_s = base_bytes(work) / assumed.transfer_bytes_per_s  # every machine fetches all of it
    interval = job.checkpoints.interval_steps
    return Course(
        work_s=work_s,
        work_spread=spread,
        start_s=assumed.boot_s + base_s,
        restart_s=assumed.boot_s + STATE_BYTES_PER_PARAMETER * trained_s + (0.0 if work.trained is None else base_s),
        away_s=assumed.away_s,
        save_interval_s=interval * work_s / work.steps
        if isinstance(interval, int) and work.steps
        else assumed.save_interval_s,
        losses_per_hour=_losses_per_hour(place, assumed),
        finish_s=EXPORT_BYTES_PER_PARAMETER
        * (byte_s if job.export.merge else trained_s)
        * place.num_nodes,  # by one node
    )


def generation_course(
    place: Placement, data: DataSpec, teacher: TeacherEstimate, assumed: Assumptions, *, boots: bool
) -> Course:
    """What having the rows written in one place is made of: nothing but waiting for the teacher, part by part.

    Args:
        boots: whether the machine is one of its own; else the training's start is the whole run's.
    """
    is_local = place.infra == "local"
    return Course(
        work_s=teacher.seconds,
        work_spread=assumed.teacher.spread,
        start_s=assumed.boot_s if boots else 0.0,
        restart_s=0.0 if is_local else assumed.boot_s,
        away_s=0.0 if is_local else assumed.away_s,
        save_interval_s=max(teacher.seconds * data.part_requests / teacher.requests, 1e-3),
        losses_per_hour=_losses_per_hour(place, assumed),
    )


def _course_without_gpus(place: Placement, job: JobSpec, work: Workload, assumed: Assumptions) -> Course | None:
    measured = assumed.steps_on(place.instance_type)
    if work.given_s is not None:
        measured = MeasuredSteps(place.instance_type, work.given_s, 0.0, 0.0, work.source)
        work = replace(work, steps=1)
    if measured is None:
        return None
    is_local, interval = place.infra == "local", job.checkpoints.interval_steps
    start_s = measured.rest_s if is_local else assumed.boot_s + measured.rest_s
    return Course(
        work_s=work.steps * measured.step_s,
        work_spread=measured.spread,
        start_s=start_s,
        restart_s=start_s,
        away_s=0.0 if is_local else assumed.away_s,
        save_interval_s=interval * measured.step_s
        if isinstance(interval, int) and work.given_s is None
        else assumed.save_interval_s,
        losses_per_hour=_losses_per_hour(place, assumed),
    )


def _losses_per_hour(place: Placement, assumed: Assumptions) -> float:
    return assumed.hazard.per_node_hour * place.num_nodes if place.pricing is Pricing.SPOT else 0.0
