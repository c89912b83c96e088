"""What happens after an attempt stops: the one way in to the table from stop reasons to decisions.

`decide` is asked by the local supervisor and by the SkyPilot strategy alike. It sees the history of stops, a policy,
the candidate placements in the plan's order and the time; it owns no clock, no store and no machine. Beside it:

    stop.py              how an attempt ended
    recovery_table.py    what follows each stop reason
    recovery_policy.py   the limits of it
    placement_order.py   where to
    on_demand.py         whether spot will do
    decision.py          the answer, and whether deadline and budget allow it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cluster.decision import Decision, is_payable, launch_or_refuse, wait_or_end
from cluster.on_demand import Need, Outlook, on_demand_need
from cluster.placement_order import placement_order
from cluster.plan import Placement, Pricing
from cluster.recovery_policy import RecoveryPolicy
from cluster.recovery_table import ALL_DONE, TABLE, Action, Rule
from cluster.stop import Stop, StopReason, position_words, stop_sentence

__all__ = ["ALL_DONE", "TABLE", "Action", "Decision", "RecoveryPolicy", "Stop", "StopReason", "decide"]

_OVERSLEPT_S: Final = 60.0
"""Seconds after twice the longest pause from which whoever asks was asleep (a closed laptop), and asks once more."""


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
        return launch_or_refuse("Starting", order, policy, now, spent_usd, need)
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
            f"{fruitless} attempts in a row ended without one new commit; the last: {stop_sentence(last)} "
            "Save more often (checkpoints.interval_steps), or use machines that live longer (compute.spot: false)."
        )
        return Decision(Action.GIVE_UP, words, exit_code=3, reason=last.reason)
    pause_s = last.at_s + _backoff_s(alike, policy) - now if rule.pause else 0.0
    if pause_s > 0:
        return wait_or_end(pause_s, f"{stop_sentence(last)} Trying again in {pause_s:.0f} s", policy, now)
    need = _need(policy, candidates, history, now, spent_usd, outlook)
    order = placement_order(candidates, policy, history, now, first=_first(need))
    return launch_or_refuse(stop_sentence(last).removesuffix("."), order, policy, now, spent_usd, need)


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
    payable = [place for place in candidates if is_payable(place, policy, spent_usd)]
    why = f"{_kind(last.placement, candidates)}{last.placement.name} has no capacity"
    if not payable:
        return launch_or_refuse(why, candidates, policy, now, spent_usd)
    need = _need(policy, payable, before, now, spent_usd, outlook)
    order = placement_order(payable, policy, before, now, first=_first(need))
    counts = [sum(one.placement == place for one in refusals) for place in order]
    rounds = min(counts)
    untried = tuple(place for place, count in zip(order, counts, strict=True) if count == rounds)
    if len(untried) < len(order):
        return launch_or_refuse(why, untried, policy, now, spent_usd, need)
    waited_s = now - first.at_s
    if waited_s >= policy.max_wait_s and now - last.at_s < 2 * policy.max_backoff_s + _OVERSLEPT_S:
        words = (
            f"No capacity in {_join(order)} within {waited_s:.0f} s (compute.max_wait_s is {policy.max_wait_s:.0f}). "
            "Allow more regions in compute.regions, or go on later with `alpaca-jobs resume`."
        )
        return Decision(Action.GIVE_UP, words, exit_code=3, reason=StopReason.CAPACITY)
    pause_s = min(last.at_s + _backoff_s(rounds, policy) - now, policy.max_wait_s - waited_s)
    if pause_s > 0:
        return wait_or_end(pause_s, f"No capacity in {_join(order)}; asking again in {pause_s:.0f} s", policy, now)
    return launch_or_refuse("Asking for capacity again", order, policy, now, spent_usd, need)


def _end(rule: Rule, last: Stop, *, tries: int = 1) -> Decision:
    action = Action.FINISH if rule.action is Action.FINISH else Action.GIVE_UP
    exit_code = last.exit_code if last.exit_code else rule.exit_code
    if last.reason is StopReason.DONE:
        words = rule.words if last.detail in ("", ALL_DONE) else f"{last.detail} {rule.words}"
        return Decision(action, words, exit_code=0, reason=last.reason)
    if last.reason is StopReason.REVIEW:
        return Decision(action, f"{last.detail} {rule.words}", exit_code=0, reason=last.reason)
    times = f", for the {_ordinal(tries)} time after {position_words(last)}" if tries > 1 else ""
    return Decision(action, f"{stop_sentence(last, times)} {rule.words}", exit_code=exit_code, reason=last.reason)


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


def _kind(place: Placement, candidates: Sequence[Placement]) -> str:
    """The kind of machine that was asked for, where a place has several."""
    is_mixed = len({one.pricing for one in candidates}) > 1
    return f"{'Spot' if place.pricing is Pricing.SPOT else 'On demand'} in " if is_mixed else ""


def _join(places: Sequence[Placement]) -> str:
    return ", ".join(dict.fromkeys(place.name for place in places)) or "no region"


def _ordinal(number: int) -> str:
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number if number < 20 else number % 10, "th")
    return f"{number}{suffix}"
