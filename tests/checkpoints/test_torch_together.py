"""Ranks as threads: what one of them brings or meets reaches all of them at the same call; each reads its part only."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hand_driven import Steps

from checkpoints.agreed import AgreedFailure
from checkpoints.attempts import AttemptLog
from checkpoints.barrier import RanksParted, ThreadExchange
from checkpoints.errors import StateMismatch, StoreFull, Superseded
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.reader import list_commits
from checkpoints.store import Store
from checkpoints.torch_bridge import Checkpointer
from checkpoints.torch_flat import FlatShard
from checkpoints.torch_run import RunCheckpointer
from checkpoints.torch_trainer import LEFT_ON_NOTICE, StoreCallback

WORLD = 2
OnRanks = Callable[[Callable[[int], Any]], list[Any]]


@pytest.fixture
def on_ranks(monkeypatch: pytest.MonkeyPatch) -> OnRanks:
    """`on_ranks(act)`: runs `act(rank)` on threads that meet like ranks; an exception is its rank's result."""
    tables: list[list[ThreadExchange]] = []
    lock, mine = threading.Lock(), threading.local()

    def make_exchange(group: Any, *, timeout_s: float) -> tuple[ThreadExchange, None]:
        with lock:
            while len(tables) <= mine.made:
                tables.append(ThreadExchange.seats(WORLD, timeout_s=20))
            seat = tables[mine.made][mine.rank]
        mine.made += 1
        return seat, None

    for module in ("torch_bridge", "torch_attempt"):
        monkeypatch.setattr(f"checkpoints.{module}.make_exchange", make_exchange)

    def run(act: Callable[[int], Any]) -> list[Any]:
        tables.clear()

        def guarded(rank: int) -> Any:
            mine.rank, mine.made = rank, 0
            try:
                return act(rank)
            except (Exception, SystemExit) as exc:  # noqa: BLE001 - the exception is what the test looks at
                return exc

        with ThreadPoolExecutor(WORLD) as pool:
            return list(pool.map(guarded, range(WORLD)))

    return run


def _checkpointer(store: Store, **more: Any) -> Checkpointer:
    return Checkpointer(store, TRAIN_ONLY, stage="train", attempt=1, fence=None, keep=None, **more)


def _seen(act: Callable[[], Any]) -> str:
    try:
        act()
    except Exception as exc:  # noqa: BLE001
        return f"{type(exc).__name__}: {exc}"
    return "fine"


def test_a_failure_is_due_at_the_first_question_that_no_rank_has_asked_yet() -> None:
    seats = ThreadExchange.seats(WORLD, timeout_s=20)
    failures = [AgreedFailure(seat) for seat in seats]
    for failure, asked in zip(failures, (5, 3), strict=True):
        for _ in range(asked):
            failure.raise_if_due()
    with ThreadPoolExecutor(WORLD) as pool:
        list(pool.map(lambda failure: failure.set(StoreFull("no space left")), failures))
    failures[1].raise_if_due()
    failures[1].raise_if_due()
    for failure in failures:
        with pytest.raises(StoreFull):
            failure.raise_if_due()
        failure.raise_if_due()


def test_a_failure_of_ranks_that_parted_is_due_at_once() -> None:
    failure = AgreedFailure(ThreadExchange.seats(WORLD, timeout_s=0.01)[0])
    failure.set(RanksParted("gone"))
    with pytest.raises(RanksParted):
        failure.raise_if_due()
    failure.set(StoreFull("the other one never comes to agree"))
    with pytest.raises(StoreFull):
        failure.raise_if_due()


def test_all_ranks_hear_of_a_failed_save_at_the_same_poll_and_save_on(
    memory_store: Store, on_ranks: OnRanks, caplog: pytest.LogCaptureFixture
) -> None:
    def act(rank: int) -> tuple[int, bool]:
        store = Store.open(memory_store.uri)
        made = _checkpointer(store)
        state = {"w": FlatShard(torch.arange(4.0), size=(8,), start=4 * rank)}
        driver = SimpleNamespace(**{name: getattr(store._driver, name) for name in ("uri", "create", "read", "size")})
        driver.write = _refuse if rank else store._driver.write
        made._patient = Store(driver, prefix=store._prefix)
        made.save(1, state, meta={}, fingerprint="")
        polls = 0
        try:
            while True:
                polls += 1
                made.poll()
                time.sleep(0.001 * (1 + 4 * rank))  # one rank is far ahead of the other
        except StoreFull:
            made._patient = store
        made.save(2, state, meta={}, fingerprint="")
        committed = made.wait()[0].committed
        made.close()
        return polls, committed

    with caplog.at_level(logging.CRITICAL):
        first, second = on_ranks(act)
    assert first == second
    assert first[1]
    assert [ref.position for ref in list_commits(memory_store, TRAIN_ONLY)] == [2]


def _refuse(key: str, data: bytes | memoryview) -> None:
    raise OSError(28, "No space left on device")


def test_what_one_rank_brings_wrong_is_raised_on_all_before_anything_is_stored(
    memory_store: Store, on_ranks: OnRanks
) -> None:
    def act(rank: int) -> list[str]:
        made = _checkpointer(memory_store)

        def save(position: int, meta: dict[str, Any], fits: bool = True) -> str:
            state = {"w": torch.ones(3) if fits else object()}
            return _seen(lambda: made.save(position, state, meta=meta, fingerprint=""))

        seen = [
            save(1, {"loss": torch.tensor(1.0)}),
            save(1, {}, fits=rank == 0),
            save(1 + rank, {}),
            save(1, {"nan": float("nan")}),
        ]
        made.wait()
        made.close()
        return seen

    first, second = on_ranks(act)
    assert first == second
    assert first[0].startswith("StateMismatch: meta is no JSON (Object of type Tensor is not JSON serializable)")
    assert first[1].startswith("StateMismatch: w is a object")
    assert first[2].startswith("ValueError: the ranks save different positions, [1, 2] by rank")
    assert first[3] == "fine"


def test_what_is_of_no_rank_is_missed_and_what_is_of_one_is_not(memory_store: Store, on_ranks: OnRanks) -> None:
    def act(rank: int) -> list[str]:
        made = _checkpointer(memory_store)
        shared, own = torch.ones(2), {f"rank-{rank}": torch.full((2,), float(rank + 1))}
        made.save(1, {"model": {"w": shared}, "random": own, "n": 1}, meta={}, fingerprint="")
        made.wait()
        ref = CommitRef("train", 1, 1)
        none = {"model": {"w": torch.zeros(2)}, "n": 0}
        both = {**none, "random": {f"rank-{rank}": torch.zeros(2)}}
        zero = {**none, "random": {"rank-0": torch.zeros(2)}}
        seen = [
            _seen(lambda: made.load(ref, both, partial=False)),
            _seen(lambda: made.load(ref, zero, partial=False)),
            _seen(lambda: made.load(ref, zero, partial=("random",))),
            _seen(lambda: made.load(ref, {"random": zero["random"]}, partial=("random",))),
            _seen(lambda: made.load_newest([ref], none)),
            _seen(lambda: made.load(ref, {})),
        ]
        made.close()
        return [str(float(both["random"][f"rank-{rank}"][0])), *seen]

    first, second = on_ranks(act)
    assert (first[0], second[0]) == ("1.0", "2.0")
    assert first[1:] == second[1:]
    assert first[1] == first[3] == first[6] == "fine"
    assert "1 of the 4 entries of the commit have no place in the state, the first being ['random.rank-1']" in first[2]
    assert "2 of the 4 entries" in first[4]
    assert "2 of the 4 entries" in first[5]


class _Counting:
    """A driver that counts the bytes it reads."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.bytes = inner, 0

    def read(self, key: str, start: int, length: int | None) -> bytes:
        data: bytes = self._inner.read(key, start, length)
        self.bytes += len(data)
        return data

    def read_into(self, key: str, start: int, view: memoryview) -> int:
        self.bytes += len(view)
        return int(self._inner.read_into(key, start, view))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_each_rank_reads_only_what_it_needs_of_shards_cut_otherwise(memory_store: Store, on_ranks: OnRanks) -> None:
    """Three ranks' worth of one tensor and a block each; one rank loads a third of it, the other two thirds."""
    rows, width = 96, 2**14  # 6 MiB in float32; blocks begin with each saved shard of 2 and 4 MiB
    whole = torch.arange(rows * width, dtype=torch.float32).view(rows, width)

    def part(first: int, last: int, *, of: torch.Tensor) -> FlatShard:
        return FlatShard(of.reshape(-1)[first * width : last * width].clone(), size=whole.shape, start=first * width)

    def act(rank: int) -> tuple[int, int, bool]:
        made = _checkpointer(memory_store)
        first, last = ((0, 32), (32, 96))[rank]
        made.save(1, {"w": part(first, last, of=whole)}, meta={}, fingerprint="")
        made.wait()
        driver = _Counting(memory_store._driver)
        made._patient = Store(driver, prefix=memory_store._prefix)  # type: ignore[arg-type]
        mine = part(first, last, of=torch.zeros_like(whole))
        made.load(CommitRef("train", 1, 1), {"w": mine}, partial=False)
        same = torch.equal(mine.local, whole.reshape(-1)[first * width : last * width])
        made.close()
        return driver.bytes, mine.local.nbytes, same

    for read, needed, same in on_ranks(act):
        assert same
        assert needed <= read < needed + 50_000, "its own bytes, the manifest and the record"


def test_an_attempt_that_another_took_over_says_so_at_the_next_save_of_every_rank(
    memory_store: Store, on_ranks: OnRanks, caplog: pytest.LogCaptureFixture
) -> None:
    def act(rank: int) -> str:
        run = RunCheckpointer(memory_store, lease_s=0.4)
        run.resume({})
        if rank == 0:
            AttemptLog(memory_store, TRAIN_ONLY).claim(2, {})
            until = time.monotonic() + 10
            while run._checkpointer.over is None and time.monotonic() < until:
                time.sleep(0.01)
        run.any_rank(False)
        seen = _seen(lambda: run.save(1, {"w": torch.ones(1)}))
        run.close()
        return seen

    with caplog.at_level(logging.CRITICAL):
        first, second = on_ranks(act)
    assert first == second
    assert first.startswith(f"{Superseded.__name__}: attempt 1 is over: attempt 2 was claimed")
    assert memory_store.list("checkpoints/") == [], "nothing was stored for nothing"


def test_leaving_is_agreed_on_by_the_ranks_of_a_run_of_its_own(memory_store: Store, on_ranks: OnRanks) -> None:
    def act(rank: int) -> Any:
        callback = StoreCallback(memory_store, every_steps=100)
        steps = Steps(callback)
        steps.begin()
        steps.step()
        if rank == 1:
            callback.leave()
        steps.step()
        steps.step()
        return "went on"

    first, second = on_ranks(act)
    assert [type(one) for one in (first, second)] == [SystemExit] * WORLD
    assert first.code == second.code == LEFT_ON_NOTICE
    assert [ref.position for ref in list_commits(memory_store, TRAIN_ONLY)] == [2]
    (record,) = AttemptLog(memory_store, TRAIN_ONLY).records()
    assert record.end is not None
    assert record.end["stop_reason"] == "preempted"


def test_loading_a_state_that_cannot_be_taken_apart_on_one_rank_is_refused_on_all(
    memory_store: Store, on_ranks: OnRanks
) -> None:
    def act(rank: int) -> str:
        made = _checkpointer(memory_store)
        made.save(1, {"w": torch.ones(1)}, meta={}, fingerprint="")
        made.wait()
        state = {"w": torch.zeros(1)} if rank == 0 else {"w": object()}
        seen = _seen(lambda: made.load(CommitRef("train", 1, 1), state))
        made.close()
        return seen

    first, second = on_ranks(act)
    assert first == second
    assert first.startswith(f"{StateMismatch.__name__}: w is a object")
