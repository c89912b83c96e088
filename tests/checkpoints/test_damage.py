"""Damage is found, named, and never taken for a commit; and what is gone because it was deleted is not damage."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints.errors import CheckpointError, Damaged, NotCommitted
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.manifest import DIGESTS, Block, BlockSource, Manifest, ObjectEntry
from checkpoints.reader import CommitReader
from checkpoints.store import Store
from checkpoints.writer import CommitWriter

REF = CommitRef("train", 10, 1)
PREFIX = "checkpoints/step-00000010/attempt-000001/"


@pytest.fixture
def committed(store: Store) -> Store:
    writer = CommitWriter(store, TRAIN_ONLY, REF)
    writer.put("a.bin", random.Random(1).randbytes(5000), cuts=[1000, 4000])
    writer.put("b.bin", random.Random(2).randbytes(300))
    writer.publish(meta={"step": 10})
    return store


def test_every_flipped_bit_is_found_and_named(committed: Store) -> None:
    rng = random.Random(3)
    for name, size in (("a.bin", 5000), ("b.bin", 300)):
        good = committed.get(PREFIX + name)
        for _ in range(12):
            at = rng.randrange(size * 8)
            bad = bytearray(good)
            bad[at // 8] ^= 1 << at % 8
            committed.put(PREFIX + name, bytes(bad))
            reader = CommitReader.open(committed, TRAIN_ONLY, REF)
            with pytest.raises(Damaged, match=f"{name} is damaged: block of .* its xxh3_128 is") as caught:
                reader.verify()
            assert caught.value.key == PREFIX + name
            with pytest.raises(Damaged):
                reader.read_range(name, at // 8, 1)
        committed.put(PREFIX + name, good)
    CommitReader.open(committed, TRAIN_ONLY, REF).verify()


@pytest.mark.parametrize("left", [0, 1, 999, 1000, 4999])
def test_every_truncation_is_found_and_named(committed: Store, left: int) -> None:
    committed.put(PREFIX + "a.bin", committed.get(PREFIX + "a.bin")[:left])
    with pytest.raises(Damaged, match=r"a\.bin is damaged: block of \d+ bytes at offset \d+: only \d+ bytes are there"):
        CommitReader.open(committed, TRAIN_ONLY, REF).verify()


def test_a_missing_object_of_a_commit_is_damage(committed: Store) -> None:
    committed.delete([PREFIX + "b.bin"])
    with pytest.raises(Damaged, match=r"b\.bin is damaged: the object is missing"):
        CommitReader.open(committed, TRAIN_ONLY, REF).read("b.bin")


def test_a_commit_deleted_while_it_was_read_is_not_damage(committed: Store) -> None:
    reader = CommitReader.open(committed, TRAIN_ONLY, REF)
    committed.delete([PREFIX + "manifest.json"])  # retention deletes the manifest first
    committed.delete([PREFIX + "a.bin"])
    with pytest.raises(NotCommitted, match="the commit was deleted to make room"):
        reader.read("a.bin")


def test_undamaged_parts_are_still_read(committed: Store) -> None:
    bad = bytearray(committed.get(PREFIX + "a.bin"))
    bad[4500] ^= 1
    committed.put(PREFIX + "a.bin", bytes(bad))
    reader = CommitReader.open(committed, TRAIN_ONLY, REF)
    assert len(reader.read_range("a.bin", 0, 4000)) == 4000
    with pytest.raises(Damaged):
        reader.read_range("a.bin", 3999, 2)


def _edit(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        body = json.loads(data)
        change(body)
        del body["body_sha256"]  # as if written so by another version, not by a flipped bit
        return json.dumps(body).encode()

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda data: data[: len(data) // 2], "it is no JSON object"),
        (lambda data: b"", "it is no JSON object"),
        (lambda data: b"[1]", "it is no JSON object"),
        (lambda data: b"\xff\xfe", "it is no JSON object"),
        (_edit(lambda body: body.update(format_version=2)), "format_version is 2, and this code reads 1"),
        (_edit(lambda body: body.update(position=11)), r"it is the manifest of train 11 \(attempt 1\)"),
        (
            _edit(lambda body: body.update(digest="md5")),
            r"digest is 'md5', and this code knows \[.*\]: use the code that wrote it",
        ),
        (_edit(lambda body: body.pop("objects")), "a field is missing or has the wrong type"),
        (_edit(lambda body: body["objects"][0].update(blocks=[[1]])), r"\[1\] is no block"),
        (_edit(lambda body: body["objects"][0].update(blocks=[[1, "x", 0, "y", 0]])), "a field is missing"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_damage(
    memory_store: Store, edit: Callable[[bytes], bytes], words: str
) -> None:
    writer = CommitWriter(memory_store, TRAIN_ONLY, REF)
    writer.put("a", b"1")
    writer.publish(meta={})
    memory_store.put(PREFIX + "manifest.json", edit(memory_store.get(PREFIX + "manifest.json")))
    with pytest.raises(Damaged, match=words) as caught:
        CommitReader.open(memory_store, TRAIN_ONLY, REF)
    assert caught.value.key == PREFIX + "manifest.json"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.data())
def test_a_manifest_with_any_bytes_changed_is_refused_or_the_same(memory_store: Store, data: st.DataObject) -> None:
    memory_store.delete([PREFIX + "manifest.json"])
    writer = CommitWriter(memory_store, TRAIN_ONLY, REF)
    written = writer.publish([writer_entry()], meta={"losses": {"hex": ["0x1.8p+1"]}, "step": 10})
    body = bytearray(memory_store.get(PREFIX + "manifest.json"))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    memory_store.put(PREFIX + "manifest.json", bytes(body))
    try:
        found = CommitReader.open(memory_store, TRAIN_ONLY, REF).manifest
    except CheckpointError:
        return
    assert found == written


def writer_entry() -> ObjectEntry:
    return ObjectEntry("a", (Block(1, DIGESTS["sha256"](b"1")),))


sources = st.one_of(
    st.none(), st.builds(BlockSource, st.sampled_from(["p/", "q/"]), st.text(min_size=1), st.integers(0, 2**40))
)
blocks = st.builds(Block, st.integers(0, 16 * 2**20), st.text("0123456789abcdef", min_size=64, max_size=64), sources)
entries = st.lists(
    st.builds(ObjectEntry, st.text(min_size=1), st.lists(blocks, max_size=5).map(tuple)),
    max_size=4,
    unique_by=lambda entry: entry.name,
)


@given(entries, st.integers(1, 1000), st.text(), st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_a_manifest_goes_through_json_unchanged(
    objects: list[ObjectEntry], world_size: int, fingerprint: str, meta: dict[str, Any]
) -> None:
    manifest = Manifest(REF, world_size, fingerprint, tuple(objects), ("p/", "q/"), meta, digest="blake2b")
    parsed = Manifest.from_json(json.loads(json.dumps(manifest.to_json())))
    assert parsed == manifest
    assert parsed.size_bytes == manifest.size_bytes
