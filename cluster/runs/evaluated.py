"""What a run's evaluations came to, read from its newest training commit: every loss, the best, and an early stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.training.evaluation import best_evaluation, read_evaluations
from checkpoints.errors import Damaged, NotCommitted
from checkpoints.keys import CommitRef
from checkpoints.reader import CommitReader
from checkpoints.store import Store
from cluster.events import Event


@dataclass(frozen=True)
class Evaluated:
    """Losses of the held-out rows, in nats per target token; `losses` are (step, loss) in order of steps."""

    losses: tuple[tuple[int, float], ...]
    best_step: int | None
    best_loss: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values; a loss that is no finite number is null, which JSON can say."""
        losses = [[step, loss if math.isfinite(loss) else None] for step, loss in self.losses]
        return {"losses": losses, "best_step": self.best_step, "best_loss": self.best_loss}


def read_evaluated(store: Store, commits: Sequence[CommitRef]) -> Evaluated | None:
    """The evaluations up to the newest training commit of `commits` that can be read; None if there are none."""
    for ref in commits:
        if ref.stage != "train":
            continue
        try:
            done = read_evaluations(CommitReader.open(store, LAYOUT, ref).manifest.meta)
        except (Damaged, NotCommitted):
            continue
        return _evaluated(done)
    return None


def told_evaluated(events: Sequence[Event]) -> Evaluated | None:
    """The evaluations as they were told when the training checkpoints were deleted; None if none were."""
    told = next((event.fields["evaluations"] for event in reversed(events) if event.kind == "tidied"), ())
    return _evaluated(read_evaluations({"evaluations": told}))


def _evaluated(done: Sequence[tuple[int, float]]) -> Evaluated | None:
    best_step, best_loss = best_evaluation(done) or (None, None)
    return Evaluated(tuple(done), best_step, best_loss) if done else None
