"""Preempt a run of one's own on a real cloud: its machine is terminated on purpose, and the run has to come back.

One run, no undisturbed one beside it: that a recovery ends with the same bits is what the drill on this machine shows
for nothing; what is shown here is that this account, its quotas and SkyPilot bring it back, and what that costs.
Only machines that carry the run's own label are touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.store import Store
from cluster.cloud.aws_account import AwsAccount
from cluster.cloud.aws_machines import machines_of_run, terminate
from cluster.errors import RunFailed, WrongInput
from cluster.event_reading import read_events
from cluster.events import Event, seconds_of, utc_now
from cluster.launch.following import follow_run
from cluster.launch.launching import start_run
from cluster.plan import LaunchPlan
from cluster.runs.attempt_summary import summarize_attempts
from cluster.runs.goodput import lost_steps
from cluster.runs.home import Home

MOST_KILLS: int = 5


@dataclass(frozen=True)
class CloudKill:
    """One termination.

    Attributes:
        machines: what was terminated.
        step: the newest committed step at that moment, which the run has to go on from at least.
        at: ISO time, when AWS had taken the order.
    """

    attempt: int
    place: str
    machines: tuple[str, ...]
    step: int
    at: str


@dataclass(frozen=True)
class CloudDrillResult:
    """What came of it.

    Attributes:
        wanted: how many kills were asked for; a run that is over sooner gets fewer.
        places: where each attempt ran.
        lost_steps: done again after each attempt but the last.
        back_s: seconds from each kill to the first new training step; None where there was none.
        outcome: the run's stop reason.
    """

    run_id: str
    wanted: int
    kills: tuple[CloudKill, ...]
    places: tuple[str, ...]
    lost_steps: tuple[int, ...]
    back_s: tuple[float | None, ...]
    outcome: str

    @property
    def is_good(self) -> bool:
        """Killed as often as asked, back elsewhere each time, and done."""
        moved = all(one.place != _after(one, self.places) for one in self.kills)
        return self.outcome == "done" and len(self.kills) == self.wanted and moved and None not in self.back_s

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "is_good": self.is_good}


def check_drillable(plan: LaunchPlan, kills: int) -> None:
    """Refuse what this drill cannot do.

    Raises:
        WrongInput: says what it is.
    """
    if any(place.infra != "aws" for place in plan.candidates):
        names = ", ".join(sorted({place.infra for place in plan.candidates}))
        raise WrongInput(f"The drill terminates machines of AWS only, and the plan goes to {names}. Take --infra aws.")
    if not 1 <= kills <= MOST_KILLS:
        raise WrongInput(f"--kills is {kills}, but a number from 1 to {MOST_KILLS} is wanted on a cloud.")
    if "train" not in plan.job.stages:
        raise WrongInput("The drill waits for a checkpoint of the training, and this job does not train.")


def run_cloud_drill(
    plan: LaunchPlan,
    home: Home,
    account: AwsAccount,
    *,
    kills: int,
    on_event: Callable[[Event | str], None],
    estimate: Mapping[str, Any] | None = None,
) -> CloudDrillResult:
    """Launch the plan, terminate its machine after the first checkpoint of so many attempts, follow it to its end.

    Raises:
        WrongInput: what cannot be drilled.
        RunFailed: the run ended without a word.
        CloudError: AWS does not let its machines be found or terminated; the run itself goes on.
    """
    check_drillable(plan, kills)
    start_run(plan, home, estimate=estimate)
    on_event(f"run {plan.run_id} starts")
    made: list[CloudKill] = []
    outcome = ""
    root = Store.open(plan.store_uri)
    for event in follow_run(root, plan.run_id, home):
        on_event(event)
        if event.kind == "end":
            outcome = str(event.fields.get("reason", ""))
        is_due = len(made) < kills and event.attempt not in {one.attempt for one in made}
        if is_due and event.kind == "save" and event.fields.get("committed"):
            kill = terminate_run(plan, account, event)
            if kill is not None:
                made.append(kill)
                on_event(f"TERMINATED {', '.join(kill.machines)} in {kill.place}, after step {kill.step}")
    if not outcome:
        raise RunFailed(f"{plan.run_id} ended without a word. See: alpaca-jobs logs {plan.run_id}, alpaca-jobs doctor")
    return _result(root.child(plan.run_id), plan.run_id, kills, made, outcome)


def terminate_run(plan: LaunchPlan, account: AwsAccount, event: Event) -> CloudKill | None:
    """Terminate what the run has now; None where nothing of it runs any more."""
    regions = [place.region for place in plan.candidates]
    live = [one for one in machines_of_run(account, plan.run_id, regions) if one.is_billed]
    if not live:
        return None
    terminate(account, live)
    names = tuple(one.instance_id for one in live)
    newest = max(live, key=lambda one: one.started_at_s)
    return CloudKill(event.attempt, f"aws/{newest.region}", names, int(event.fields["position"]), utc_now())


def _result(
    store: Store, run_id: str, wanted: int, made: Sequence[CloudKill], outcome: str
) -> CloudDrillResult:  # fmt: skip
    events = read_events(store)
    attempts = summarize_attempts(AttemptLog(store, LAYOUT).records(), events)
    return CloudDrillResult(
        run_id=run_id,
        wanted=wanted,
        kills=tuple(made),
        places=tuple(one.place for one in attempts),
        lost_steps=lost_steps(attempts),
        back_s=tuple(_back_s(kill, events) for kill in made),
        outcome=outcome,
    )


def _back_s(kill: CloudKill, events: Sequence[Event]) -> float | None:
    """From a kill to the first step that a later attempt made."""
    steps = [seconds_of(one.t) for one in events if one.kind == "step" and one.attempt > kill.attempt]
    return round(min(steps) - seconds_of(kill.at), 1) if steps else None


def _after(kill: CloudKill, places: Sequence[str]) -> str | None:
    """Where the attempt after a kill ran."""
    return places[kill.attempt] if kill.attempt < len(places) else None
