"""What a finished run produced, read back from the store byte by byte: weights, losses, rows; and how two runs differ.

Nothing here trusts a recorded digest: the drill compares what is there, so a single flipped bit shows.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alpaca_jobs.data.rows import Row, parse_rows
from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.keys import CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Store
from cluster.node.stored_rows import ROWS_OBJECT

WEIGHT_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class RunFacts:
    """One run's results.

    Attributes:
        weights_digest: SHA-256 over the exported weight files, names and bytes, in the order of their names.
        losses: training loss of every step as `float.hex` text, in order of steps from 1; bits, not decimals. Where a
            command of the user's own trained: of the steps that it logged.
        loss_steps: the steps of `losses`.
        losses_by_attempt: the same for every attempt's own commits, counting or not: {attempt: {step: loss}}.
        rows: the rows that were trained on.
    """

    weights_digest: str
    losses: tuple[str, ...]
    losses_by_attempt: Mapping[int, Mapping[int, str]]
    rows: tuple[Row, ...]
    loss_steps: tuple[int, ...] = ()

    @property
    def num_steps(self) -> int:
        """The last step whose loss is known."""
        return max(self.loss_steps, default=len(self.losses))

    @property
    def losses_digest(self) -> str:
        """SHA-256 over the losses, one per line."""
        return hashlib.sha256("\n".join(self.losses).encode()).hexdigest()


@dataclass(frozen=True)
class RunDifference:
    """How a disturbed run differs from an undisturbed one.

    Attributes:
        largest_loss_difference: over all steps both have; 0.0 when every bit agrees.
        corrupt_resumes: attempts that recorded a loss which the undisturbed run does not have at that step.
    """

    bit_identical: bool
    rows_lost: int
    rows_duplicated: int
    largest_loss_difference: float
    corrupt_resumes: int


def read_run_facts(store: Store) -> RunFacts:
    """Read a run's results from its folder of the store.

    Raises:
        ObjectMissing, NotCommitted: the run has not finished.
    """
    everything = list_commits(store, LAYOUT)
    counting = counting_commits(AttemptLog(store, LAYOUT).records(), everything, LAYOUT)
    by_attempt: dict[int, dict[int, str]] = {}
    for ref in everything:
        if ref.stage == "train":
            by_attempt.setdefault(ref.attempt, {}).update(_losses(store, ref))
    losses: dict[int, str] = {}
    for ref in sorted((ref for ref in counting if ref.stage == "train"), key=LAYOUT.sort_key):
        losses.update(_losses(store, ref))
    parts = sorted((ref for ref in counting if ref.stage == "generate"), key=LAYOUT.sort_key)
    rows = [row for ref in parts for row in parse_rows(_object(store, ref, ROWS_OBJECT), str(ref))]
    return RunFacts(
        weights_digest=_weights_digest(store, counting),
        losses=tuple(losses[step] for step in sorted(losses)),
        losses_by_attempt=by_attempt,
        rows=tuple(rows),
        loss_steps=tuple(sorted(losses)),
    )


def compare_runs(undisturbed: RunFacts, disturbed: RunFacts, *, tolerance: float = 0.0) -> RunDifference:
    """Hold a disturbed run against an undisturbed one of the same job.

    Args:
        tolerance: largest difference of a loss that still counts as the same resume; 0.0 asks for the same bits.
    """
    wanted = Counter(_identity(row) for row in undisturbed.rows)
    found = Counter(_identity(row) for row in disturbed.rows)
    pairs = list(zip(undisturbed.losses, disturbed.losses, strict=False))
    steps = undisturbed.loss_steps or range(1, len(undisturbed.losses) + 1)
    expected = dict(zip(steps, undisturbed.losses, strict=True))
    corrupt = sum(
        any(_far(expected.get(step), loss, tolerance) for step, loss in losses.items())
        for losses in disturbed.losses_by_attempt.values()
    )
    return RunDifference(
        bit_identical=undisturbed.weights_digest == disturbed.weights_digest
        and undisturbed.losses == disturbed.losses
        and undisturbed.rows == disturbed.rows,
        rows_lost=sum((wanted - found).values()),
        rows_duplicated=sum((found - wanted).values()),
        largest_loss_difference=max((abs(float.fromhex(a) - float.fromhex(b)) for a, b in pairs), default=0.0),
        corrupt_resumes=corrupt,
    )


def _far(expected: str | None, found: str, tolerance: float) -> bool:
    if expected is None or tolerance == 0.0:
        return expected != found
    return not abs(float.fromhex(expected) - float.fromhex(found)) <= tolerance


def _identity(row: Row) -> tuple[str, str, str]:
    return (row.instruction, row.input, row.output)


def _losses(store: Store, ref: CommitRef) -> dict[int, str]:
    meta = CommitReader.open(store, LAYOUT, ref).manifest.meta
    if "trainer_state" in meta:  # a Hugging Face Trainer's, from a command of the user's own
        logged = meta["trainer_state"].get("log_history") or []
        return {int(entry["step"]): float(entry["loss"]).hex() for entry in logged if "loss" in entry}
    if "losses" not in meta:
        return {}
    losses = meta["losses"]
    return {int(losses["first_step"]) + place: text for place, text in enumerate(losses["hex"])}


def _object(store: Store, ref: CommitRef, name: str) -> bytes:
    return store.get(LAYOUT.commit_prefix(ref) + name)


def _weights_digest(store: Store, counting: Sequence[CommitRef]) -> str:
    exported = next((ref for ref in counting if ref.stage == "export"), None)
    digest = hashlib.sha256()
    if exported is not None:
        prefix = LAYOUT.commit_prefix(exported)
        for key in store.list(prefix):
            if key.endswith(WEIGHT_SUFFIX):
                data = store.get(key)
                digest.update(json.dumps([key.removeprefix(prefix), len(data)]).encode())
                digest.update(data)
    return digest.hexdigest()
