"""The limits of a run's recoveries: how often, how long, for how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RecoveryPolicy:
    """The limits of a run's recoveries. Times are in seconds, on the clock of `now`.

    Attributes:
        recover: next-region moves on from the region that was lost; cheapest orders by price alone.
        on_demand: when-needed takes an on-demand candidate first where cluster/on_demand.py says so; in any other case
            they come after every spot one, if the plan has any.
        max_crashes: crashes without a new commit between them before the run is stopped.
        max_memory_stops: the same for running out of memory; each try has half the micro batch of the one before
            (cluster/node/memory_stops.py), and one that cannot be halved is the last.
        max_divergences: the same for a loss that is not finite: a start from the same commit repeats every bit, so one
            more tells a broken GPU from a training that cannot go on.
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
    max_memory_stops: int = 8
    max_divergences: int = 2
    max_store_failures: int = 3
    max_fruitless: int = 12
    max_wait_s: float = 21_600.0
    first_backoff_s: float = 5.0
    max_backoff_s: float = 300.0
    max_usd: float | None = None
    deadline_at_s: float | None = None
    restart_s: float = 0.0
