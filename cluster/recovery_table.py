"""The table from stop reasons to what follows: one rule for each. Pure data; cluster/recovery.py reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

from cluster.stop import StopReason


class Action(StrEnum):
    """What the supervisor does next."""

    RELAUNCH = "relaunch"
    WAIT = "wait"
    FINISH = "finish"
    GIVE_UP = "give_up"


@dataclass(frozen=True)
class Rule:
    """What follows one stop reason."""

    action: Action
    region: Literal["elsewhere", "same"] = "same"  # where a relaunch goes first
    limit: str = ""  # field of RecoveryPolicy: how many such stops without progress end the run
    pause: bool = False  # back off before the relaunch
    exit_code: int = 0  # when it ends the run
    words: str = ""  # what the user reads when it ends the run


ALL_DONE: Final = "all stages are done"
"""What a done attempt says of itself where there is nothing more to say."""

_TRY_RESUME: Final = "Once that is fixed, `alpaca-jobs resume` goes on from the newest commit."

TABLE: Final[Mapping[StopReason, Rule]] = MappingProxyType(
    {
        StopReason.DONE: Rule(Action.FINISH, words="The run is done."),
        StopReason.PART_DONE: Rule(Action.RELAUNCH),
        StopReason.PREEMPTED: Rule(Action.RELAUNCH, "elsewhere"),
        StopReason.LOST: Rule(Action.RELAUNCH, "elsewhere"),
        StopReason.NODE_FAILURE: Rule(Action.RELAUNCH, "elsewhere"),
        StopReason.CAPACITY: Rule(Action.WAIT, "elsewhere", exit_code=3),
        StopReason.CRASHED: Rule(
            Action.RELAUNCH, limit="max_crashes", exit_code=1, words=f"It is the job, not the machine. {_TRY_RESUME}"
        ),
        StopReason.OUT_OF_MEMORY: Rule(
            Action.RELAUNCH,
            limit="max_memory_stops",
            exit_code=1,
            words="Take machines with more memory (`alpaca-jobs resume --gpus` goes on), or let a step take less: "
            "train.gradient_checkpointing, a shorter train.max_length, a train.micro_batch_size that is not 1 yet.",
        ),
        StopReason.DIVERGED: Rule(
            Action.RELAUNCH,
            limit="max_divergences",
            exit_code=1,
            words="A second start had the same rows and weights, so it is the training, not the machine.",
        ),
        StopReason.STORE_FAILURE: Rule(
            Action.RELAUNCH, limit="max_store_failures", pause=True, exit_code=3, words=_TRY_RESUME
        ),
        StopReason.USER_ERROR: Rule(Action.GIVE_UP, exit_code=1, words=_TRY_RESUME),
        StopReason.BUDGET: Rule(
            Action.GIVE_UP,
            exit_code=4,
            words="Go on with `alpaca-jobs resume --budget USD` (--teacher-budget USD where the teacher's limit was "
            "reached); what is committed stays.",
        ),
        StopReason.DEADLINE: Rule(
            Action.GIVE_UP, exit_code=4, words="Go on with `alpaca-jobs resume --deadline H`; what is committed stays."
        ),
        StopReason.CANCELLED: Rule(
            Action.GIVE_UP, exit_code=130, words="Nothing is left running. `alpaca-jobs resume` goes on from here."
        ),
        StopReason.REVIEW: Rule(
            Action.GIVE_UP,
            words="The run is waiting for your review; nothing of it is running. `alpaca-jobs resume` accepts the rows "
            "and goes on to training.",
        ),
        # Somebody else goes on with the run, so there is nothing for us to clean up, to report or to end.
        StopReason.SUPERSEDED: Rule(Action.FINISH, exit_code=3, words="Another launcher has taken this run over."),
    }
)
