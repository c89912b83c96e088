"""An attempt's life in the store, and what has to hold after it, however it ended."""

from __future__ import annotations

import random
from functools import cache

from checkpoints.attempts import AttemptLog
from checkpoints.fence import Fence
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.reader import CommitReader, list_commits
from checkpoints.retention import Retention, known_blocks
from checkpoints.store import Store
from checkpoints.writer import CommitWriter

KIB = 2**10


@cache
def state_at(position: int) -> tuple[bytes, bytes]:
    """A state of which one part never changes, so that commits refer to each other."""
    return random.Random(0).randbytes(70 * KIB), random.Random(position).randbytes(3 * KIB)


def work(store: Store, acknowledged: list[CommitRef], number: int, first: int, last: int) -> None:
    """One attempt: claim, base, then a commit per position, with references and retention."""
    log = AttemptLog(store, TRAIN_ONLY)
    log.claim(number, {"number": number})
    counting = counting_commits(log.records(), list_commits(store, TRAIN_ONLY), TRAIN_ONLY)
    base, newest = None, None
    for ref in counting:
        newest = CommitReader.open(store, TRAIN_ONLY, ref)
        newest.verify()
        base = ref
        break
    log.put_base(number, base)
    fence = Fence(log, number)
    retention = Retention(store, TRAIN_ONLY, stage="train", fence=fence, keep=2)
    manifest = newest.manifest if newest else None
    for position in range(first, last):
        ref = CommitRef("train", position, number)
        known = known_blocks(manifest, TRAIN_ONLY) if manifest else {}
        writer = CommitWriter(store, TRAIN_ONLY, ref, fence=fence, known=known)
        frozen, changing = state_at(position)
        writer.put("frozen", frozen)
        writer.put("changing", changing)
        manifest = writer.publish(meta={"position": position})
        acknowledged.append(ref)
        retention.after_commit(manifest)


def check(store: Store, acknowledged: list[CommitRef]) -> list[CommitRef]:
    """Whatever happened: every commit that counts is whole, and none that was acknowledged is lost."""
    log = AttemptLog(store, TRAIN_ONLY)
    counting = counting_commits(log.records(), list_commits(store, TRAIN_ONLY), TRAIN_ONLY)
    for ref in counting:
        reader = CommitReader.open(store, TRAIN_ONLY, ref)
        assert (reader.read("frozen"), reader.read("changing")) == state_at(ref.position)
        assert reader.manifest.meta == {"position": ref.position}
    if acknowledged:
        assert counting, "a committed step was lost"
        assert counting[0].position >= acknowledged[-1].position
        assert set(acknowledged[-2:]) <= set(counting), "one of the newest two was deleted"
    return counting
