"""Evaluation while training, as far as it is arithmetic: which rows are held out, what was best, when to stop."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alpaca_jobs.errors import DataError
from alpaca_jobs.training.reading import Chat

Evaluation = tuple[int, float]
"""A step, and the mean cross entropy in nats over all target tokens of the held-out rows after it."""


@dataclass(frozen=True)
class EvaluationReport:
    """One evaluation, as it is told to the run's events.

    Attributes:
        loss: mean cross entropy over the target tokens of the held-out rows, nats.
        seconds: wall clock on rank 0; training stood still meanwhile.
        is_best: no evaluation before had a lower loss.
        best_step, best_loss: of all so far; None if none has been finite.
    """

    step: int
    loss: float
    num_rows: int
    target_tokens: int
    seconds: float
    is_best: bool
    best_step: int | None
    best_loss: float | None


def best_evaluation(done: Sequence[Evaluation]) -> Evaluation | None:
    """The lowest finite loss, the earliest of equals."""
    finite = [(loss, step) for step, loss in done if math.isfinite(loss)]
    if not finite:
        return None
    loss, step = min(finite)
    return step, loss


def stop_words(done: Sequence[Evaluation], stop_after: int | None) -> str | None:
    """Why training stops now, in words; None as long as it goes on.

    Args:
        done: all evaluations since step 1, in order.
        stop_after: so many in a row without a new lowest loss end training; None never does.
    """
    best = best_evaluation(done)
    best_place = -1 if best is None else [step for step, _ in done].index(best[0])
    if stop_after is None or len(done) - 1 - best_place < stop_after:
        return None
    than = "none was a finite number" if best is None else f"the lowest, {best[1]:.4f}, was after step {best[0]}"
    return (
        f"Stopped early after step {done[-1][0]}: {stop_after} evaluations in a row brought no lower loss than before "
        f"({than})."
    )


def is_due(step: int, *, every_steps: int, num_steps: int) -> bool:
    """Whether the state after `step` is evaluated: at multiples, and after the last step."""
    return step > 0 and (step % every_steps == 0 or step == num_steps)


def held_out_bound(rows: Iterable[Any], *, fraction: float, seed: int) -> float:
    """What `is_held_out` goes by, from one look at all rows: about `fraction` of them are held out, one at least.

    Raises:
        DataError: nothing is left to train on.
    """
    lowest, highest, number = 1.0, 0.0, 0
    for number, row in enumerate(rows, start=1):  # noqa: B007 - asked for below
        place = _place(row, seed)
        lowest, highest = min(lowest, place), max(highest, place)
    bound = max(fraction, lowest if number else 0.0)
    if highest <= bound:
        raise DataError(
            f"train.eval.fraction is {fraction:g}, and of {number} rows none is left to train on. Lower it, or take "
            "more rows."
        )
    return bound


def is_held_out(row: Any, *, seed: int, bound: float) -> bool:
    """Whether a row is evaluated on and never trained on.

    Its side follows from the seed and what the row says: not from its place, nor from the other rows. So it is the same
    in every attempt, rows that say the same are on one side, and a file that grows keeps the sides of its rows. Chats
    with answers that are only read are told by their first exchange: those made of one chat are on one side.
    """
    return _place(row, seed) <= bound


def _place(row: Any, seed: int) -> float:
    """Between 0 and 1, as even as SHA-256 is."""
    text = json.dumps([seed, _said(row)], ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def _said(row: Any) -> dict[str, Any]:
    if not isinstance(row, Chat):
        return asdict(row)
    turns = row.turns
    if not all(turn.is_learned for turn in turns):
        turns = turns[: 1 + next(place for place, turn in enumerate(turns) if turn.role == "assistant")]
    return {"turns": [{"role": turn.role, "text": turn.text} for turn in turns]}


def read_evaluations(meta: Mapping[str, Any]) -> list[Evaluation]:
    """All evaluations up to a commit, from its `meta`; none where nothing was evaluated."""
    return [(int(step), float.fromhex(loss)) for step, loss in meta.get("evaluations", ())]


def write_evaluations(done: Sequence[Evaluation]) -> list[list[Any]]:
    """The same as JSON values; losses in hex, which keeps every bit on any machine."""
    return [[step, loss.hex()] for step, loss in done]
