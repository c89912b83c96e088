"""Tidying up when nothing is being saved: after a run has ended, or once the model makes training state needless.

prune(store, layout, stage="train", keep=2)                              old commits and what broken saves left
delete_stage(store, layout, stage="train", by=model, fence=fence)        all of a stage, once the model is verified
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from checkpoints.attempts import AttemptLog
from checkpoints.best import Metric
from checkpoints.errors import NoGoodCommit, RunActive
from checkpoints.fence import Fence
from checkpoints.keys import MANIFEST, CommitRef, Layout
from checkpoints.lineage import counting_commits
from checkpoints.reader import CommitReader, list_commits
from checkpoints.retention import Retention, StageContents, list_stage
from checkpoints.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pruned:
    """What was deleted, or would be: commits, objects of saves that never became one, uploads that never ended."""

    commits: frozenset[CommitRef]
    leftovers: int
    uploads: int

    def __bool__(self) -> bool:
        return bool(self.commits or self.leftovers or self.uploads)


class _EndedFence(Fence):
    """Lets somebody outside tidy up a run that has ended: the newest attempt is this one still, and it is over."""

    def check(self) -> None:
        present = self.log.present()
        newest = max((number for number, kinds in present.items() if "claim" in kinds), default=0)
        if newest != self.number or "end" not in present.get(self.number, ()):
            raise RunActive(newest)


def prune(
    store: Store,
    layout: Layout,
    *,
    stage: str,
    keep: int,
    keep_every: int | None = None,
    best_by: Metric | None = None,
    dry_run: bool = False,
) -> Pruned:
    """Delete old commits of a stage of a run that has ended, and what broken saves of any stage left behind.

    Args:
        keep: the newest that stay, at least two; 0: none of the stage, once what a later stage made of it is verified.
        dry_run: delete nothing, only say what would go; verifies nothing.

    Raises:
        RunActive: the newest attempt has not ended: it tidies up by itself.
        NoGoodCommit: `keep` is 0, and no later stage has a commit that counts.
        Damaged: a manifest that stays cannot be read, or with `keep` 0 the later stage's bytes; nothing was deleted.
    """
    log = AttemptLog(store, layout)
    fence = _EndedFence(log, log.newest())
    fence.check()
    contents = {each.name: list_stage(store, layout, each) for each in layout.stages}
    if keep:
        rules = Retention(
            store, layout, stage=stage, fence=fence, keep=keep, keep_every=keep_every, best_by=best_by
        )  # fmt: skip
        doomed = rules.doomed(contents[stage])
    else:
        by = made_of(store, layout, stage)
        doomed = set(contents[stage].committed)
        if not dry_run:
            CommitReader.open(store, layout, by).verify()
    objects, leftovers = [], 0
    for name, one in contents.items():
        going = doomed if name == stage else set()
        unused = _unused(store, layout, one, going, others=() if keep else _later(contents, layout, name), fence=fence)
        objects += unused
        leftovers += sum(layout.parse_key(key)[0] not in going for key in unused)  # type: ignore[index]
    if not dry_run and (doomed or objects):
        _delete(store, layout, doomed, objects, fence)
    uploads = sum(_abort(store, layout, each.name, fence, dry_run=dry_run) for each in layout.stages)
    return Pruned(frozenset(doomed), leftovers, uploads)


def delete_stage(store: Store, layout: Layout, *, stage: str, by: CommitRef, fence: Fence) -> frozenset[CommitRef]:
    """Delete every commit of `stage` of this attempt and older ones, after reading all of `by`; returns them.

    Args:
        by: the commit of a later stage that makes them needless.
        fence: of this attempt, which saves nothing in that stage any more.

    Raises:
        Damaged, NotCommitted: `by` is not whole; nothing was deleted.
        Superseded: this attempt may not delete; nothing was deleted.
        StoreError: some may be deleted; calling again goes on.
    """
    CommitReader.open(store, layout, by).verify()
    contents = {each.name: list_stage(store, layout, each) for each in layout.stages}
    doomed = {ref for ref in contents[stage].committed if ref.attempt <= fence.number}
    objects = _unused(store, layout, contents[stage], doomed, others=_later(contents, layout, stage), fence=fence)
    _delete(store, layout, doomed, objects, fence)
    _abort(store, layout, stage, fence, dry_run=False)
    return frozenset(doomed)


def made_of(store: Store, layout: Layout, stage: str) -> CommitRef:
    """The newest commit that counts, if it is of a later stage than `stage`.

    Raises:
        NoGoodCommit: it is not, so the commits of `stage` are what the run goes on from.
    """
    counting = counting_commits(AttemptLog(store, layout).records(), list_commits(store, layout), layout)
    if not counting or layout.stage_index(counting[0].stage) <= layout.stage_index(stage):
        newest = f"the newest commit is {counting[0]}" if counting else "nothing is committed"
        raise NoGoodCommit(
            f"{store.uri}: {newest}, so nothing was made of the commits of stage {stage!r} yet, and they are what the "
            "run goes on from. Nothing was deleted. Let the run finish first, or keep at least 2."
        )
    return counting[0]


def _later(contents: dict[str, StageContents], layout: Layout, stage: str) -> list[CommitRef]:
    after = layout.stage_index(stage)
    return [ref for name, one in contents.items() if layout.stage_index(name) > after for ref in one.committed]


def _unused(
    store: Store,
    layout: Layout,
    contents: StageContents,
    going: Collection[CommitRef],
    *,
    others: Iterable[CommitRef],
    fence: Fence,
) -> list[str]:
    """Objects of commits that go, and of none at all, that no manifest which stays uses."""
    dead = {ref for ref in contents.objects if ref not in contents.committed and ref.attempt <= fence.number}
    candidates = [
        key for ref in [*going, *dead] for key in contents.objects[ref] if not key.endswith(f"/{MANIFEST}")
    ]  # fmt: skip
    if not candidates:
        return []
    used = set()
    for ref in [*(contents.committed - set(going)), *others]:
        manifest, prefix = CommitReader.open(store, layout, ref).manifest, layout.commit_prefix(ref)
        for entry in manifest.objects:
            used |= {source.prefix + source.name for _, _, source in entry.located(prefix)}
    return [key for key in candidates if key not in used]


def _delete(store: Store, layout: Layout, doomed: Collection[CommitRef], objects: list[str], fence: Fence) -> None:
    fence.check()
    store.delete([layout.manifest_key(ref) for ref in sorted(doomed, key=layout.sort_key)])
    store.delete(objects)
    logger.info("deleted %d commits and %d objects", len(doomed), len(objects))


def _abort(store: Store, layout: Layout, stage: str, fence: Fence, *, dry_run: bool) -> int:
    """Throw away the uploads of this attempt and older ones that never ended; how many, also if it only looks."""
    found = 0

    def wanted(key: str) -> bool:
        nonlocal found
        parsed = layout.parse_key(key)
        is_dead = parsed is not None and parsed[0].attempt <= fence.number
        found += is_dead
        return is_dead and not dry_run

    store.abort_unfinished(f"{layout.stage(stage).folder}/", wanted)
    return found
