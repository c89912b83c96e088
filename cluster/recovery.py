"""What happens after an attempt stops: one pure table from stop reasons to decisions.

`decide` is asked by the local supervisor and by the SkyPilot strategy alike. It sees the history of stops, a policy,
the candidate placements in the plan's order and the time; it owns no clock, no store and no machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

from cluster.on_demand import Need, Outlook, on_demand_need
from cluster.plan import Placement, Pricing

# A region that took a machine away is tried after the others for this long. Source: the spot availability traces of
# SkyPilot's study (aws-10-26-2022, V100, four single-node series of 10-minute ticks): of 967 stretches without
# capacity, three quarters were over within 60 minutes in every series; half within 10 to 30.
COOL_DOWN_S: Final = 3600.0


class StopReason(StrEnum):
    """How an attempt ended; values are what end records, events and reports hold."""

    DONE = "done"
    PART_DONE = "part_done"  # its stages are done, and those that follow have machines of their own
    PREEMPTED = "preempted"  # the machine was taken, and said so
    LOST = "lost"  # it stopped answering, or was killed without a word
    CAPACITY = "capacity"  # it never started: no such machine there now
    NODE_FAILURE = "node_failure"  # the machine or Ray on it broke
    CRASHED = "crashed"  # the job's own processes died
    USER_ERROR = "user_error"  # the job said in words that it cannot be
    OUT_OF_MEMORY = "out_of_memory"
    BUDGET = "budget"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    STORE_FAILURE = "store_failure"
    REVIEW = "review"  # the rows are written, and the job wants a person to look at them (data.review)
    SUPERSEDED = "superseded"  # a newer attempt that is not ours exists


class Action(StrEnum):
    """What the supervisor does next."""

    RELAUNCH = "relaunch"
    WAIT = "wait"
    FINISH = "finish"
    GIVE_UP = "give_up"


@dataclass(frozen=True)
class Stop:
    """One attempt's end, or one refused launch.

    Attributes:
        attempt: its number; a refused launch holds the number that stayed unused.
        at_s: when, on the clock that `decide` gets as `now`.
        position: newest committed work when it stopped, in any form that compares equal exactly when nothing was
            added (None: nothing yet). The crash breaker looks at nothing else.
        detail: what was found, for the words.
        retryable: False if the error itself said that trying again cannot help.
        exit_code: the exit code that the error itself names (2 for wrong input), if it does.
    """

    attempt: int
    reason: StopReason
    placement: Placement
    at_s: float
    position: tuple[str, int] | None = None
    detail: str = ""
    retryable: bool = True
    exit_code: int | None = None


@dataclass(frozen=True)
class RecoveryPolicy:
    """The limits of a run's recoveries. Times are in seconds, on the clock of `now`.

    Attributes:
        recover: next-region moves on from the region that was lost; cheapest orders by price alone.
        on_demand: when-needed takes an on-demand candidate first where cluster/on_demand.py says so; in any other case
            they come after every spot one, if the plan has any.
        max_crashes: crashes without a new commit between them before the run is stopped.
        max_memory_stops: the same for running out of memory, which is even less often cured by trying again.
        max_store_failures: the same for a store that does not answer.
        max_fruitless: stops of any kind without a new commit between them; keeps a job whose machines never live as
            long as one save from buying machines for ever.
        max_wait_s: longest wait for capacity; first_backoff_s doubles up to max_backoff_s between two rounds.
        max_usd: most dollars the run may cost; None for no such limit.
        deadline_at_s: when the run has to be over, or None.
        restart_s: time a new attempt needs before it adds anything; a relaunch that cannot pay it is refused.
    """

    recover: Literal["next-region", "cheapest"] = "next-region"
    on_demand: Literal["never", "last-resort", "when-needed"] = "never"
    max_crashes: int = 3
    max_memory_stops: int = 2
    max_store_failures: int = 3
    max_fruitless: int = 12
    max_wait_s: float = 21_600.0
    first_backoff_s: float = 5.0
    max_backoff_s: float = 300.0
    max_usd: float | None = None
    deadline_at_s: float | None = None
    restart_s: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What to do, and why in words for the user.

    Attributes:
        placements: RELAUNCH: where, best first. The launcher tries the first; if it is refused, it says so in the
            history and asks again.
        wait_s: WAIT: seconds until asking again is worth it.
        exit_code: FINISH and GIVE_UP: 0 done, 1 the job failed, 2 wrong input, 3 the surroundings failed, 4 budget or
            deadline, 130 the user stopped it.
        reason: FINISH and GIVE_UP: the stop reason the run ends with.
        on_demand: RELAUNCH: why the first placement is on demand although the plan has spot ones; empty if it is not.
    """

    action: Action
    words: str
    placements: tuple[Placement, ...] = ()
    wait_s: float = 0.0
    exit_code: int | None = None
    reason: StopReason | None = None
    on_demand: str = ""


@dataclass(frozen=True)
class _Rule:
    action: Action
    region: Literal["elsewhere", "same"] = "same"  # where a relaunch goes first
    limit: str = ""  # field of RecoveryPolicy: how many such stops without progress end the run
    pause: bool = False  # back off before the relaunch
    exit_code: int = 0  # when it ends the run
    words: str = ""  # what the user reads when it ends the run


ALL_DONE: Final = "all stages are done"
"""What a done attempt says of itself where there is nothing more to say."""

_TRY_RESUME: Final = "Once that is fixed, `alpaca-jobs resume` goes on from the newest commit."

TABLE: Final[Mapping[StopReason, _Rule]] = MappingProxyType(
    {
        StopReason.DONE: _Rule(Action.FINISH, words="The run is done."),
        StopReason.PART_DONE: _Rule(Action.RELAUNCH),
        StopReason.PREEMPTED: _Rule(Action.RELAUNCH, "elsewhere"),
        StopReason.LOST: _Rule(Action.RELAUNCH, "elsewhere"),
        StopReason.NODE_FAILURE: _Rule(Action.RELAUNCH, "elsewhere"),
        StopReason.CAPACITY: _Rule(Action.WAIT, "elsewhere", exit_code=3),
        StopReason.CRASHED: _Rule(
            Action.RELAUNCH, limit="max_crashes", exit_code=1, words=f"It is the job, not the machine. {_TRY_RESUME}"
        ),
        StopReason.OUT_OF_MEMORY: _Rule(
            Action.RELAUNCH,
            limit="max_memory_stops",
            exit_code=1,
            words="Lower train.micro_batch_size, or take machines with more memory.",
        ),
        StopReason.STORE_FAILURE: _Rule(
            Action.RELAUNCH, limit="max_store_failures", pause=True, exit_code=3, words=_TRY_RESUME
        ),
        StopReason.USER_ERROR: _Rule(Action.GIVE_UP, exit_code=1, words=_TRY_RESUME),
        StopReason.BUDGET: _Rule(
            Action.GIVE_UP, exit_code=4, words="Go on with `alpaca-jobs resume --budget USD`; what is committed stays."
        ),
        StopReason.DEADLINE: _Rule(
            Action.GIVE_UP, exit_code=4, words="Go on with `alpaca-jobs resume --deadline H`; what is committed stays."
        ),
        StopReason.CANCELLED: _Rule(
            Action.GIVE_UP, exit_code=130, words="Nothing is left running. `alpaca-jobs resume` goes on from here."
        ),
        StopReason.REVIEW: _Rule(
            Action.GIVE_UP,
            words="The run is waiting for your review; nothing of it is running. `alpaca-jobs resume` accepts the rows "
            "and goes on to training.",
        ),
        # Somebody else goes on with the run, so there is nothing for us to clean up, to report or to end.
        StopReason.SUPERSEDED: _Rule(Action.FINISH, exit_code=3, words="Another launcher has taken this run over."),
    }
)


_NO_NEED: Final = Need(False)
_LOSSES: Final = frozenset({StopReason.PREEMPTED, StopReason.LOST, StopReason.NODE_FAILURE})


def decide(
    history: Sequence[Stop],
    policy: RecoveryPolicy,
    candidates: Sequence[Placement],
    now: float,
    *,
    spent_usd: float = 0.0,
    outlook: Outlook | None = None,
) -> Decision:
    """Decide what follows the newest stop of a run; an empty history is a run that has yet to start.

    Args:
        history: all stops so far, oldest first, refused launches included.
        candidates: where the run may go, in the plan's order.
        now: seconds, on the clock of the stops.
        spent_usd: what the run has cost so far, teacher included.
        outlook: what is left to do; None where that is not known, or where nothing is to be chosen by it.
    """
    if not history:
        need = _need(policy, candidates, history, now, spent_usd, outlook)
        order = placement_order(candidates, policy, history, now, first=_first(need))
        return _launch_or_refuse("Starting", order, policy, now, spent_usd, need)
    last = history[-1]
    if last.reason is StopReason.CAPACITY:
        return _after_refusal(history, policy, candidates, now, spent_usd, outlook)
    rule = TABLE[last.reason]
    if rule.action is not Action.RELAUNCH:
        return _end(rule, last)
    alike, fruitless = _without_progress(history)
    limit: int | None = getattr(policy, rule.limit) if rule.limit else None
    if not last.retryable or (limit is not None and alike >= limit):
        return _end(rule, last, tries=alike)
    if fruitless >= policy.max_fruitless:
        words = (
            f"{fruitless} attempts in a row ended without one new commit; the last: {_sentence(last)} "
            "Save more often (checkpoints.interval_steps), or use machines that live longer (compute.spot: false)."
        )
        return Decision(Action.GIVE_UP, words, exit_code=3, reason=last.reason)
    pause_s = last.at_s + _backoff_s(alike, policy) - now if rule.pause else 0.0
    if pause_s > 0:
        return _wait(pause_s, f"{_sentence(last)} Trying again in {pause_s:.0f} s", policy, now)
    need = _need(policy, candidates, history, now, spent_usd, outlook)
    order = placement_order(candidates, policy, history, now, first=_first(need))
    return _launch_or_refuse(_sentence(last).removesuffix("."), order, policy, now, spent_usd, need)


def placement_order(
    candidates: Sequence[Placement],
    policy: RecoveryPolicy,
    history: Sequence[Stop],
    now: float,
    *,
    first: Pricing = Pricing.SPOT,
) -> tuple[Placement, ...]:
    """Order candidates for the launch after a history whose newest stop was no refused launch.

    `next-region` keeps the plan's order, but regions that took a machine away within COOL_DOWN_S come last, the
    newest loss at the very end. After a crash, which was no fault of the place, the place comes first. `cheapest`
    orders by price (an unknown one last) and uses the same rule only between equals. Whatever is paid for as `first`
    says comes before all that is not.
    """
    order = list(candidates)
    if history:
        last = history[-1]
        order.sort(key=lambda one: _loss_rank(one, history, now))
        if TABLE[last.reason].region == "same":
            order.sort(key=lambda one: not _same_region(one, last.placement))
    if policy.recover == "cheapest":
        order.sort(key=lambda one: math.inf if one.job_price_per_hour_usd is None else one.job_price_per_hour_usd)
    order.sort(key=lambda one: one.pricing is not first)
    return tuple(order)


def _need(
    policy: RecoveryPolicy,
    candidates: Sequence[Placement],
    history: Sequence[Stop],
    now: float,
    spent_usd: float,
    outlook: Outlook | None,
) -> Need:
    """Whether the next place should be on demand, by the place of each kind that would be tried first."""
    order = placement_order(candidates, policy, history, now)
    spot = next((place for place in order if place.pricing is Pricing.SPOT), None)
    other = next((place for place in order if place.pricing is Pricing.ON_DEMAND), None)
    if policy.on_demand != "when-needed" or outlook is None or spot is None or other is None:
        return Need(False)
    left_s = None if policy.deadline_at_s is None else policy.deadline_at_s - now
    left_usd = None if policy.max_usd is None else policy.max_usd - spent_usd
    return on_demand_need(outlook, spot, other, left_s=left_s, left_usd=left_usd)


def _first(need: Need) -> Pricing:
    return Pricing.ON_DEMAND if need.is_needed else Pricing.SPOT


def _after_refusal(
    history: Sequence[Stop],
    policy: RecoveryPolicy,
    candidates: Sequence[Placement],
    now: float,
    spent_usd: float,
    outlook: Outlook | None,
) -> Decision:
    """Skip what refused in this round; when all did, wait, and begin another round."""
    refusals: list[Stop] = []
    for stop in reversed(history):
        if stop.reason is not StopReason.CAPACITY:
            break
        refusals.append(stop)
    first, last = refusals[-1], refusals[0]
    before = history[: -len(refusals)]
    payable = [place for place in candidates if _is_payable(place, policy, spent_usd)]
    why = f"{_kind(last.placement, candidates)}{last.placement.name} has no capacity"
    if not payable:
        return _launch_or_refuse(why, candidates, policy, now, spent_usd)
    need = _need(policy, payable, before, now, spent_usd, outlook)
    order = placement_order(payable, policy, before, now, first=_first(need))
    counts = [sum(one.placement == place for one in refusals) for place in order]
    rounds = min(counts)
    untried = tuple(place for place, count in zip(order, counts, strict=True) if count == rounds)
    if len(untried) < len(order):
        return _launch_or_refuse(why, untried, policy, now, spent_usd, need)
    waited_s = now - first.at_s
    if waited_s >= policy.max_wait_s:
        words = (
            f"No capacity in {_join(order)} within {waited_s:.0f} s (compute.max_wait_s is {policy.max_wait_s:.0f}). "
            "Allow more regions in compute.regions, or go on later with `alpaca-jobs resume`."
        )
        return Decision(Action.GIVE_UP, words, exit_code=3, reason=StopReason.CAPACITY)
    pause_s = min(last.at_s + _backoff_s(rounds, policy) - now, policy.max_wait_s - waited_s)
    if pause_s > 0:
        return _wait(pause_s, f"No capacity in {_join(order)}; asking again in {pause_s:.0f} s", policy, now)
    return _launch_or_refuse("Asking for capacity again", order, policy, now, spent_usd, need)


def _launch_or_refuse(
    why: str,
    order: Sequence[Placement],
    policy: RecoveryPolicy,
    now: float,
    spent_usd: float,
    need: Need = _NO_NEED,
) -> Decision:
    """Relaunch on what the rest of the deadline and the budget can pay; give up when that is nothing."""
    if not order:
        words = "No region is left to try. Allow more in compute.regions, or exclude fewer."
        return Decision(Action.GIVE_UP, words, exit_code=3, reason=StopReason.CAPACITY)
    if policy.deadline_at_s is not None and now + policy.restart_s >= policy.deadline_at_s:
        left_s = max(policy.deadline_at_s - now, 0.0)
        words = f"{why}; {left_s:.0f} s are left until the deadline, and a new attempt needs {policy.restart_s:.0f} s."
        return Decision(Action.GIVE_UP, words, exit_code=4, reason=StopReason.DEADLINE)
    payable = tuple(place for place in order if _is_payable(place, policy, spent_usd))
    if not payable:
        words = (
            f"{why}; {spent_usd:.2f} of {policy.max_usd:.2f} USD are spent, and the rest does not pay another attempt."
        )
        return Decision(Action.GIVE_UP, words, exit_code=4, reason=StopReason.BUDGET)
    words = f"{why}; {need.words}" if need.words else why
    where = f"{payable[0].name}{_how(payable[0], policy)}"
    on_demand = ""
    if policy.on_demand != "never" and payable[0].pricing is Pricing.ON_DEMAND:
        on_demand = need.words if need.is_needed else "no spot machine was to be had"
    return Decision(Action.RELAUNCH, f"{words}; going to {where}.", placements=payable, on_demand=on_demand)


def _how(place: Placement, policy: RecoveryPolicy) -> str:
    """How a machine is paid for, where there is a choice."""
    if policy.on_demand == "never":
        return ""
    return ", on demand" if place.pricing is Pricing.ON_DEMAND else ", on spot"


def _kind(place: Placement, candidates: Sequence[Placement]) -> str:
    """The kind of machine that was asked for, where a place has several."""
    is_mixed = len({one.pricing for one in candidates}) > 1
    return f"{'Spot' if place.pricing is Pricing.SPOT else 'On demand'} in " if is_mixed else ""


def _is_payable(place: Placement, policy: RecoveryPolicy, spent_usd: float) -> bool:
    if policy.max_usd is None:
        return True
    price = place.job_price_per_hour_usd
    if price is None:  # an unknown price keeps no budget
        return False
    # A free place stays payable on the last cent; a paid one needs a rest to spend.
    return spent_usd <= policy.max_usd if price == 0 else spent_usd + price * policy.restart_s / 3600 < policy.max_usd


def _wait(pause_s: float, words: str, policy: RecoveryPolicy, now: float) -> Decision:
    if policy.deadline_at_s is not None:
        pause_s = min(pause_s, max(policy.deadline_at_s - now, 0.0))
    return Decision(Action.WAIT, f"{words}.", wait_s=pause_s) if pause_s > 0 else _too_late(words)


def _too_late(words: str) -> Decision:
    return Decision(Action.GIVE_UP, f"{words}, but the deadline has come.", exit_code=4, reason=StopReason.DEADLINE)


def _end(rule: _Rule, last: Stop, *, tries: int = 1) -> Decision:
    action = Action.FINISH if rule.action is Action.FINISH else Action.GIVE_UP
    exit_code = last.exit_code if last.exit_code else rule.exit_code
    if last.reason is StopReason.DONE:
        words = rule.words if last.detail in ("", ALL_DONE) else f"{last.detail} {rule.words}"
        return Decision(action, words, exit_code=0, reason=last.reason)
    if last.reason is StopReason.REVIEW:
        return Decision(action, f"{last.detail} {rule.words}", exit_code=0, reason=last.reason)
    times = f", for the {_ordinal(tries)} time after {_position(last)}" if tries > 1 else ""
    return Decision(action, f"{_sentence(last, times)} {rule.words}", exit_code=exit_code, reason=last.reason)


def _without_progress(history: Sequence[Stop]) -> tuple[int, int]:
    """Count the newest stops at one position: those with the newest one's reason, and all; refused launches aside."""
    last = history[-1]
    alike = fruitless = 0
    for stop in reversed(history):
        if stop.reason is StopReason.CAPACITY:
            continue
        if stop.position != last.position:
            break
        fruitless += 1
        alike += stop.reason is last.reason
    return alike, fruitless


def _backoff_s(rounds: int, policy: RecoveryPolicy) -> float:
    return min(policy.first_backoff_s * 2.0 ** min(max(rounds - 1, 0), 30), policy.max_backoff_s)


def _loss_rank(place: Placement, history: Sequence[Stop], now: float) -> int:
    """0 for a region that took nothing away lately; the more recent its last loss, the higher. The newest stop counts
    however long ago it was: nothing has been heard of that region since."""
    for rank in range(len(history), 0, -1):
        stop = history[rank - 1]
        is_recent = rank == len(history) or now - stop.at_s < COOL_DOWN_S
        if stop.reason in _LOSSES and is_recent and _same_region(place, stop.placement):
            return rank
    return 0


def _same_region(one: Placement, other: Placement) -> bool:
    return (one.infra, one.region) == (other.infra, other.region)


def _join(places: Sequence[Placement]) -> str:
    return ", ".join(dict.fromkeys(place.name for place in places)) or "no region"


def _describe(stop: Stop) -> str:
    words = {
        StopReason.PREEMPTED: "preempted",
        StopReason.LOST: "lost",
        StopReason.NODE_FAILURE: "stopped by a failure of its node",
        StopReason.OUT_OF_MEMORY: "out of memory",
        StopReason.USER_ERROR: "stopped by the job's own error",
        StopReason.STORE_FAILURE: "stopped because the store failed",
        StopReason.BUDGET: "stopped by the budget",
        StopReason.DEADLINE: "stopped by the deadline",
    }.get(stop.reason, stop.reason.value)
    return f"attempt {stop.attempt} in {stop.placement.name}, {words}"


def _sentence(stop: Stop, times: str = "") -> str:
    detail = f": {stop.detail.rstrip('.')}" if stop.detail else ""
    what = "cancelled" if stop.reason is StopReason.CANCELLED else _describe(stop)
    text = f"{what}{times}{detail}."
    return text[0].upper() + text[1:]


def _position(stop: Stop) -> str:
    return "the start" if stop.position is None else f"{stop.position[0]} {stop.position[1]}"


def _ordinal(number: int) -> str:
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number if number < 20 else number % 10, "th")
    return f"{number}{suffix}"
