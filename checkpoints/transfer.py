"""Verify and copy commits: what `checkpoints verify` and `checkpoints copy` do.

A copy is complete in itself: blocks that the original referenced are stored in it. Every byte is checked as it is read,
its digest is computed again from what is written, and the manifest comes last; so an interrupted copy is no commit, and
copying again finishes it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints.attempts import AttemptLog
from checkpoints.errors import AlreadyExists, Damaged, NotCommitted, ObjectMissing, RunActive
from checkpoints.keys import ATTEMPTS, CommitRef, Layout, attempt_key, parse_attempt_key
from checkpoints.lineage import counting_commits
from checkpoints.manifest import Manifest
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import BODY_DIGEST, Store
from checkpoints.writer import CommitWriter

logger = logging.getLogger(__name__)

COPIED_KINDS = ("claim", "base_copy", "base", "end")


@dataclass(frozen=True)
class CommitReport:
    """One commit, looked at: `problem` is None when every byte is as committed, `manifest` when it is unreadable."""

    ref: CommitRef
    counts: bool
    manifest: Manifest | None
    problem: str | None


def verify_commits(store: Store, layout: Layout) -> Iterator[CommitReport]:
    """Read every commit whole, whether it counts or not, and say of each whether it is as it was committed.

    Newest first, one at a time; what is deleted meanwhile is left out.

    Raises:
        StoreUnreachable, StorePermission: the store cannot be asked, which says nothing about the commits.
    """
    listed = list_commits(store, layout)
    counting = set(counting_commits(AttemptLog(store, layout).records(), listed, layout))
    for ref in listed:
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


def check_same_run(
    source: Store,
    destination: Store,
    layout: Layout,
    *,
    sample_s: float = 15.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Refuse a destination that went on by itself: the commits of two lines would count there as one.

    What the destination has may lag behind the source, or be half a copy; it must not say anything else.

    Args:
        sample_s: how long to look at the lease of an attempt there that has no end; longer than between two renewals.

    Raises:
        AlreadyExists: an attempt's record there is unknown to the source, or says something else.
        RunActive: an attempt there is alive.
    """
    for key in destination.list(ATTEMPTS):
        parsed = parse_attempt_key(key)
        if parsed is None or parsed[1] == "lease":
            continue
        here, there = _peek(source, key), _peek(destination, key)
        if here is _MISSING and parsed[1] != "claim":
            continue  # its claim decides; only the destination's launcher may have recorded that it ended, say
        if here is not None and (here is _MISSING or there is None or not _is_same(parsed[1], here, there)):
            raise AlreadyExists(key, there or None, _other_line_words(source, destination, key, parsed[0]))
    log = AttemptLog(destination, layout)
    newest = log.newest()
    kinds = log.present().get(newest, frozenset())
    if "lease" in kinds and "end" not in kinds:
        before = log.read_lease(newest)
        sleep(sample_s)
        if log.read_lease(newest) != before:
            raise RunActive(newest)


def copy_records(source: Store, destination: Store, layout: Layout, *, kinds: Collection[str] = COPIED_KINDS) -> int:
    """Copy the attempt records (not the leases), so that the same commits count at the destination; how many.

    A base that is damaged at the source is copied from its copy; any other record that is damaged there, as empty.

    Args:
        kinds: of records; a base goes with its copy, which is made where the source has none.

    Raises:
        AlreadyExists: the destination has a different record under the same name: it belongs to another run.
        Damaged: a base at the source is unreadable, and so is its copy.
    """
    copied = 0
    for record in AttemptLog(source, layout).records():
        base = {"base": record.base.to_json() if record.base else None} if record.has_base else None
        for kind, body in (("claim", record.claim), ("base_copy", base), ("base", base), ("end", record.end)):
            if kind not in kinds or body is None:
                continue
            origin = {_ORIGIN: _identity(body)} if kind == "claim" and body else {}
            try:
                destination.put_once(attempt_key(record.number, kind), content_of(body) | origin)
                copied += 1
            except AlreadyExists as exc:
                if exc.existing is None or (body and not _is_same(kind, body, exc.existing)):
                    raise
    return copied


def copy_run(
    source: Store,
    destination: Store,
    layout: Layout,
    *,
    sample_s: float = 15.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[CommitRef]:
    """Copy every commit that counts, oldest first, between the attempt records; yields what was copied.

    The claims come first: whoever goes on at the destination meanwhile takes another number, so that nothing of ours
    counts among its commits. Bases and ends come last: before them nothing that is copied counts there, so half a copy
    is never started from.

    Args:
        sample_s, sleep: as for `check_same_run`.

    Raises:
        AlreadyExists: the destination has gone on by itself, or is another run; nothing was copied.
        RunActive: the destination is alive; nothing was copied.
        Damaged: the source is not as it was committed.
    """
    check_same_run(source, destination, layout, sample_s=sample_s, sleep=sleep)
    records = AttemptLog(source, layout).records()
    copy_records(source, destination, layout, kinds=("claim",))
    for ref in reversed(counting_commits(records, list_commits(source, layout), layout)):
        copy_commit(source, destination, layout, ref)
        yield ref
    copy_records(source, destination, layout, kinds=[kind for kind in COPIED_KINDS if kind != "claim"])


_MISSING: Mapping[str, Any] = {}
_ORIGIN = "copy_of"
"""In the copy of a claim: the nonce of the first one. Two starts may say the same in all but that."""


def _identity(claim: Mapping[str, Any]) -> Any:
    return claim.get(_ORIGIN, claim.get("nonce"))


def _is_same(kind: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return content_of(one) == content_of(other) and (kind != "claim" or _identity(one) == _identity(other))


def _peek(store: Store, key: str) -> Mapping[str, Any] | None:
    """A record's body; None if it is unreadable, `_MISSING` if it is not there."""
    try:
        return store.get_json(key)
    except ObjectMissing:
        return _MISSING


def _other_line_words(source: Store, destination: Store, key: str, number: int) -> str:
    return (
        f"{destination.uri}/{key} says that attempt {number} is not the one that {source.uri} has (if it has any): the "
        "run went on there by itself, or another one lies there. Copied together, the two would count as one line, so "
        "nothing was copied. Copy to a store or folder where the run is not, or go on from the one that got further."
    )


def content_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a record that was put once says, without the store's own marks; those are made anew at every put."""
    return {name: value for name, value in body.items() if name not in ("nonce", BODY_DIGEST, _ORIGIN)}


def _same_commit(there: Manifest, here: Manifest, layout: Layout) -> Manifest:
    def shape(manifest: Manifest) -> Any:
        blocks = [(entry.name, [(block.size, block.digest) for block in entry.blocks]) for entry in manifest.objects]
        meta = json.dumps(manifest.meta, sort_keys=True)  # as text: a loss that is NaN is not equal to itself
        return manifest.digest, sorted(blocks), meta, manifest.fingerprint, manifest.world_size

    if shape(there) != shape(here):
        raise AlreadyExists(layout.manifest_key(here.ref), there.to_json())
    return there
