"""Digest algorithms: what each says of known bytes, and that a run may change from one to another."""

from __future__ import annotations

import json
import random
from functools import partial

import pytest
import torch

from checkpoints.attempts import AttemptLog
from checkpoints.errors import Damaged
from checkpoints.fence import Fence
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.manifest import DEFAULT_DIGEST, DIGESTS
from checkpoints.reader import CommitReader
from checkpoints.retention import known_blocks
from checkpoints.store import Store
from checkpoints.torch_bridge import Checkpointer
from checkpoints.transfer import copy_commit, verify_commits
from checkpoints.writer import CommitWriter

REF = CommitRef("train", 10, 1)
PREFIX = "checkpoints/step-00000010/attempt-000001/"
OLD_MANIFEST = {
    "format_version": 1, "stage": "train", "position": 10, "attempt": 1, "world_size": 1, "fingerprint": "f",
    "digest": "sha256", "references": [], "meta": {"loss": 1.5},
    "objects": [{"name": "a", "blocks": [[3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]]}],
}  # fmt: skip
"""As it was put when SHA-256 was all there was."""


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("xxh3_128", "06b05ab6733a618578af5f94892f3950"),
        ("sha256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ("blake2b", "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"),
    ],
)
def test_a_digest_is_what_others_compute(name: str, digest: str) -> None:
    """Of "abc": with xxhsum -H2, sha256sum, b2sum -l 256. What is in a store has to be understood for ever."""
    assert DIGESTS[name](b"abc") == digest
    assert DIGESTS[name](memoryview(b"abc")) == digest


@pytest.mark.parametrize("digest", DIGESTS)
def test_each_algorithm_reads_what_it_wrote_and_finds_what_changed(memory_store: Store, digest: str) -> None:
    writer = CommitWriter(memory_store, TRAIN_ONLY, REF, digest=digest)
    writer.put("a", b"data")
    writer.publish(meta={})
    reader = CommitReader.open(memory_store, TRAIN_ONLY, REF)
    assert reader.manifest.digest == digest
    assert reader.read("a") == b"data"
    memory_store.put(PREFIX + "a", b"dat\xe1")
    with pytest.raises(Damaged, match=f"a is damaged: block of 4 bytes at offset 0: its {digest} is"):
        reader.read("a")


def test_a_commit_from_before_is_read_verified_and_copied_as_it_is(store: Store) -> None:
    log = AttemptLog(store, TRAIN_ONLY)
    log.claim(1, {})
    log.put_base(1, None)
    store.put(PREFIX + "a", b"abc")
    store.put(PREFIX + "manifest.json", json.dumps(OLD_MANIFEST).encode())
    assert CommitReader.open(store, TRAIN_ONLY, REF).read("a") == b"abc"
    assert [report.problem for report in verify_commits(store, TRAIN_ONLY)] == [None]
    elsewhere = Store.open("memory://digests-elsewhere")
    copied = copy_commit(store, elsewhere, TRAIN_ONLY, REF)
    assert copied.to_json() == OLD_MANIFEST
    assert CommitReader.open(elsewhere, TRAIN_ONLY, REF).read("a") == b"abc"
    store.put(PREFIX + "a", b"abd")
    with pytest.raises(Damaged, match="its sha256 is"):
        CommitReader.open(store, TRAIN_ONLY, REF).verify()


@pytest.mark.parametrize("before", [name for name in DIGESTS if name != DEFAULT_DIGEST])
def test_what_another_algorithm_says_of_a_block_is_never_taken_for_equal(memory_store: Store, before: str) -> None:
    frozen = random.Random(1).randbytes(300 * 2**10)
    writer = CommitWriter(memory_store, TRAIN_ONLY, REF, digest=before)
    writer.put("frozen", frozen)
    manifest = writer.publish(meta={})
    assert known_blocks(manifest, TRAIN_ONLY) == {}
    assert len(known_blocks(manifest, TRAIN_ONLY, digest=before)) == 1


def test_a_run_goes_on_from_a_commit_of_another_algorithm(memory_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = torch.randn(512, 256)
    with monkeypatch.context() as patch:
        patch.setattr("checkpoints.torch_bridge.CommitWriter", partial(CommitWriter, digest="sha256"))
        before = _checkpointer(memory_store, 1)
        before.save(1, {"base": frozen, "own": torch.ones(8)}, meta={}, fingerprint="")
        before.close()
    state = {"base": torch.zeros_like(frozen), "own": torch.zeros(8)}
    after = _checkpointer(memory_store, 2)
    assert after.load(CommitRef("train", 1, 1), state).digest == "sha256"
    assert torch.equal(state["base"], frozen)
    stored = []
    for position in (2, 3, 4):
        after.save(position, state, meta={}, fingerprint="")
        stored.append(after.wait()[0].stored_bytes)
    after.close()
    assert stored[0] > frozen.nbytes, "all of it, once"
    assert max(stored[1:]) < frozen.nbytes / 50
    assert {report.problem for report in verify_commits(memory_store, TRAIN_ONLY)} == {None}


def _checkpointer(store: Store, attempt: int) -> Checkpointer:
    log = AttemptLog(store, TRAIN_ONLY)
    log.claim(attempt, {})
    log.put_base(attempt, None if attempt == 1 else CommitRef("train", 1, 1))
    return Checkpointer(store, TRAIN_ONLY, stage="train", attempt=attempt, fence=Fence(log, attempt))
