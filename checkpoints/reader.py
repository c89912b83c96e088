"""What is committed, and its bytes, verified block by block. A reader trusts the manifest and nothing else.

newest = list_commits(store, layout, "train")[0]
data = CommitReader.open(store, layout, newest).read("rows.jsonl")
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from checkpoints.errors import Damaged, NotCommitted, ObjectMissing
from checkpoints.keys import MANIFEST, CommitRef, Layout
from checkpoints.manifest import DIGESTS, MAX_BLOCK_BYTES, Block, BlockSource, Manifest, ObjectEntry
from checkpoints.store import Store

READ_THREADS = 4
COPY_BYTES = 64 * 2**20
"""Of an object in memory at a time while a commit is copied to a folder."""
_OF_THREAD = threading.local()


def list_commits(store: Store, layout: Layout, stage: str | None = None) -> list[CommitRef]:
    """Every commit with a manifest, newest first, whether it counts or not; one fresh listing per stage."""
    stages = [layout.stage(stage)] if stage is not None else list(layout.stages)
    found = []
    for each in stages:
        refs = (layout.parse_manifest_key(key) for key in store.list(f"{each.folder}/"))
        found += [ref for ref in refs if ref is not None]
    return sorted(found, key=layout.sort_key, reverse=True)


@dataclass(frozen=True)
class PlacedBlock:
    """A block of a named object: its offset there as a reader sees it, and where its bytes lie."""

    name: str
    offset: int
    block: Block
    source: BlockSource


def group_blocks(blocks: Iterable[PlacedBlock]) -> list[tuple[PlacedBlock, ...]]:
    """Put blocks that lie one after the other in the store together, up to 16 MiB, to be read by one request. Pure."""
    spans: list[list[PlacedBlock]] = []
    size = 0
    for placed in blocks:
        last = spans[-1][-1] if spans else None
        follows = (
            last is not None
            and (last.source.prefix, last.source.name) == (placed.source.prefix, placed.source.name)
            and last.source.offset + last.block.size == placed.source.offset
        )
        if follows and size + placed.block.size <= MAX_BLOCK_BYTES:
            spans[-1].append(placed)
            size += placed.block.size
        else:
            spans.append([placed])
            size = placed.block.size
    return [tuple(span) for span in spans]


def thread_scratch() -> memoryview:
    """16 MiB (MAX_BLOCK_BYTES) that belong to this thread: what it held is lost at the thread's next call."""
    if not hasattr(_OF_THREAD, "scratch"):
        _OF_THREAD.scratch = memoryview(bytearray(MAX_BLOCK_BYTES))
    scratch: memoryview = _OF_THREAD.scratch
    return scratch


class CommitReader:
    """Reads one commit. Safe for use from several threads; every byte it returns was checked against its digest."""

    def __init__(self, store: Store, layout: Layout, manifest: Manifest) -> None:
        self._store, self._layout = store, layout
        self._digest = DIGESTS[manifest.digest]
        self._prefix = layout.commit_prefix(manifest.ref)
        self.manifest = manifest

    @classmethod
    def open(cls, store: Store, layout: Layout, ref: CommitRef) -> CommitReader:
        """Read the manifest of `ref`.

        Raises:
            NotCommitted: there is none.
            Damaged: it cannot be understood, or belongs to another commit.
        """
        key = layout.manifest_key(ref)
        try:
            body = store.get_record(key, advice=None)
        except ObjectMissing as exc:
            raise _not_committed(store, layout, ref) from exc
        try:
            manifest = Manifest.from_json(body)
        except ValueError as exc:
            raise Damaged(key, str(exc), store.uri) from exc
        if manifest.ref != ref:
            raise Damaged(key, f"it is the manifest of {manifest.ref}", store.uri)
        return cls(store, layout, manifest)

    def read(self, name: str) -> bytes:
        """The whole object `name`, verified.

        Raises:
            KeyError: the commit has no such object.
            Damaged: the bytes are not those that were committed.
            NotCommitted: the commit was deleted meanwhile.
        """
        spans = group_blocks(self.blocks(name))
        if len(spans) == 1:
            return b"".join(self.read_span(spans[0]))
        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read") as pool:
            return b"".join(part for parts in pool.map(self.read_span, spans) for part in parts)

    def copy_to(self, folder: Path) -> dict[str, int]:
        """Write every object to a file below `folder`, verified, in bounded memory; returns their sizes by name.

        Raises:
            Damaged, NotCommitted: as for `read`; what was written by then stays.
        """
        sizes = {}
        for entry in self.manifest.objects:
            target = folder / entry.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for start in range(0, entry.size, COPY_BYTES):
                    file.write(self.read_range(entry.name, start, min(COPY_BYTES, entry.size - start)))
            sizes[entry.name] = entry.size
        return sizes

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of `name` from `start` on; reads and verifies the blocks they lie in, and only those.

        Raises:
            ValueError: the object is shorter.
            Damaged, NotCommitted, KeyError: as for `read`.
        """
        size = self._entry(name).size
        if start < 0 or length < 0 or start + length > size:
            raise ValueError(f"{self._prefix}{name} has {size} bytes: there are no {length} from {start} on")
        parts = []
        for span in group_blocks(self.blocks(name, start, length)):
            for placed, data in zip(span, self.read_span(span), strict=True):
                parts.append(data[max(0, start - placed.offset) : start + length - placed.offset])
        return b"".join(parts)

    def blocks(self, name: str, start: int = 0, length: int | None = None) -> Iterator[PlacedBlock]:
        """The blocks of `name` that hold any of the bytes from `start` on, in order."""
        entry = self._entry(name)
        end = entry.size if length is None else start + length
        for offset, block, source in entry.located(self._prefix):
            if offset < end and offset + block.size > start:
                yield PlacedBlock(name, offset, block, source)

    def read_span(self, span: Sequence[PlacedBlock], scratch: memoryview | None = None) -> list[memoryview]:
        """The bytes of each block of a span that `group_blocks` made, verified; one request.

        Args:
            scratch: room for the span's bytes (16 MiB, MAX_BLOCK_BYTES, are always enough), which are read into it and
                returned in it: one for each thread, used again and again, saves half of what reading costs.

        Raises:
            Damaged, NotCommitted: as for `read`.
        """
        source = span[0].source
        key = source.prefix + source.name
        size = sum(placed.block.size for placed in span)
        try:
            if scratch is None:
                whole = memoryview(self._store.get_range(key, source.offset, size))
            else:
                whole = scratch[: self._store.get_into(key, source.offset, scratch[:size])]
        except ObjectMissing as exc:
            if not self._store.exists(self._layout.manifest_key(self.manifest.ref)):
                raise _not_committed(self._store, self._layout, self.manifest.ref) from exc
            raise Damaged(key, "the object is missing", self._store.uri) from exc
        parts, start = [], 0
        for placed in span:
            part = whole[start : start + placed.block.size]
            self._check(placed, part)
            parts.append(part)
            start += placed.block.size
        return parts

    def _check(self, placed: PlacedBlock, data: memoryview) -> None:
        source, block = placed.source, placed.block
        words = f"block of {block.size} bytes at offset {source.offset}"
        if len(data) != block.size:
            problem = f"{words}: only {len(data)} bytes are there (truncated)"
            raise Damaged(source.prefix + source.name, problem, self._store.uri)
        digest = self._digest(data)
        if digest != block.digest:
            problem = f"{words}: its {self.manifest.digest} is {digest[:16]}…, committed was {block.digest[:16]}…"
            raise Damaged(source.prefix + source.name, problem, self._store.uri)

    def verify(self, *, part: int = 0, parts: int = 1) -> None:
        """Read every block of every object; or one of `parts` about equal shares of them, so that ranks can share.

        Raises:
            Damaged: names the first object that is not as committed.
        """
        spans = group_blocks(placed for entry in self.manifest.objects for placed in self.blocks(entry.name))[
            part::parts
        ]
        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="verify") as pool:
            for _ in pool.map(self._verify_span, spans):
                pass

    def _verify_span(self, span: Sequence[PlacedBlock]) -> None:
        self.read_span(span, thread_scratch())

    def _entry(self, name: str) -> ObjectEntry:
        entry = self.manifest.by_name.get(name)
        if entry is None:
            raise KeyError(f"{self._prefix} has no object {name!r}, only {sorted(self.manifest.by_name)}")
        return entry


def _not_committed(store: Store, layout: Layout, ref: CommitRef) -> NotCommitted:
    prefix = layout.commit_prefix(ref)
    others = [key for key in store.list(prefix) if key != prefix + MANIFEST]
    newest = next((str(other) for other in list_commits(store, layout, ref.stage)), "none")
    return NotCommitted(
        prefix,
        f"{store.uri}/{prefix.rstrip('/')} is not committed: {len(others)} objects are there, {MANIFEST} is not. "
        f"The save was interrupted, or the commit was deleted to make room. Newest commit of this stage: {newest}.",
    )
