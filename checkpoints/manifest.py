"""Manifest: the record that makes objects a commit. Its presence is the commit; it says what every byte must be.

An object is a row of blocks of at most 16 MiB, each with its digest, so that a ranged read can be verified too. A block
lies in the object of its own commit, or (incremental saves) in an object of an older commit, which `references` lists.

    {"format_version": 1, "stage": "train", "position": 400, "attempt": 2, "world_size": 2, "digest": "xxh3_128",
     "fingerprint": "...", "references": ["checkpoints/step-00000300/attempt-000001/"],
     "objects": [{"name": "rank-00000-0000.bin", "blocks": [[16777216, "ab.."], [4096, "cd..", 0, "rank-...", 0]]}],
     "meta": {...}}

A block is [size, digest], or [size, digest, index into references, object's name there, offset there].

Digests are there to find damage: flipped bits, truncation, the bytes of another save. They are no defence against
somebody who can write to the store, whatever the algorithm: who can change a block can change the manifest as well.
So the default is the fastest good hash, not a cryptographic one, with which blocks that differ on purpose can be made
to look equal. Every manifest names its own; those of other algorithms are read and verified as before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import xxhash

from checkpoints.keys import CommitRef

FORMAT_VERSION = 1
MAX_BLOCK_BYTES = 16 * 2**20

DIGESTS: dict[str, Callable[[bytes | memoryview], str]] = {
    "xxh3_128": xxhash.xxh3_128_hexdigest,
    "sha256": lambda data: hashlib.sha256(data).hexdigest(),
    "blake2b": lambda data: hashlib.blake2b(data, digest_size=32).hexdigest(),
}
"""Digest algorithms a reader knows. All let other threads run meanwhile."""

DEFAULT_DIGEST = "xxh3_128"
"""Measured 2026-11-22, CPU time of one core of a Xeon with SHA extensions, 16 MiB blocks: xxh3_128 25 GB/s, sha256
1.7 GB/s, blake2b 0.9 GB/s. Without these extensions, as on many GPU machines, sha256 is several times slower still."""


@dataclass(frozen=True)
class BlockSource:
    """Where a referenced block lies: in which commit's folder, in which object, from which byte on."""

    prefix: str
    name: str
    offset: int


@dataclass(frozen=True)
class Block:
    """`size` bytes and their digest; `source` is None for a block stored in the object itself."""

    size: int
    digest: str
    source: BlockSource | None = None


@dataclass(frozen=True)
class ObjectEntry:
    """One named object of a commit: its blocks in order."""

    name: str
    blocks: tuple[Block, ...]

    @cached_property
    def size(self) -> int:
        """Bytes a reader sees."""
        return sum(block.size for block in self.blocks)

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes that lie under this object's own key; the referenced blocks lie elsewhere."""
        return sum(block.size for block in self.blocks if block.source is None)

    def located(self, prefix: str) -> list[tuple[int, Block, BlockSource]]:
        """Every block with its offset in the object as a reader sees it, and the place where its bytes lie."""
        found, offset, stored = [], 0, 0
        for block in self.blocks:
            found.append((offset, block, block.source or BlockSource(prefix, self.name, stored)))
            offset += block.size
            if block.source is None:
                stored += block.size
        return found


@dataclass(frozen=True)
class Manifest:
    """What was committed.

    `world_size` is the number of ranks that saved; `fingerprint` stands for what changes the mathematics; `references`
    are the folders (relative to the run) of older commits that hold blocks of this one; `meta` is the caller's JSON.
    """

    ref: CommitRef
    world_size: int
    fingerprint: str
    objects: tuple[ObjectEntry, ...]
    references: tuple[str, ...]
    meta: Mapping[str, Any]
    digest: str = DEFAULT_DIGEST
    format_version: int = FORMAT_VERSION

    @cached_property
    def by_name(self) -> Mapping[str, ObjectEntry]:
        return {entry.name: entry for entry in self.objects}

    @property
    def size_bytes(self) -> int:
        """Bytes of all objects as a reader sees them."""
        return sum(entry.size for entry in self.objects)

    @property
    def stored_bytes(self) -> int:
        """Bytes this commit put into the store itself, without the manifest."""
        return sum(entry.stored_bytes for entry in self.objects)

    def to_json(self) -> dict[str, Any]:
        index = {prefix: number for number, prefix in enumerate(self.references)}
        return {
            "format_version": self.format_version,
            **self.ref.to_json(),
            "world_size": self.world_size,
            "fingerprint": self.fingerprint,
            "digest": self.digest,
            "references": list(self.references),
            "objects": [
                {"name": entry.name, "blocks": [_render_block(block, index) for block in entry.blocks]}
                for entry in self.objects
            ],
            "meta": dict(self.meta),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """Raises ValueError, in words, for anything that `to_json` does not write."""
        version = value.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"format_version is {version!r}, and this code reads {FORMAT_VERSION}: use the code that wrote it"
            )
        try:
            references = tuple(str(prefix) for prefix in value["references"])
            manifest = cls(
                ref=CommitRef.from_json(value),
                world_size=int(value["world_size"]),
                fingerprint=str(value["fingerprint"]),
                objects=tuple(_parse_entry(entry, references) for entry in value["objects"]),
                references=references,
                meta=dict(value["meta"]),
                digest=str(value["digest"]),
            )
        except (KeyError, TypeError, IndexError) as exc:
            raise ValueError(f"a field is missing or has the wrong type ({type(exc).__name__}: {exc})") from exc
        if manifest.digest not in DIGESTS:
            raise ValueError(
                f"digest is {manifest.digest!r}, and this code knows {sorted(DIGESTS)}: use the code that wrote it"
            )
        return manifest


def _render_block(block: Block, index: Mapping[str, int]) -> list[Any]:
    if block.source is None:
        return [block.size, block.digest]
    return [block.size, block.digest, index[block.source.prefix], block.source.name, block.source.offset]


def _parse_entry(value: Mapping[str, Any], references: tuple[str, ...]) -> ObjectEntry:
    return ObjectEntry(str(value["name"]), tuple(_parse_block(block, references) for block in value["blocks"]))


def _parse_block(value: list[Any], references: tuple[str, ...]) -> Block:
    match value:
        case [int(size), str(digest)] if 0 <= size <= MAX_BLOCK_BYTES:
            return Block(size, digest)
        case [int(size), str(digest), int(number), str(name), int(offset)] if 0 <= size <= MAX_BLOCK_BYTES:
            return Block(size, digest, BlockSource(references[number], name, offset))
    raise ValueError(f"{value!r} is no block")
