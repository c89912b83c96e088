"""Which commits stay, and deleting the others: in two phases, manifest before objects, by the newest attempt alone.

What is to go is marked at one save and deleted at a later one, after the fence was asked again; so an attempt that lost
the run in between deletes nothing. An object goes when no manifest that stays uses it. Never deleted: the newest two
commits that count, and any attempt's base.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from checkpoints.best import Metric, best_readable
from checkpoints.fence import Fence
from checkpoints.keys import MANIFEST, CommitRef, Layout, Stage
from checkpoints.lineage import AttemptRecord, counting_commits
from checkpoints.manifest import DEFAULT_DIGEST, BlockSource, Manifest
from checkpoints.reader import CommitReader
from checkpoints.store import Store

logger = logging.getLogger(__name__)

ALWAYS_KEPT = 2
MIN_REFERENCE_BYTES = 64 * 2**10
"""Smaller blocks are stored again: a reference to them would keep an old commit's object alive for nothing."""


def known_blocks(
    manifest: Manifest, layout: Layout, *, digest: str = DEFAULT_DIGEST
) -> dict[tuple[int, str], BlockSource]:
    """Blocks of a commit that a later one may refer to instead of storing them again: (size, digest) -> place. Pure.

    Args:
        digest: the later one's algorithm. A commit of another one has nothing for it: digests of two algorithms say
            nothing about each other.
    """
    if manifest.digest != digest:
        return {}
    prefix = layout.commit_prefix(manifest.ref)
    return {
        (block.size, block.digest): source
        for entry in manifest.objects
        for _, block, source in entry.located(prefix)
        if block.size >= MIN_REFERENCE_BYTES
    }


def plan_retention(
    commits: Iterable[CommitRef],
    records: Sequence[AttemptRecord],
    layout: Layout,
    *,
    stage: str,
    attempt: int,
    keep: int,
    keep_every: int | None = None,
    pinned: Collection[CommitRef] = (),
) -> set[CommitRef]:
    """The commits of `stage` that attempt `attempt` may delete. Pure.

    Args:
        commits: all commits with a manifest, of every stage.
        keep: how many of the newest that count stay (at least two do).
        keep_every: positions divisible by it stay too.
        pinned: stay whatever else is said (the best by some metric, say).
    """
    commits = list(commits)
    counting = [ref for ref in counting_commits(records, commits, layout) if ref.stage == stage]
    stays = set(counting[: max(keep, ALWAYS_KEPT)]) | set(pinned)
    stays |= {record.base for record in records if record.base is not None}
    if keep_every is not None:
        stays |= {ref for ref in counting if ref.position % keep_every == 0}
    return {ref for ref in commits if ref.stage == stage and ref.attempt <= attempt and ref not in stays}


@dataclass(frozen=True)
class StageContents:
    """One listing of a stage's folder, sorted by commit."""

    objects: dict[CommitRef, list[str]]
    committed: frozenset[CommitRef]


def list_stage(store: Store, layout: Layout, stage: Stage) -> StageContents:
    """Everything that lies in a stage's folder and belongs to a commit, or would have."""
    objects: dict[CommitRef, list[str]] = {}
    committed = set()
    for key in store.list(f"{stage.folder}/"):
        parsed = layout.parse_key(key)
        if parsed is None:
            continue
        objects.setdefault(parsed[0], []).append(key)
        if parsed[1] == MANIFEST:
            committed.add(parsed[0])
    return StageContents(objects, frozenset(committed))


class Retention:
    """Deletes what `plan_retention` names; for the newest attempt only, from one thread.

    Args:
        fence: of this attempt; asked before anything is deleted.
        best_by: the best commit by this number stays.
    """

    def __init__(
        self,
        store: Store,
        layout: Layout,
        *,
        stage: str,
        fence: Fence,
        keep: int,
        keep_every: int | None = None,
        best_by: Metric | None = None,
    ) -> None:
        self._store, self._layout, self._stage, self._fence = store, layout, stage, fence
        self._keep, self._keep_every, self._best_by = keep, keep_every, best_by
        self._marked: set[CommitRef] = set()
        self._manifests: dict[CommitRef, Manifest] = {}
        self._swept_uploads = False

    def after_commit(self, manifest: Manifest) -> set[CommitRef]:
        """Delete what was marked before and is still to go, then mark anew; returns the commits deleted.

        Raises:
            Superseded: this attempt may not delete any more; nothing was deleted.
            Damaged: a manifest that stays cannot be read, so nobody knows what it uses; nothing was deleted.
            StoreError: some may be deleted; the next call goes on.
        """
        self._manifests[manifest.ref] = manifest
        contents = list_stage(self._store, self._layout, self._layout.stage(self._stage))
        doomed = self.doomed(contents)
        now = self._marked & doomed
        self._delete(contents, now, newest=manifest.ref)
        self._marked = doomed - now
        return now

    def doomed(self, contents: StageContents) -> set[CommitRef]:
        """What the rules let go of all that is there; deletes nothing.

        Raises:
            StoreError: the store cannot be asked.
        """
        records = self._fence.log.records()
        best = self._best(contents, records)
        return plan_retention(
            contents.committed,
            records,
            self._layout,
            stage=self._stage,
            attempt=self._fence.number,
            keep=self._keep,
            keep_every=self._keep_every,
            pinned=[best] if best else [],
        )

    def _best(self, contents: StageContents, records: Sequence[AttemptRecord]) -> CommitRef | None:
        if self._best_by is None:
            return None
        counting = counting_commits(records, contents.committed, self._layout)
        own = [ref for ref in counting if ref.stage == self._stage]
        return best_readable(own, self._manifest, self._best_by)  # one that is damaged is for the other rules to judge

    def _manifest(self, ref: CommitRef) -> Manifest:
        if ref not in self._manifests:
            self._manifests[ref] = CommitReader.open(self._store, self._layout, ref).manifest
        return self._manifests[ref]

    def _delete(self, contents: StageContents, now: set[CommitRef], *, newest: CommitRef) -> None:
        used = self._used_keys(contents.committed - now)
        leftovers = {ref for ref in contents.objects if ref not in contents.committed and self._is_dead(ref, newest)}
        manifests = [self._layout.manifest_key(ref) for ref in sorted(now, key=self._layout.sort_key)]
        objects = [
            key
            for ref in now | leftovers
            for key in contents.objects[ref]
            if key not in used and not key.endswith(f"/{MANIFEST}")
        ]
        if not manifests and not objects and self._swept_uploads:
            return
        self._fence.check()
        self._store.delete(manifests)
        self._store.delete(objects)
        if not self._swept_uploads:
            self._store.abort_unfinished(f"{self._layout.stage(self._stage).folder}/", self._is_old_upload)
            self._swept_uploads = True
        for ref in now:
            self._manifests.pop(ref, None)
        if manifests or objects:
            logger.info("deleted %d old commits of %s, %d objects", len(manifests), self._stage, len(objects))

    def _used_keys(self, staying: Iterable[CommitRef]) -> set[str]:
        used = set()
        for ref in staying:
            prefix = self._layout.commit_prefix(ref)
            for entry in self._manifest(ref).objects:
                used |= {source.prefix + source.name for _, _, source in entry.located(prefix)}
        return used

    def _is_dead(self, ref: CommitRef, newest: CommitRef) -> bool:
        """Whether nobody writes there any more: an older attempt's, or ours before the commit just made."""
        return ref.attempt < self._fence.number or (ref.attempt == newest.attempt and ref.position < newest.position)

    def _is_old_upload(self, key: str) -> bool:
        parsed = self._layout.parse_key(key)
        return parsed is not None and parsed[0].attempt < self._fence.number
