"""Preempt a run on purpose and hold it against an undisturbed one: does a user's job really survive?

Two runs of the same job: one is left alone, the other's node is killed with SIGKILL, from outside, as often as asked.
Both are real runs through the real supervisor. Afterwards their results are read back from the store and compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import change_job
from checkpoints.attempts import AttemptLog
from checkpoints.lineage import AttemptRecord
from checkpoints.store import Store
from cluster.errors import RunFailed, WrongInput
from cluster.events import Event
from cluster.launch.drill_killer import Kill, Killer, plan_aims
from cluster.launch.following import follow_run
from cluster.launch.launching import start_run
from cluster.launch.planner import offers_for, plan_launch
from cluster.local.backend import LocalBackend
from cluster.node.ledger import count_asked
from cluster.plan import LaunchPlan
from cluster.runs.home import Home
from cluster.runs.run_facts import RunFacts, compare_runs, read_run_facts
from cluster.runs.run_ids import new_run_id

OTHER_WORLD_TOLERANCE = 1e-4  # of a loss; sums in another order differ by about 1e-7 a step (FSDP2, float32)
MOST_KILLS_PER_RUN = 100

OnDrillEvent = Callable[[str, Event | Kill | str], None]


@dataclass(frozen=True)
class DrillResult:
    """What a drill found. Digests are (undisturbed, killed).

    Attributes:
        kills_by_phase: what the node was doing when it died: generation, step, save, recovery, export.
        lost_steps_max: most steps that had to be made again after one kill.
        lost_steps_in_bound: whether no kill lost more than the interval plus the steps made while a save was in flight.
        corrupt_resumes: attempts that went on from a state which the undisturbed run never had.
        requests_repeated: teacher requests that were sent once more; at most those in flight at a kill.
    """

    run_ids: tuple[str, str]
    seed: int
    kills: int
    kills_by_phase: Mapping[str, int]
    attempts: int
    regions: tuple[str, ...]
    bit_identical: bool
    weights_digest: tuple[str, str]
    losses_digest: tuple[str, str]
    largest_loss_difference: float
    lost_steps: tuple[int, ...]
    lost_steps_max: int
    lost_steps_in_bound: bool
    rows: int
    rows_lost: int
    rows_duplicated: int
    corrupt_resumes: int
    requests_repeated: int
    final_loss: float | None

    @property
    def is_good(self) -> bool:
        """Whether the run survived as promised; bits are promised on an unchanged world size only."""
        return not (self.rows_lost or self.rows_duplicated or self.corrupt_resumes) and self.lost_steps_in_bound

    def to_json(self) -> dict[str, Any]:
        """Plain values; the digests of both runs by name."""
        body = asdict(self)
        for name in ("run_ids", "weights_digest", "losses_digest"):
            body[name] = dict(zip(("undisturbed", "killed"), body[name], strict=True))
        return body


def run_drill(
    job: JobSpec,
    *,
    kills: int,
    seed: int = 0,
    world_sizes: Sequence[int] = (),
    home: Home,
    on_event: OnDrillEvent,
) -> DrillResult:
    """Run the job twice and compare.

    Args:
        kills: how often the second run's node is killed.
        seed: chooses the moments.
        world_sizes: training ranks of the killed run's attempts, in turn; the undisturbed run has the first. Empty:
            the job's own, always.
        on_event: told what happens: ("undisturbed" | "killed", an event, a kill, or a sentence).

    Raises:
        WrongInput: the job is not for this machine, or a number that cannot be.
        RunFailed: one of the runs did not finish.
    """
    _check(job, kills, world_sizes)
    calm = _plan(job, world_sizes[:1])
    _run(calm, home, "undisturbed", on_event)
    wanted = read_run_facts(_store(calm))
    rough = _plan(job, world_sizes)
    interval = job.checkpoints.interval_steps
    aims = plan_aims(
        kills, seed=seed, total_steps=wanted.num_steps, interval=interval if isinstance(interval, int) else 1
    )
    killer = Killer(LocalBackend(home), rough.run_id, aims, on_kill=lambda kill: on_event("killed", kill))
    killer.start()
    try:
        _run(rough, home, "killed", on_event)
    finally:
        killer.stop()
    found = read_run_facts(_store(rough))
    return _judge(calm, rough, wanted, found, killer.kills, seed=seed, is_elastic=len(set(world_sizes)) > 1)


def _check(job: JobSpec, kills: int, world_sizes: Sequence[int]) -> None:
    if not job.compute.is_local:
        raise WrongInput(
            "Without --infra the nodes of this machine are killed, but compute.infra is "
            f"[{', '.join(job.compute.infra)}]. Set compute.infra: local, or kill one there: drill --infra aws"
        )
    if not 0 <= kills <= MOST_KILLS_PER_RUN:
        raise WrongInput(f"--kills is {kills}, but a number from 0 to {MOST_KILLS_PER_RUN} is wanted.")
    if any(size < 1 for size in world_sizes):
        raise WrongInput(f"--world-size is {list(world_sizes)}, but every size has to be 1 or more.")


def _plan(job: JobSpec, world_sizes: Sequence[int]) -> LaunchPlan:
    """A plan whose candidates have the given numbers of ranks in turn."""
    job = change_job(job, {"data.review": False}) if job.data.review else job  # nobody looks at a drill's rows
    job = change_job(job, {"checkpoints.after_done": "keep"})  # the losses in them are compared
    plan = plan_launch(job, run_id=new_run_id(job.name), offers=offers_for(job))
    if not world_sizes:
        return plan
    placed = (
        replace(place, workers=world_sizes[number % len(world_sizes)]) for number, place in enumerate(plan.candidates)
    )
    return replace(plan, candidates=tuple(placed), world_size=world_sizes[0])


def _run(plan: LaunchPlan, home: Home, name: str, on_event: OnDrillEvent) -> None:
    on_event(name, f"run {plan.run_id} starts")
    start_run(plan, home)
    end: Event | None = None
    for event in follow_run(Store.open(plan.store_uri), plan.run_id, home):
        on_event(name, event)
        if event.kind == "end":
            end = event
    if end is None or end.fields.get("exit_code") != 0:
        words = "it ended without a word" if end is None else end.fields.get("words")
        raise RunFailed(f"The {name} run {plan.run_id} did not finish: {words}. See: alpaca-jobs logs {plan.run_id}")


def _store(plan: LaunchPlan) -> Store:
    return Store.open(plan.store_uri).child(plan.run_id)


def _judge(
    calm: LaunchPlan, rough: LaunchPlan, wanted: RunFacts, found: RunFacts, kills: Sequence[Kill], *, seed: int,
    is_elastic: bool,
) -> DrillResult:  # fmt: skip
    records = AttemptLog(_store(rough), LAYOUT).records()
    difference = compare_runs(wanted, found, tolerance=OTHER_WORLD_TOLERANCE if is_elastic else 0.0)
    interval = rough.job.checkpoints.interval_steps
    lost = [steps for kill in kills if (steps := lost_steps(kill, records)) is not None]
    bounds = [
        steps <= interval + (kill.reached - kill.saving if kill.saving is not None and kill.reached else 0)
        for kill in kills
        if isinstance(interval, int) and (steps := lost_steps(kill, records)) is not None
    ]
    claims = [record.claim for record in records if record.claim is not None]
    return DrillResult(
        run_ids=(calm.run_id, rough.run_id),
        seed=seed,
        kills=len(kills),
        kills_by_phase=dict(Counter(kill.phase for kill in kills)),
        attempts=len(records),
        regions=tuple(f"{claim['placement']['infra']}/{claim['placement']['region']}" for claim in claims),
        bit_identical=difference.bit_identical,
        weights_digest=(wanted.weights_digest, found.weights_digest),
        losses_digest=(wanted.losses_digest, found.losses_digest),
        largest_loss_difference=difference.largest_loss_difference,
        lost_steps=tuple(lost),
        lost_steps_max=max(lost, default=0),
        lost_steps_in_bound=all(bounds),
        rows=len(found.rows),
        rows_lost=difference.rows_lost,
        rows_duplicated=difference.rows_duplicated,
        corrupt_resumes=difference.corrupt_resumes,
        requests_repeated=count_asked(_store(rough)).repeated,
        final_loss=float.fromhex(found.losses[-1]) if found.losses else None,
    )


def lost_steps(kill: Kill, records: Sequence[AttemptRecord]) -> int | None:
    """Steps that the attempts after a kill had to make again; None when none was made before it."""
    if kill.reached is None:
        return None
    for record in sorted(records, key=lambda record: record.number):
        if record.number > kill.attempt and record.has_base:
            base = record.base.position if record.base is not None and record.base.stage == "train" else 0
            return max(0, kill.reached - base)
    return None
