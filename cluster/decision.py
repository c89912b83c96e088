"""What follows a stop, and the last word on it: nothing starts that deadline or budget cannot pay. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cluster.on_demand import Need
from cluster.plan import Placement, Pricing
from cluster.recovery_policy import RecoveryPolicy
from cluster.recovery_table import Action
from cluster.stop import StopReason

_NO_NEED: Final = Need(False)


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


def launch_or_refuse(
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
    payable = tuple(place for place in order if is_payable(place, policy, spent_usd))
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


def is_payable(place: Placement, policy: RecoveryPolicy, spent_usd: float) -> bool:
    """Whether what is left of the budget pays another attempt there."""
    if policy.max_usd is None:
        return True
    start_usd = place.usd_for(policy.restart_s)
    if start_usd is None:  # an unknown price keeps no budget
        return False
    # A free place stays payable on the last cent; a paid one needs a rest to spend.
    return spent_usd <= policy.max_usd if place.price_per_hour_usd == 0 else spent_usd + start_usd < policy.max_usd


def wait_or_end(pause_s: float, words: str, policy: RecoveryPolicy, now: float) -> Decision:
    """Wait, at most until the deadline; end the run when that has come."""
    if policy.deadline_at_s is not None:
        pause_s = min(pause_s, max(policy.deadline_at_s - now, 0.0))
    return Decision(Action.WAIT, f"{words}.", wait_s=pause_s) if pause_s > 0 else _too_late(words)


def _too_late(words: str) -> Decision:
    return Decision(Action.GIVE_UP, f"{words}, but the deadline has come.", exit_code=4, reason=StopReason.DEADLINE)


def _how(place: Placement, policy: RecoveryPolicy) -> str:
    """How a machine is paid for, where there is a choice."""
    if policy.on_demand == "never":
        return ""
    return ", on demand" if place.pricing is Pricing.ON_DEMAND else ", on spot"
