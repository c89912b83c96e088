"""From a place and the work to be done there to a Course that can be played (cluster/price/simulation.py). Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from alpaca_jobs.spec import DataSpec, JobSpec
from checkpoints.interval import choose_interval
from cluster.course import Course
from cluster.egress import away_s_per_byte
from cluster.errors import PlanError
from cluster.plan import Placement, Pricing
from cluster.price.assumptions import Assumptions, MeasuredSteps
from cluster.price.exchange import Exchange, exchange_of
from cluster.price.hardware import link_bytes_per_s, peak_flops
from cluster.price.teacher_cost import TeacherEstimate
from cluster.price.throughput import Throughput
from cluster.price.workload import Workload

WEIGHTS_BYTES_PER_PARAMETER = 2  # base weights as they are published
STATE_BYTES_PER_PARAMETER = (
    12  # a checkpoint, of what is trained: float32 parameter and AdamW's two moments, 81 GB for a 7B
)
EXPORT_BYTES_PER_PARAMETER = 4  # the finished model, float32


@dataclass(frozen=True)
class Saving:
    """What saving does to a training on GPUs.

    Attributes:
        each_s: until a save is in the store. Training goes on meanwhile, but the next save has to wait for it.
        interval_s: between two saves.
        steps_s: of all steps, were there no saves; all_s: with the waits for these.
    """

    each_s: float
    interval_s: float
    steps_s: float
    all_s: float


def base_bytes(work: Workload) -> float:
    """The base model, as each machine fetches it: what its files say, else two bytes a parameter."""
    return float(WEIGHTS_BYTES_PER_PARAMETER * work.num_parameters if work.base_bytes is None else work.base_bytes)


def gpu_name(place: Placement) -> str:
    """Of a place: its GPUs' catalog name; empty without any."""
    return (place.gpus or "").partition(":")[0]


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
    saving = saving_of(place, job, work, assumed)
    base_s = base_bytes(work) / assumed.transfer_bytes_per_s  # every machine fetches all of it
    exported = work.num_parameters if job.export.merge else work.trained_parameters
    is_given = work.given_s is not None
    return Course(
        work_s=saving.all_s,
        work_spread=0.0 if is_given else assumed.speed_on(gpu_name(place)).spread,
        start_s=assumed.boot_s + base_s,
        restart_s=assumed.boot_s + saving.each_s + (0.0 if work.trained is None else base_s),
        away_s=assumed.away_s,
        save_interval_s=saving.interval_s,
        losses_per_hour=_losses_per_hour(place, assumed),
        away_interval_s=_away_interval_s(place, job, work, assumed, saving),
        finish_s=(0.0 if is_given else saving.each_s)  # the last step's, which all machines save
        + EXPORT_BYTES_PER_PARAMETER * exported / assumed.transfer_bytes_per_s,  # by one node
    )


def _away_interval_s(
    place: Placement, job: JobSpec, work: Workload, assumed: Assumptions, saving: Saving
) -> float | None:
    """Work between two saves that another region bills, as alpaca_jobs/training/saving.py chooses it there."""
    if job.checkpoints.interval_steps != "auto":
        return None
    byte_s = away_s_per_byte(place, usd_per_gb=assumed.egress_usd_per_gb)
    losses = _losses_per_hour(place, assumed)
    if not byte_s or losses <= 0:
        return None
    paid_s = STATE_BYTES_PER_PARAMETER * work.trained_parameters * byte_s
    return choose_interval(
        stall_s=0.0, save_s=saving.each_s, mean_time_between_losses_s=3600 / losses, paid_s=paid_s,
        least_s=saving.interval_s, most_s=saving.interval_s,
    ).seconds  # fmt: skip


def saving_of(place: Placement, job: JobSpec, work: Workload, assumed: Assumptions) -> Saving:
    """How often training on GPUs is saved, and how long it waits for that: where a fixed interval is shorter than a
    save takes, and none is passed over (checkpoints.when_busy), the interval takes as long as the save.

    Raises:
        PlanError: a GPU whose peak is not known.
    """
    steps_s = _steps_s(place, job, work, assumed)
    each_s = STATE_BYTES_PER_PARAMETER * work.trained_parameters / place.num_nodes / assumed.transfer_bytes_per_s
    interval = job.checkpoints.interval_steps
    if not isinstance(interval, int) or not work.steps:
        return Saving(each_s, max(assumed.save_interval_s, each_s), steps_s, steps_s)
    saves_s = work.steps // interval * each_s if job.checkpoints.when_busy == "wait" else 0.0
    return Saving(each_s, max(interval * steps_s / work.steps, each_s), steps_s, max(steps_s, saves_s))


def _steps_s(place: Placement, job: JobSpec, work: Workload, assumed: Assumptions) -> float:
    """Seconds of all training steps, without a save; of a command, what the job says."""
    if work.given_s is not None:
        return work.given_s
    computed_s = computing_s(place, work, assumed)
    if any(one.gpu == gpu_name(place) for one in assumed.measured):
        return computed_s  # a speed that was measured has all waits in it
    return max(computed_s, exchange_in(place, job, work).seconds)


def exchange_in(place: Placement, job: JobSpec, work: Workload) -> Exchange:
    """What the GPUs of a place, which are known ones, send to each other."""
    gpu = gpu_name(place)
    link = link_bytes_per_s(gpu, infra=place.infra, instance_type=place.instance_type)
    return exchange_of(job.train, work, gpu=gpu, link_bytes_per_s=link, ranks=num_gpus(place))


def computing_s(place: Placement, work: Workload, assumed: Assumptions) -> float:
    """Seconds of all training steps by their FLOPs.

    Raises:
        PlanError: a GPU whose peak is not known.
    """
    gpu = gpu_name(place)
    peak = peak_flops(gpu, infra=place.infra, instance_type=place.instance_type)
    if peak is None:
        raise PlanError(
            f"The bfloat16 peak of {gpu} ({place.instance_type} in {place.name}) is not known, so training there "
            "cannot be priced. Take another GPU, or measure with a short run: train.max_steps: 20."
        )
    mfu = assumed.speed_on(gpu).mfu
    throughput = Throughput(num_gpus(place), peak, mfu, flops_per_parameter=work.flops_per_parameter)
    return throughput.seconds(num_parameters=work.active_parameters, tokens=work.tokens)


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
