"""Attempt records, the fence and the lease. Clocks are turned, not waited for."""

from __future__ import annotations

import threading

import pytest

from checkpoints.attempts import AttemptLog
from checkpoints.errors import AlreadyExists, CheckpointError, Damaged, LeaseLost, Superseded
from checkpoints.fence import Fence, LeaseKeeper
from checkpoints.keys import TRAIN_ONLY, CommitRef, base_copy_key, base_key, claim_key
from checkpoints.store import Store


def test_records_tell_what_was_put(store: Store) -> None:
    log = AttemptLog(store, TRAIN_ONLY)
    assert log.newest() == 0
    assert log.records() == []
    log.claim(1, {"region": "a"})
    log.put_base(1, None)
    assert log.put_end(1, {"stop_reason": "preempted"})
    log.claim(3, {"region": "b"})  # numbers may skip
    log.put_base(3, CommitRef("train", 400, 1))
    log.claim(4, {"region": "c"})
    first, third, fourth = AttemptLog(store, TRAIN_ONLY).records()
    assert first.claim is not None
    assert first.end is not None
    assert (first.number, first.claim["region"], first.has_base, first.base) == (1, "a", True, None)
    assert first.end["stop_reason"] == "preempted"
    assert (third.number, third.has_base, third.base) == (3, True, CommitRef("train", 400, 1))
    assert (fourth.number, fourth.has_base, fourth.base, fourth.end) == (4, False, None, None)
    assert log.newest() == 4


def test_a_number_is_claimed_once(log: AttemptLog) -> None:
    log.claim(1, {"by": "first"})
    with pytest.raises(AlreadyExists) as caught:
        log.claim(1, {"by": "second"})
    assert caught.value.existing is not None
    assert caught.value.existing["by"] == "first"


def test_the_first_end_stands(log: AttemptLog) -> None:
    log.claim(1, {})
    assert log.put_end(1, {"stop_reason": "lost"})
    assert not log.put_end(1, {"stop_reason": "done"})
    record = log.records()[0]
    assert record.end is not None
    assert record.end["stop_reason"] == "lost"


def test_records_that_appear_later_are_seen(log: AttemptLog) -> None:
    log.claim(1, {})
    assert not log.records()[0].has_base
    log.put_base(1, None)
    assert log.records()[0].has_base


def test_the_lease_is_a_counter(log: AttemptLog) -> None:
    assert log.read_lease(1) is None
    log.renew(1, 7)
    assert log.read_lease(1) == 7
    log.renew(1, 8)
    assert log.read_lease(1) == 8
    assert log.newest() == 0, "a lease is no claim"


def test_a_base_must_be_older(log: AttemptLog) -> None:
    with pytest.raises(ValueError, match="that attempt is not older"):
        log.put_base(2, CommitRef("train", 1, 2))


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"base": {"stage": "nope", "position": 1, "attempt": 1}}', b"{}"])
def test_a_base_that_cannot_be_understood_is_damage(memory_store: Store, body: bytes) -> None:
    memory_store.put(claim_key(2), b"{}")
    memory_store.put(base_key(2), body)
    with pytest.raises(Damaged, match=r"attempts/000002\.base\.json is damaged"):
        AttemptLog(memory_store, TRAIN_ONLY).records()


def test_a_flipped_digit_in_a_base_is_damage_not_another_base_and_its_copy_stands_for_it(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    log, base = AttemptLog(store, TRAIN_ONLY), CommitRef("train", 400, 1)
    log.put_base(2, base)
    assert log.damaged() == []
    store.put(base_key(2), store.get(base_key(2)).replace(b"400", b"500"))
    assert [record.base for record in AttemptLog(store, TRAIN_ONLY).records()] == [base]
    assert "000002.base.json is damaged: it is no JSON object, or its own digest" in caplog.text
    assert [str(one).partition(" is damaged")[0] for one in log.damaged()] == [f"{store.uri}/{base_key(2)}"]
    store.put(base_copy_key(2), store.get(base_copy_key(2)).replace(b"400", b"500"))
    with pytest.raises(Damaged, match=r"its own digest does not fit it.*nobody knows which commits count"):
        AttemptLog(store, TRAIN_ONLY).records()
    assert len(log.damaged()) == 2


def test_a_copy_without_its_base_decides_nothing_and_a_base_without_a_copy_is_read(memory_store: Store) -> None:
    log = AttemptLog(memory_store, TRAIN_ONLY)
    log.claim(1, {})
    log.put_base(1, None)
    memory_store.delete([base_key(1)])  # as if it had died between the two puts
    assert not AttemptLog(memory_store, TRAIN_ONLY).records()[0].has_base
    with pytest.raises(AlreadyExists):
        log.put_base(1, CommitRef("train", 0, 0))
    log.put_base(1, None)
    memory_store.delete([base_copy_key(1)])  # as older versions wrote it
    assert AttemptLog(memory_store, TRAIN_ONLY).records()[0].has_base
    assert log.damaged() == []


def test_damaged_records_are_all_named(log: AttemptLog, memory_store: Store) -> None:
    log.claim(1, {"by": "me"})
    log.put_base(1, None)
    log.put_end(1, {"stop_reason": "done"})
    for key in memory_store.list("attempts/"):
        memory_store.put(key, memory_store.get(key)[:-3])
    assert sorted(one.key for one in log.damaged()) == memory_store.list("attempts/")
    assert len(log.damaged()) == 4


def test_other_files_among_the_records_are_ignored(memory_store: Store, log: AttemptLog) -> None:
    memory_store.put("attempts/README.txt", b"hello")
    log.claim(1, {})
    assert log.newest() == 1
    assert len(log.records()) == 1


def test_the_fence_lets_the_newest_pass_and_nobody_else(store: Store) -> None:
    log = AttemptLog(store, TRAIN_ONLY)
    log.claim(1, {})
    fence = Fence(log, 1)
    fence.check()
    AttemptLog(store, TRAIN_ONLY).claim(5, {})  # by somebody else, and the numbers skip
    with pytest.raises(Superseded, match="attempt 1 is over: attempt 5 was claimed") as caught:
        fence.check()
    assert (caught.value.attempt, caught.value.newest) == (1, 5)
    Fence(log, 5).check()


def test_an_attempt_that_was_ended_does_not_pass(log: AttemptLog) -> None:
    log.claim(1, {})
    log.put_end(1, {"stop_reason": "cancelled"})
    with pytest.raises(Superseded, match="its end was recorded"):
        Fence(log, 1).check()


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _keeper(log: AttemptLog, clock: _Clock, lost: list[CheckpointError], **more: object) -> LeaseKeeper:
    return LeaseKeeper(log, 1, interval_s=1, lease_s=20, on_lost=lost.append, clock=clock, **more)  # type: ignore[arg-type]


def test_the_lease_is_renewed_while_the_attempt_is_the_newest(log: AttemptLog) -> None:
    log.claim(1, {})
    lost: list[CheckpointError] = []
    clock = _Clock()
    keeper = _keeper(log, clock, lost)
    for expected in (1, 2, 3):
        keeper.renew_once()
        assert log.read_lease(1) == expected
        clock.now += 19
        keeper.watch_once()
    assert lost == []


def test_a_superseded_attempt_is_told_once_and_renews_no_more(log: AttemptLog) -> None:
    log.claim(1, {})
    lost: list[CheckpointError] = []
    keeper = _keeper(log, _Clock(), lost)
    keeper.renew_once()
    log.claim(2, {})
    keeper.renew_once()
    keeper.renew_once()
    assert [type(error) for error in lost] == [Superseded]
    assert log.read_lease(1) == 1


def test_a_lease_that_cannot_be_renewed_is_lost_after_the_lease_time(memory_store: Store, faults: object) -> None:
    broken, _ = faults.break_store(memory_store, at=1, how="answer lost always")  # type: ignore[attr-defined]
    lost: list[CheckpointError] = []
    clock = _Clock()
    keeper = _keeper(AttemptLog(broken, TRAIN_ONLY), clock, lost)
    keeper.renew_once()
    clock.now += 19.9
    keeper.watch_once()
    assert lost == []
    clock.now += 0.2
    keeper.watch_once()
    keeper.watch_once()
    assert [type(error) for error in lost] == [LeaseLost]
    assert "could not renew its lease for 20 s" in str(lost[0])


def test_a_store_that_hangs_loses_the_lease_too(memory_store: Store) -> None:
    release, told = threading.Event(), threading.Event()

    class Hanging:
        def __getattr__(self, name: str) -> object:
            return getattr(memory_store._driver, name)

        def list(self, prefix: str) -> list[str]:
            release.wait(30)
            return []

    log = AttemptLog(Store(Hanging()), TRAIN_ONLY)  # type: ignore[arg-type]
    keeper = LeaseKeeper(log, 1, interval_s=0.02, lease_s=0.1, on_lost=lambda error: told.set())
    keeper.start()
    assert told.wait(10)
    release.set()
    keeper.stop()


def test_the_threads_renew_poll_survive_a_bad_poll_and_stop(log: AttemptLog) -> None:
    log.claim(1, {})
    polled = threading.Event()
    calls = []

    def poll() -> None:
        calls.append(log.read_lease(1))
        if len(calls) >= 3:
            polled.set()
        raise RuntimeError("a hook with a bug")

    lost: list[CheckpointError] = []
    keeper = LeaseKeeper(log, 1, interval_s=0.01, lease_s=20, on_lost=lost.append, poll=poll)
    keeper.start()
    assert polled.wait(10)
    keeper.stop()
    counter = log.read_lease(1)
    assert counter is not None
    assert counter >= 3
    log.claim(2, {})
    keeper.renew_once()
    assert lost == [], "after stop nobody is told"


def test_an_interval_that_cannot_keep_the_lease_is_refused(log: AttemptLog) -> None:
    with pytest.raises(ValueError, match="interval_s"):
        LeaseKeeper(log, 1, interval_s=20, lease_s=20, on_lost=lambda error: None)
