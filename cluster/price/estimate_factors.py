"""The factors of an estimate, one by one: the number, how it comes about, and its source. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from cluster.course import Course, expected
from cluster.plan import SECONDS_PER_HOUR, LaunchPlan
from cluster.price.assumptions import PRIOR, Assumptions
from cluster.price.courses import base_bytes, computing_s, exchange_in, gpu_name, num_gpus, saving_of, training_course
from cluster.price.estimate import kept_gb, state_gb
from cluster.price.hardware import peak_flops
from cluster.price.served_cost import COMPARED_API, SERVED_SOURCE, START_S, at_an_api_usd
from cluster.price.side_machines import SideMachines
from cluster.price.teacher_cost import BATCH_SOURCE, SIZES_SOURCE, TeacherEstimate
from cluster.price.workload import Workload

_OURS = f"{PRIOR}: ours, not measured yet"
WAITING = "waiting for saves"
"""A factor that is there only where a fixed interval is shorter than a save takes."""
GPUS_WAIT = "waiting for other GPUs"
"""A factor that is there only where what GPUs send to each other takes longer than what they compute."""


@dataclass(frozen=True)
class Factor:
    """One number of an estimate.

    Attributes:
        name: for people and programs.
        value, unit: the number itself.
        words: how it comes about.
        source: where it is from; starts with `prior` where nothing was measured.
    """

    name: str
    value: float
    unit: str
    words: str
    source: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def factors(
    plan: LaunchPlan,
    work: Workload,
    assumed: Assumptions,
    *,
    teacher: TeacherEstimate | None = None,
    side: SideMachines | None = None,
) -> tuple[Factor, ...]:
    """Everything that went into the estimate of a plan's first place, in the order in which it is spent."""
    first = plan.candidates[0]
    course = training_course(first, plan.job, work, assumed)
    found = []
    if teacher is not None:
        found += list(_of_teacher(teacher, assumed))
    if work.given_s is not None:
        words = "what the job says of its own command"
        found.append(Factor("training time", work.given_s / SECONDS_PER_HOUR, "h", words, work.source))
    else:
        found += list(_of_work(plan, work))
    if course is not None and work.given_s is None:
        found += list(_of_speed(plan, work, assumed, course))
    if first.infra != "local" and course is not None:
        found += list(_of_losses(assumed, course, is_spot=course.losses_per_hour > 0))
        found += list(_of_store(plan, work, assumed, course))
        found += list(_of_side(side or SideMachines()))
    return tuple(found)


def _of_teacher(teacher: TeacherEstimate, assumed: Assumptions) -> Iterator[Factor]:
    source = assumed.teacher.source
    words = f"for {teacher.rows:,} rows"
    for one in teacher.stages:
        size = f"{one.prompt_tokens:,.0f} prompt + {one.answer_tokens:,.0f} answer tokens each"
        if len(teacher.stages) > 1:
            yield Factor(f"  {one.name}", one.requests, "requests", f"{one.words}; {size}", f"{source}; {SIZES_SOURCE}")
        else:
            words += f": {one.words}; {size}"
    yield Factor("teacher requests", teacher.requests, "requests", words, source)
    tokens = teacher.prompt_tokens + teacher.completion_tokens
    words = f"{teacher.prompt_tokens / 1e6:.2f} M prompt + {teacher.completion_tokens / 1e6:.2f} M completion tokens"
    yield Factor("teacher tokens", tokens, "tokens", words, source)
    if teacher.rounds is not None:
        each_h = assumed.teacher.batch_round_s / SECONDS_PER_HOUR
        words = f"{teacher.rounds:,} rounds of batches, {each_h:g} h each at most"
        if len(teacher.stages) > 1:
            words += "; a larger data.plan_ahead makes them fewer"
        yield Factor("teacher time", teacher.seconds / SECONDS_PER_HOUR, "h", words, BATCH_SOURCE)
        return
    if teacher.served is not None:
        yield Factor("teacher speed", teacher.served.tokens_per_second, "tokens/s", teacher.served.words, SERVED_SOURCE)
        words = f"answer tokens / speed, and {START_S / 60:.0f} min to load the model; its machine is paid for"
        yield Factor("teacher time", teacher.seconds / SECONDS_PER_HOUR, "h", words, SERVED_SOURCE)
        if (other := at_an_api_usd(teacher.prompt_tokens, teacher.completion_tokens)) is not None:
            words = f"the same tokens from {COMPARED_API}, to compare; not part of the cost"
            yield Factor("instead, at an API", other[0], "USD", words, other[1])
        return
    yield Factor("teacher time", teacher.seconds / SECONDS_PER_HOUR, "h", "all requests in flight", source)


def _of_work(plan: LaunchPlan, work: Workload) -> Iterator[Factor]:
    epochs = f"{plan.job.train.epochs:g} epochs" if plan.job.train.max_steps is None else "max_steps"
    words = f"{work.steps:,} steps, {epochs}, padding excluded"
    yield Factor("training tokens", work.tokens, "tokens", words, work.source)
    flops = work.flops_per_parameter * work.active_parameters * work.tokens
    size = f"{work.active_parameters / 1e9:.3g} B parameters"
    if work.active is not None:
        size += f" that a token goes through (of {work.num_parameters / 1e9:.3g} B)"
    words = f"{work.flops_per_parameter:g} x {size} x {work.tokens / 1e6:.3g} M tokens"
    if work.trained is not None:
        words += "; LoRA, so no gradients of frozen weights"
    guessed = f"; {work.guess}" if work.guess else ""
    yield Factor("training FLOPs", flops, "FLOPs", words, f"PaLM, arXiv:2204.02311, appendix B{guessed}")


def _of_speed(plan: LaunchPlan, work: Workload, assumed: Assumptions, course: Course) -> Iterator[Factor]:
    place = plan.candidates[0]
    measured = assumed.steps_on(place.instance_type)
    if place.gpus is None:
        assert measured is not None
        words, source = f"{work.steps:,} steps x {measured.step_s:.3g} s", measured.source
        yield Factor("training time", course.work_s / SECONDS_PER_HOUR, "h", words, source)
        words = "start, saves, what lies between the stages, export"
        yield Factor("the rest", course.start_s / 60, "min", words, source)
        return
    gpu = gpu_name(place)
    peak = peak_flops(gpu, infra=place.infra, instance_type=place.instance_type) or 0.0
    speed = assumed.speed_on(gpu)
    yield Factor("peak of a GPU", peak, "FLOPs/s", f"{gpu}, bfloat16, dense", "NVIDIA's data sheets")
    yield Factor("MFU", speed.mfu, "", f"{speed.mfu:.0%}, give or take {speed.spread:.0%}", speed.source)
    words, computed_s = f"FLOPs / ({num_gpus(place)} GPUs x peak x MFU)", computing_s(place, work, assumed)
    yield Factor("training time", computed_s / SECONDS_PER_HOUR, "h", words, "the three above")
    saving, sent = saving_of(place, plan.job, work, assumed), exchange_in(place, plan.job, work)
    if saving.steps_s > computed_s:
        words = (
            f"in a step each GPU receives {sent.step_bytes / 1e9:.3g} GB from the others, in {sent.micro_batches} "
            f"micro batches, over a link of {sent.link_bytes_per_s / 1e9:.0f} GB/s at most, which takes longer than it "
            f"computes; less with {sent.ways}"
        )
        yield Factor(GPUS_WAIT, (sent.seconds - computed_s) / SECONDS_PER_HOUR, "h", words, "NVIDIA's data sheets")
    every = plan.job.checkpoints.interval_steps
    if isinstance(every, int) and saving.all_s > saving.steps_s:
        words = (
            f"checkpoints.interval_steps is {every}, {every * saving.steps_s / work.steps:.0f} s of training, but a "
            f"save of {state_gb(work):.3g} GB takes {saving.each_s:.0f} s, and the next one waits for it; auto saves "
            "as often as it can without a wait"
        )
        yield Factor(WAITING, (saving.all_s - saving.steps_s) / SECONDS_PER_HOUR, "h", words, _OURS)
    fetched = f"{base_bytes(work) / 1e9:.3g} GB{'' if work.base_bytes is None else ', as its files say'}"
    words = f"boot and install {assumed.boot_s / 60:.0f} min, then the base model ({fetched})"
    yield Factor("set-up", course.start_s / 60, "min", words, _OURS)
    words = "the last save, then the model to the store, by one node"
    yield Factor("export", course.finish_s / 60, "min", words, _OURS)


def _of_losses(assumed: Assumptions, course: Course, *, is_spot: bool) -> Iterator[Factor]:
    if not is_spot:
        yield Factor("preemptions", 0.0, "per hour", "on-demand machines are not taken away", "the cloud's terms")
        return
    words = f"of all machines of the job together; {expected(course).losses:.2f} expected while it trains"
    yield Factor("preemptions", course.losses_per_hour, "per hour", words, assumed.hazard.source)
    words = f"saved every {course.save_interval_s / 60:.1f} min, half of that is lost on average"
    yield Factor("work lost with each", course.save_interval_s / 2 / 60, "min", words, _OURS)
    words = f"{course.away_s / 60:.0f} min to notice and find a machine (not billed), then boot, install, state"
    yield Factor("back after each", (course.away_s + course.restart_s) / 60, "min", words, _OURS)


def _of_store(plan: LaunchPlan, work: Workload, assumed: Assumptions, course: Course) -> Iterator[Factor]:
    kept = kept_gb(plan, work)
    monthly_usd = kept * assumed.storage_usd_per_gb_month
    words = (
        f"{plan.job.checkpoints.keep} x {state_gb(work):.3g} GB; they stay after the run: {monthly_usd:.2f} USD a month"
    )
    source = "12 bytes a parameter that is trained; S3 Standard, us-east-1, 2024"
    yield Factor("checkpoints kept", kept, "GB", words, source)
    words = f"a save writes {state_gb(work) * 1e9 / assumed.request_bytes:,.0f} blocks of 16 MiB"
    yield Factor("store requests", assumed.write_usd * 1e6, "USD per million", words, "S3 Standard, us-east-1, 2024")
    words = f"the state, {state_gb(work):.3g} GB, read where a loss takes the run to, and at every save from there"
    if course.away_interval_s:
        words += f" ({course.away_interval_s / 60:.0f} min apart, which costs least)"
    yield Factor("egress", assumed.egress_usd_per_gb, "USD per GB", words, "AWS, between its regions in the US, 2024")


def _writer_words(side: SideMachines) -> str:
    gpus = None if side.generation is None else side.generation.gpus
    return (
        f"the cheapest with {gpus}, for the teacher"
        if gpus
        else "the cheapest with 4 vCPUs; no GPU waits for a teacher"
    )


def _of_side(side: SideMachines) -> Iterator[Factor]:
    for name, place, words in (
        ("generation machine", side.generation, _writer_words(side)),
        ("controller", side.controller, "SkyPilot's own, 4 vCPUs and 16 GiB, as long as the job lasts"),
    ):
        if place is not None and place.price_per_hour_usd is not None:
            words = f"{place.instance_type} ({place.pricing.value}) in {place.name}: {words}"
            yield Factor(name, place.price_per_hour_usd, "USD/h", words, "price list")
