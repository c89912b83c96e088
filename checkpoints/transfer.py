"""Verify and copy commits: what `checkpoints verify` and `checkpoints copy` do.

A copy is complete in itself: blocks that the original referenced are stored in it. Every byte is checked as it is read,
its digest is computed again from what is written, and the manifest comes last; so an interrupted copy is no commit, and
copying again finishes it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints.attempts import AttemptLog
from checkpoints.errors import AlreadyExists, Damaged, NotCommitted
from checkpoints.keys import ATTEMPTS, CommitRef, Layout, parse_attempt_key
from checkpoints.lineage import counting_commits
from checkpoints.manifest import Manifest
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import BODY_DIGEST, Store
from checkpoints.writer import CommitWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CommitReport:
    """One commit, looked at: `problem` is None when every byte is as committed, `manifest` when it is unreadable."""

    ref: CommitRef
    counts: bool
    manifest: Manifest | None
    problem: str | None


def verify_commits(
    store: Store, layout: Layout, *, stage: str | None = None, refs: Iterable[CommitRef] | None = None
) -> Iterator[CommitReport]:
    """Read commits whole and say of each whether it is as it was committed; newest first, one at a time.

    What is deleted meanwhile is left out.

    Args:
        refs: which; default: every commit of `stage` (of all stages), whether it counts or not.

    Raises:
        StoreUnreachable, StorePermission: the store cannot be asked, which says nothing about the commits.
    """
    listed = list_commits(store, layout)
    counting = set(counting_commits(AttemptLog(store, layout).records(), listed, layout))
    wanted = list(refs) if refs is not None else [ref for ref in listed if stage in (None, ref.stage)]
    for ref in wanted:
        manifest, problem = None, None
        try:
            reader = CommitReader.open(store, layout, ref)
            manifest = reader.manifest
            reader.verify()
        except Damaged as exc:
            problem = str(exc)
        except NotCommitted:
            logger.info("%s was deleted while it was looked at", ref)
            continue
        yield CommitReport(ref, ref in counting, manifest, problem)


def copy_commit(source: Store, destination: Store, layout: Layout, ref: CommitRef) -> Manifest:
    """Copy one commit, verified, under the same name; returns the manifest at the destination.

    Copying what is there already checks that it is the same and does nothing. Memory: the largest object, once.

    Raises:
        Damaged: the source is not as it was committed; nothing becomes visible at the destination.
        NotCommitted: there is no such commit.
        AlreadyExists: the destination has another commit under this name.
    """
    reader = CommitReader.open(source, layout, ref)
    manifest = reader.manifest
    if destination.exists(layout.manifest_key(ref)):
        return _same_commit(CommitReader.open(destination, layout, ref).manifest, manifest, layout)
    writer = CommitWriter(destination, layout, ref, digest=manifest.digest)
    for entry in manifest.objects:
        cuts = [offset for offset, _, _ in entry.located("")]
        put = writer.put(entry.name, reader.read(entry.name), cuts=cuts)
        if [block.digest for block in put.blocks] != [block.digest for block in entry.blocks]:
            key = layout.commit_prefix(ref) + entry.name
            raise Damaged(key, "what was read and what was written differ: this machine's memory is not to be trusted")
    try:
        copied = writer.publish(world_size=manifest.world_size, fingerprint=manifest.fingerprint, meta=manifest.meta)
    except AlreadyExists:
        logger.info("%s was copied to %s by somebody else meanwhile", ref, destination.uri)
        return _same_commit(CommitReader.open(destination, layout, ref).manifest, manifest, layout)
    logger.info("copied %s to %s", ref, destination.uri)
    return copied


def copy_records(source: Store, destination: Store, layout: Layout) -> int:
    """Copy the attempt records (not the leases), so that the same commits count at the destination; how many.

    Raises:
        AlreadyExists: the destination has a different record under the same name: it belongs to another run.
        Damaged: a record at the source is unreadable.
    """
    copied = 0
    for key in source.list(ATTEMPTS):
        parsed = parse_attempt_key(key)
        if parsed is None or parsed[1] == "lease":
            continue
        body = source.get_json(key)
        if body is None:
            raise Damaged(key, "it is no JSON object, or its own digest does not fit it", source.uri)
        try:
            destination.put_once(key, content_of(body))
            copied += 1
        except AlreadyExists as exc:
            if exc.existing is None or content_of(exc.existing) != content_of(body):
                raise
    return copied


def copy_run(source: Store, destination: Store, layout: Layout, *, stage: str | None = None) -> Iterator[CommitRef]:
    """Copy every commit that counts, oldest first, then the attempt records; yields what was copied.

    The records come last: before them nothing counts at the destination, so half a copy is never started from.
    """
    records = AttemptLog(source, layout).records()
    for ref in reversed(counting_commits(records, list_commits(source, layout, stage), layout)):
        copy_commit(source, destination, layout, ref)
        yield ref
    copy_records(source, destination, layout)


def content_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a record that was put once says, without the store's own marks; those are made anew at every put."""
    return {name: value for name, value in body.items() if name not in ("nonce", BODY_DIGEST)}


def _same_commit(there: Manifest, here: Manifest, layout: Layout) -> Manifest:
    def shape(manifest: Manifest) -> Any:
        blocks = [(entry.name, [(block.size, block.digest) for block in entry.blocks]) for entry in manifest.objects]
        return sorted(blocks), dict(manifest.meta), manifest.fingerprint, manifest.world_size

    if shape(there) != shape(here):
        raise AlreadyExists(layout.manifest_key(here.ref), there.to_json())
    return there
