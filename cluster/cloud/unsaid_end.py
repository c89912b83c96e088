"""How an attempt on a cloud ended that recorded no end itself: why, by its exit code, and until when it was paid for.

SkyPilot looks every 15 seconds, but where it runs on a laptop nobody may have looked for days. What the machine has
cost by then is bounded: its node gave a sign of life every minute (cluster/sign_of_life.py), and a rented machine whose
node is gone turns itself off (cluster/node/power.py).
"""

from __future__ import annotations

from typing import Final

from checkpoints.store import Store
from cluster.cloud.templates import LONGEST_S
from cluster.exits import SET_UP_FAILED, describe_exit, reason_of_exit
from cluster.node.power import HELD_MIN, SETUP_MIN
from cluster.recovery import StopReason
from cluster.runs.attempt_watch import Ending
from cluster.sign_of_life import last_sign_s

NOT_BEGUN_S: Final = 60.0 * (SETUP_MIN + HELD_MIN)
"""Most seconds that a machine counts on which no attempt began: a set-up's own limit, and the time to get it."""
NEVER_BEGAN: Final = Ending(StopReason.LOST, "it never began")
NOT_READY: Final = Ending(
    StopReason.NODE_FAILURE,
    "SkyPilot had its machine but could not make it ready; `sky jobs logs --controller` has its words",
)
_SET_UP: Final = Ending(
    StopReason.CRASHED, "its machine's set-up failed, after several tries; `sky jobs logs` has the installer's words"
)
_GONE: Final = Ending(StopReason.LOST, "its machine was gone")
_HUNG: Final = Ending(
    StopReason.LOST,
    "it was still there when its week was over, did not leave when it was asked to, and was killed",
    retryable=False,  # once more would be another week
    exit_code=3,
)
_KILLED: Final = (-9, 137)  # SIGKILL, as subprocess and as shells say it
_HUNG_S: Final = LONGEST_S - 3600.0


def judge(exit_code: int | None, seconds: float) -> Ending:
    """Why it ended.

    Args:
        exit_code: what SkyPilot says its task ended with; None where the machine was gone, or nobody could read it.
        seconds: how long it lived.
    """
    if exit_code is None:
        return _GONE
    if exit_code == SET_UP_FAILED:
        return _SET_UP
    if exit_code in _KILLED and seconds >= _HUNG_S:
        return _HUNG
    reason = reason_of_exit(exit_code)
    if reason is StopReason.DONE:  # it would have said so
        reason = StopReason.CRASHED
    if reason is StopReason.SUPERSEDED:  # nobody has superseded it, so it could not renew its lease
        reason = StopReason.LOST
    return Ending(reason, f"{describe_exit(exit_code)}, and it recorded no end; `sky jobs logs` has its words")


def alive_until_s(store: Store, attempt: int, *, began_s: float, now: float) -> float:
    """Until when its machine counts, in seconds since 1970: now, where its node has just given a sign of life, or none
    at all; else when a rented machine is off after its node's last sign.
    """
    sign_s = last_sign_s(store, attempt)
    return max(now if sign_s is None else min(now, sign_s + 60.0 * HELD_MIN), began_s)
