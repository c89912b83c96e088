"""Objects -> barrier -> manifest. A commit is there when its manifest is, and a failure on one rank reaches every rank.

writer = CommitWriter(store, layout, CommitRef("train", 400, 2), fence=fence)
writer.put("rows.jsonl", data)
writer.publish(meta={"rows": 100})
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

from checkpoints.barrier import Exchange
from checkpoints.errors import CheckpointError, Damaged, SaveFailed
from checkpoints.fence import Fence
from checkpoints.keys import MANIFEST, CommitRef, Layout
from checkpoints.manifest import DEFAULT_DIGEST, DIGESTS, MAX_BLOCK_BYTES, Block, BlockSource, Manifest, ObjectEntry
from checkpoints.store import Store

logger = logging.getLogger(__name__)

CHECK_THREADS = 16
"""Objects of older commits that are looked at at a time before a commit that refers to them: of a large frozen model
thousands, while the other ranks wait."""

KnownBlocks = Mapping[tuple[int, str], BlockSource]
"""(size, digest) -> where a block with these bytes lies already: what an incremental save may refer to. The digests are
of the writer's own algorithm (retention.known_blocks)."""


class CommitWriter:
    """Writes the objects of one commit and then its manifest. `put` may be called from several threads.

    Args:
        fence: asked right before the manifest is put and right after; None where nothing else can be running.
        known: blocks that need not be stored again; their commits are checked once more before the manifest is put.
    """

    def __init__(
        self,
        store: Store,
        layout: Layout,
        ref: CommitRef,
        *,
        fence: Fence | None = None,
        known: KnownBlocks | None = None,
        digest: str = DEFAULT_DIGEST,
    ) -> None:
        self._store, self._layout, self._fence = store, layout, fence
        self._known: KnownBlocks = known or {}
        self._digest_name, self._digest = digest, DIGESTS[digest]
        self._lock = threading.Lock()
        self._entries: dict[str, ObjectEntry] = {}
        self.ref = ref
        self.prefix = layout.commit_prefix(ref)

    @property
    def entries(self) -> tuple[ObjectEntry, ...]:
        """The objects put so far, by name."""
        with self._lock:
            return tuple(self._entries[name] for name in sorted(self._entries))

    def put(self, name: str, data: bytes | memoryview, *, cuts: Iterable[int] = ()) -> ObjectEntry:
        """Store one object.

        Args:
            name: relative to the commit's folder, once per writer.
            data: what a reader will see.
            cuts: offsets at which a block has to begin, so that what changes and what does not share no block.

        Raises:
            StoreFull, StorePermission, StoreUnreachable, StoreError: nothing is committed then.
        """
        with self._lock:
            if name in self._entries or name == MANIFEST:
                raise ValueError(f"{self.prefix}{name} was put before: an object of a commit is written once")
            self._entries[name] = ObjectEntry(name, ())
        view = memoryview(data).cast("B")
        blocks, new = [], []
        for start, end in block_spans(len(view), cuts):
            digest = self._digest(view[start:end])
            source = self._known.get((end - start, digest))
            blocks.append(Block(end - start, digest, source))
            if source is None:
                new.append(view[start:end])
        entry = ObjectEntry(name, tuple(blocks))
        if len(new) == len(blocks):
            self._store.put(self.prefix + name, view)
        elif new:
            self._store.put(self.prefix + name, b"".join(new))
        with self._lock:
            self._entries[name] = entry
        logger.debug("stored %s%s: %d of %d bytes", self.prefix, name, entry.stored_bytes, entry.size)
        return entry

    def publish(
        self,
        entries: Iterable[ObjectEntry] | None = None,
        *,
        world_size: int = 1,
        fingerprint: str = "",
        references: Sequence[str] = (),
        meta: Mapping[str, Any],
    ) -> Manifest:
        """Put the manifest, once: with that the commit is there.

        Args:
            entries: the objects of all ranks; default: what this writer put.
            references: folders of other commits to pin besides those that blocks refer to.
            meta: the caller's JSON, readable without loading anything else.

        Raises:
            Superseded: another attempt owns the run. If that is found only after the manifest was put, the commit is
                there and may not count; so one that was acknowledged always does.
            AlreadyExists: this very commit was made before.
            Damaged: a referenced object is gone or has another size.
        """
        objects = tuple(entries) if entries is not None else self.entries
        used = {block.source.prefix for entry in objects for block in entry.blocks if block.source}
        manifest = Manifest(
            ref=self.ref,
            world_size=world_size,
            fingerprint=fingerprint,
            objects=objects,
            references=tuple(sorted(used | set(references))),
            meta=meta,
            digest=self._digest_name,
        )
        self._check_references(objects)
        if self._fence is not None:
            self._fence.check()
        self._store.put_once(self._layout.manifest_key(self.ref), manifest.to_json())
        if self._fence is not None:
            # Nobody had claimed the run by now, so whoever does lists this commit; a put that hung may arrive too late.
            self._fence.check()
        counted = "1 object" if len(objects) == 1 else f"{len(objects)} objects"
        logger.info("committed %s: %d bytes in %s", self.ref, manifest.size_bytes, counted)
        return manifest

    def _check_references(self, objects: Iterable[ObjectEntry]) -> None:
        needed: dict[str, int] = {}
        for entry in objects:
            for block in entry.blocks:
                if block.source:
                    key = block.source.prefix + block.source.name
                    needed[key] = max(needed.get(key, 0), block.source.offset + block.size)
        keys = sorted(needed)
        with ThreadPoolExecutor(CHECK_THREADS, thread_name_prefix="check") as pool:
            sizes = list(pool.map(self._store.size, keys))
        for key, found in zip(keys, sizes, strict=True):
            size = needed[key]
            if found is None or found < size:
                problem = "it is gone" if found is None else f"of {size} bytes in use {found} are there"
                raise Damaged(key, f"{self.ref} refers to it and {problem}", self._store.uri)


def commit_together(
    writer: CommitWriter,
    exchange: Exchange,
    put_objects: Callable[[CommitWriter], None],
    *,
    fingerprint: str = "",
    meta: Mapping[str, Any],
) -> Manifest:
    """All ranks store their objects, meet, and rank 0 publishes; all ranks return the manifest or all raise.

    Args:
        put_objects: stores this rank's objects with `writer.put`.
        meta: rank 0's is written.

    Raises:
        SaveFailed: at least one rank could not store its part, or stored it as another commit; says which and why. If
            all that failed met the same kind of CheckpointError (StoreFull, ...), that kind.
        CheckpointError: what kept rank 0 from publishing, the same class on every rank.
    """
    failure: CheckpointError | str | None = None
    try:
        put_objects(writer)
    except CheckpointError as exc:
        failure = exc
    except Exception as exc:
        # It travels to the other ranks, and not every library's exception can: its words can.
        failure = f"{type(exc).__name__}: {exc}"
        logger.exception("rank %d could not store its part of %s", exchange.rank, writer.ref)
    gathered = exchange.gather((str(writer.ref), list(writer.entries), failure))
    failures = {rank: error for rank, (_, _, error) in enumerate(gathered) if error is not None}
    if not failures:  # a manifest speaks of one folder: what another rank put into another one would not be found
        failures = {
            rank: f"it stored {ref}, while rank 0 stored {gathered[0][0]}: all ranks save the same position at a time"
            for rank, (ref, _, _) in enumerate(gathered)
            if ref != gathered[0][0]
        }
    if failures:
        raise SaveFailed.of(failures, str(writer.ref))
    outcome: Manifest | CheckpointError | None = None
    if exchange.rank == 0:
        objects = [entry for _, entries, _ in gathered for entry in entries]
        try:
            outcome = writer.publish(objects, world_size=exchange.world_size, fingerprint=fingerprint, meta=meta)
        except CheckpointError as exc:
            outcome = exc
        except Exception as exc:  # the others wait for an answer, whatever it is
            logger.exception("%s could not be published", writer.ref)
            outcome = SaveFailed({0: f"{type(exc).__name__}: {exc}"}, str(writer.ref))
    outcome = exchange.gather(outcome)[0]
    if isinstance(outcome, Manifest):
        return outcome
    assert outcome is not None, "rank 0 always has an outcome"
    raise outcome


def block_spans(size: int, cuts: Iterable[int] = ()) -> Iterable[tuple[int, int]]:
    """Split `size` bytes into blocks [start, end) of at most 16 MiB, a new one at every cut. Pure."""
    edges = sorted({0, size, *(cut for cut in cuts if 0 < cut < size)})
    for start, end in pairwise(edges):
        for first in range(start, end, MAX_BLOCK_BYTES):
            yield first, min(first + MAX_BLOCK_BYTES, end)
