"""Checkpointer in one process: what may be saved, what fits, what is referenced, and that failures come out."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from checkpoints.attempts import AttemptLog
from checkpoints.errors import AlreadyExists, Damaged, NoGoodCommit, SaveFailed, StateMismatch, StoreFull
from checkpoints.fence import Fence
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Retries, Store
from checkpoints.torch_bridge import Checkpointer
from checkpoints.torch_plan import OBJECT_BYTES, lay_out, plan_local
from checkpoints.torch_state import DTYPES, flatten_state


def _checkpointer(store: Store, attempt: int = 1, **more: Any) -> Checkpointer:
    log = AttemptLog(store, TRAIN_ONLY)
    if log.newest() < attempt:
        log.claim(attempt, {})
        log.put_base(attempt, None)
    return Checkpointer(store, TRAIN_ONLY, stage="train", attempt=attempt, fence=Fence(log, attempt), **more)


@pytest.fixture
def checkpointer(memory_store: Store) -> Iterator[Checkpointer]:
    made = _checkpointer(memory_store)
    yield made
    made.close()


def _save(checkpointer: Checkpointer, position: int, state: dict[str, Any], **meta: Any) -> Any:
    checkpointer.save(position, state, meta=meta, fingerprint="f")
    return checkpointer.wait()[0]


def test_every_dtype_comes_back_bit_for_bit_on_every_store(store: Store) -> None:
    raw = torch.randint(0, 255, (6, 64), dtype=torch.uint8)
    raw[:, ::16] &= 1  # so that bools are bools
    state: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        state[name] = raw.view(dtype).clone() if dtype != torch.bool else raw > 7
    state["nan"] = torch.tensor([float("nan"), float("inf"), -0.0])
    made = _checkpointer(store)
    _save(made, 1, state)
    loaded = {name: torch.zeros_like(value) for name, value in state.items()}
    made.load(CommitRef("train", 1, 1), loaded)
    for name, value in state.items():
        assert torch.equal(loaded[name].view(torch.uint8), value.view(torch.uint8)), name
    made.close()


def test_training_may_change_the_state_as_soon_as_save_returns(memory_store: Store) -> None:
    release = threading.Event()
    driver = memory_store._driver
    write = driver.write

    def slow(key: str, data: bytes | memoryview, **more: Any) -> None:
        release.wait(10)
        write(key, data, **more)

    driver.write = slow  # type: ignore[method-assign]
    made = _checkpointer(memory_store)
    weights = torch.arange(1000.0)
    made.save(5, {"w": weights}, meta={}, fingerprint="")
    assert made.in_flight == 5
    assert made.poll() == []
    weights.zero_()
    release.set()
    (result,) = made.wait()
    assert (result.position, result.committed, result.bytes >= 4000) == (5, True, True)
    assert 0 <= result.stall_s <= result.seconds
    assert made.in_flight is None
    made.load(CommitRef("train", 5, 1), {"w": weights})
    assert torch.equal(weights, torch.arange(1000.0))
    made.close()


def test_the_store_holds_no_pickle(memory_store: Store, checkpointer: Checkpointer) -> None:
    _save(checkpointer, 1, {"w": torch.ones(3), "n": 4})
    names = [key.rpartition("/")[2] for key in memory_store.list("checkpoints/")]
    assert names == ["manifest.json", "rank-00000-0000.bin", "state.json"]
    for key in memory_store.list():
        assert not memory_store.get(key).startswith((b"\x80", b"PK")), key


def test_nothing_here_reads_a_pickle(repo_root: Path) -> None:
    """Weights of a store are never `torch.load`ed, and nothing else here could meet a pickle there."""
    loaders = re.compile(r"\b(import pickle|from pickle|pickle\.\w|torch\.load\(|joblib|dill|cloudpickle|np\.load\()")
    sources = list((repo_root / "checkpoints").glob("*.py"))
    assert len(sources) > 25
    assert [path.name for path in sources if loaders.search(path.read_text(encoding="utf-8"))] == []


def test_frozen_parts_are_stored_once(memory_store: Store, checkpointer: Checkpointer) -> None:
    frozen, adapter = torch.randn(512, 1024), torch.randn(16, 64)
    results = []
    for position in (1, 2, 3, 4, 5, 6):
        adapter += 1
        results.append(_save(checkpointer, position, {"base": frozen, "adapter": adapter}))
    assert results[0].stored_bytes > frozen.nbytes
    assert all(result.stored_bytes < frozen.nbytes // 50 for result in results[1:])
    assert all(result.bytes > frozen.nbytes for result in results)
    loaded = {"base": torch.zeros_like(frozen), "adapter": torch.zeros_like(adapter)}
    manifest = checkpointer.load(CommitRef("train", 6, 1), loaded)
    assert manifest.references == ("checkpoints/step-00000001/attempt-000001/",)
    assert torch.equal(loaded["base"], frozen)
    assert [ref.position for ref in list_commits(memory_store, TRAIN_ONLY)] == [6, 5, 4]


def test_the_next_attempt_refers_to_what_it_loaded(memory_store: Store) -> None:
    frozen = torch.randn(512, 1024)
    first = _checkpointer(memory_store)
    _save(first, 1, {"base": frozen, "n": 1})
    first.close()
    second = _checkpointer(memory_store, attempt=2)
    second.load(CommitRef("train", 1, 1), {"base": torch.zeros_like(frozen), "n": 0})
    assert _save(second, 2, {"base": frozen, "n": 2}).stored_bytes < 1000
    second.close()


def test_the_same_state_gives_the_same_bytes(memory_store: Store, checkpointer: Checkpointer) -> None:
    state = {"a": torch.ones(3, dtype=torch.int8), "b": torch.ones(5), "c": torch.ones((), dtype=torch.float64)}
    digests = []
    for position in (1, 2):
        _save(checkpointer, position, state)
        manifest = CommitReader.open(memory_store, TRAIN_ONLY, CommitRef("train", position, 1)).manifest
        digests.append([entry.blocks for entry in manifest.objects])
    assert digests[0] == digests[1], "the gaps between tensors are zeros, always"


def test_a_state_whose_structure_changes_is_planned_again(checkpointer: Checkpointer) -> None:
    _save(checkpointer, 1, {"a": torch.ones(3)})
    _save(checkpointer, 2, {"a": torch.ones(4), "b": torch.ones(2, dtype=torch.int32)})
    loaded = {"a": torch.zeros(4), "b": torch.zeros(2, dtype=torch.int32)}
    checkpointer.load(CommitRef("train", 2, 1), loaded)
    assert loaded["a"].sum() == 4
    assert loaded["b"].sum() == 2


def test_a_part_of_the_state_can_be_loaded_alone(checkpointer: Checkpointer) -> None:
    _save(checkpointer, 1, {"model": {"w": torch.ones(3)}, "optim": {"m": torch.ones(3)}, "step": 7})
    loaded = {"model": {"w": torch.zeros(3)}}
    checkpointer.load(CommitRef("train", 1, 1), loaded)
    assert torch.equal(loaded["model"]["w"], torch.ones(3))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"x": object()}, "x is a object: a state holds tensors and plain JSON values, never pickles"),
        ({"x": [1, {"y": b"1"}]}, r"x\.1\.y is a bytes"),
        ({"x": torch.ones(2, 2).to_sparse()}, "x is a torch.sparse_coo tensor"),
        ({"p": (torch.ones(1), 3)}, r"p\.1 is a int in a tuple that holds tensors .* Make the tuple a list"),
        ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, r"two entries of the state are both called 'a\.b'"),
    ],
)
def test_what_cannot_be_saved_is_refused_in_words(
    checkpointer: Checkpointer, state: dict[str, Any], words: str
) -> None:
    with pytest.raises(StateMismatch, match=words):
        checkpointer.save(1, state, meta={}, fingerprint="")
    assert checkpointer.in_flight is None


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"w": torch.zeros(4)}, r"w is torch\.float32 \(4,\) here and torch\.float32 \(3,\) in the commit"),
        ({"w": torch.zeros(3, dtype=torch.bfloat16)}, r"w is torch\.bfloat16 \(3,\) here and torch\.float32"),
        ({"w": torch.zeros(3), "v": torch.zeros(3)}, r"1 entries of the state are not in the commit, .*'v'"),
        ({"n": torch.zeros(1)}, "not in the commit"),
        ({"w": 1}, "not in the commit"),
    ],
)
def test_what_does_not_fit_is_refused_in_words_and_untouched(
    checkpointer: Checkpointer, state: dict[str, Any], words: str
) -> None:
    _save(checkpointer, 1, {"w": torch.ones(3), "n": 1})
    with pytest.raises(StateMismatch, match=words):
        checkpointer.load(CommitRef("train", 1, 1), state)
    assert not any(value.any() for value in state.values() if isinstance(value, torch.Tensor))


def test_a_commit_that_is_no_checkpoint_is_refused(memory_store: Store, checkpointer: Checkpointer) -> None:
    from checkpoints.writer import CommitWriter

    CommitWriter(memory_store, TRAIN_ONLY, CommitRef("train", 9, 1)).publish(meta={})
    with pytest.raises(StateMismatch, match="it was not saved by a Checkpointer"):
        checkpointer.load(CommitRef("train", 9, 1), {})


class _Betas(NamedTuple):
    first: float
    second: float


def test_plain_values_come_back_as_the_tuples_they_were(checkpointer: Checkpointer) -> None:
    def state(value: float) -> dict[str, Any]:
        betas = _Betas(value, value)
        return {"betas": betas, "deep": [(value, [betas])], "list": [value, torch.full((1,), value)], "grown": [1.0]}

    _save(checkpointer, 1, {**state(0.5), "grown": [1.0, 2.0]})
    loaded = state(0.0)
    checkpointer.load(CommitRef("train", 1, 1), loaded)
    assert loaded["betas"] == (0.5, 0.5)
    assert loaded["deep"] == [(0.5, [(0.5, 0.5)])]
    assert [type(loaded["betas"]), type(loaded["deep"][0]), type(loaded["deep"][0][1][0])] == [_Betas, tuple, _Betas]
    assert (loaded["list"][0], float(loaded["list"][1]), loaded["grown"]) == (0.5, 0.5, [1.0, 2.0])


def test_meta_is_what_it_was_when_save_was_called(memory_store: Store, checkpointer: Checkpointer) -> None:
    losses = {"train": [1.0]}
    write, driver = memory_store._driver.write, memory_store._driver

    def late(*args: Any, **more: Any) -> None:
        losses["train"].append(2.0)
        write(*args, **more)

    driver.write = late  # type: ignore[method-assign]
    _save(checkpointer, 1, {"w": torch.ones(1)}, losses=losses)
    driver.write = write  # type: ignore[method-assign]
    manifest = CommitReader.open(memory_store, TRAIN_ONLY, CommitRef("train", 1, 1)).manifest
    assert manifest.meta == {"losses": {"train": [1.0]}}


def test_a_save_outlasts_a_store_that_is_away_for_a_while(memory_store: Store) -> None:
    made = _checkpointer(memory_store)
    driver = memory_store._driver
    left = {"write": 9, "list": 9, "create": 9}  # other requests are given up after 4 tries

    def away(name: str, act: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            if left[name]:
                left[name] -= 1
                raise ConnectionResetError("the connection broke")
            return act(*args, **more)

        return call

    kept = {name: getattr(driver, name) for name in left}
    for name, act in kept.items():
        setattr(driver, name, away(name, act))
    assert _save(made, 1, {"w": torch.ones(1)}).committed
    assert sum(left.values()) == 0
    for name, act in kept.items():
        setattr(driver, name, act)
    made.close()


def test_a_snapshot_that_fails_is_a_failed_save(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_memory(*args: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("checkpoints.torch_snapshot.Snapshot.take", out_of_memory)
    with caplog.at_level(logging.CRITICAL), pytest.raises(SaveFailed, match="rank 0: RuntimeError: out of memory"):
        _save(checkpointer, 1, {"w": torch.ones(1)})
    monkeypatch.undo()
    assert _save(checkpointer, 2, {"w": torch.ones(1)}).committed


def test_closing_raises_what_nobody_polled(memory_store: Store, caplog: pytest.LogCaptureFixture) -> None:
    first = _checkpointer(memory_store)
    _save(first, 1, {"w": torch.ones(1)})
    first.close()
    twin = _checkpointer(memory_store)
    twin.save(1, {"w": torch.zeros(1)}, meta={}, fingerprint="")
    with caplog.at_level(logging.CRITICAL), pytest.raises(AlreadyExists):
        twin.close()
    twin.close()


def test_positions_only_rise(checkpointer: Checkpointer) -> None:
    _save(checkpointer, 5, {"w": torch.ones(1)})
    for position in (5, 4):
        with pytest.raises(ValueError, match="paths are never used twice"):
            checkpointer.save(position, {"w": torch.ones(1)}, meta={}, fingerprint="")


def test_a_background_failure_comes_out_of_poll_once_and_the_next_save_works(
    memory_store: Store, faults: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    made = _checkpointer(memory_store)
    broken, driver = faults.break_store(memory_store, at=1, how="answer lost always")
    driver.inner = SimpleNamespace(**{**_verbs(memory_store), "write": _refuse})
    made._patient = broken
    with caplog.at_level(logging.CRITICAL):
        made.save(1, {"w": torch.ones(1)}, meta={}, fingerprint="")
        made._join()
    with pytest.raises(StoreFull, match=r"rank 0: .*no space or quota left"):
        made.poll()
    assert made.poll() == []
    made._patient = memory_store
    assert _save(made, 2, {"w": torch.ones(1)}).committed
    made.close()


def _verbs(store: Store) -> dict[str, Any]:
    driver = store._driver
    return {name: getattr(driver, name) for name in ("uri", "create", "read", "read_into", "size", "list", "delete")}


def _refuse(key: str, data: bytes | memoryview) -> None:
    raise OSError(28, "No space left on device")


def test_a_commit_that_exists_is_not_replaced(memory_store: Store, caplog: pytest.LogCaptureFixture) -> None:
    first = _checkpointer(memory_store)
    _save(first, 1, {"w": torch.ones(1)})
    twin = _checkpointer(memory_store)  # the same attempt, begun twice by mistake
    with caplog.at_level(logging.CRITICAL), pytest.raises(AlreadyExists):
        _save(twin, 1, {"w": torch.zeros(1)})
    first.close()
    twin.close()


@pytest.mark.parametrize("whole", [False, True])
def test_a_load_waits_for_a_store_that_is_away_for_a_minute(memory_store: Store, whole: bool) -> None:
    first = _checkpointer(memory_store)
    _save(first, 1, {"w": torch.ones(50)})
    first.close()
    waited_s = [0.0]

    def sleep(seconds: float) -> None:
        waited_s[0] += seconds

    def read(*what: Any) -> bytes:
        if waited_s[0] < 60:
            raise ConnectionResetError("nobody is there")
        return bytes(memory_store._driver.read(*what))

    driver: Any = SimpleNamespace(**{**_verbs(memory_store), "read": read})
    retries = Retries(sleep=sleep, clock=lambda: waited_s[0], uniform=lambda least, most: most)
    store = Store(driver, prefix=memory_store._prefix, retries=retries)
    second = Checkpointer(store, TRAIN_ONLY, stage="train", attempt=2, fence=None)
    state = {"w": torch.zeros(50)}
    second.load_newest([CommitRef("train", 1, 1)], state, whole=whole)
    second.close()
    assert torch.equal(state["w"], torch.ones(50))


def test_loading_the_newest_falls_back_and_says_so(memory_store: Store, checkpointer: Checkpointer) -> None:
    for position in (1, 2, 3):
        _save(checkpointer, position, {"w": torch.full((50,), float(position))})
    key = "checkpoints/step-00000003/attempt-000001/"
    memory_store.put(key + "rank-00000-0000.bin", bytes(200))
    memory_store.put("checkpoints/step-00000002/attempt-000001/state.json", b"{}")
    state = {"w": torch.zeros(50)}
    loaded = checkpointer.load_newest(list_commits(memory_store, TRAIN_ONLY), state)
    assert loaded is not None
    assert loaded.ref.position == 1
    assert state["w"][0] == 1
    assert ["step-00000003" in loaded.fallbacks[0], "step-00000002" in loaded.fallbacks[1]] == [True, True]


def test_every_commit_damaged_is_an_error_and_none_at_all_is_none(
    memory_store: Store, checkpointer: Checkpointer
) -> None:
    assert checkpointer.load_newest([], {}) is None
    _save(checkpointer, 1, {"w": torch.ones(50)})
    memory_store.put("checkpoints/step-00000001/attempt-000001/rank-00000-0000.bin", bytes(200))
    with pytest.raises(NoGoodCommit, match=r"none of the 1 commits .* nothing starts over silently"):
        checkpointer.load_newest(list_commits(memory_store, TRAIN_ONLY), {"w": torch.zeros(50)})


def test_a_state_record_that_makes_no_sense_is_damage(memory_store: Store) -> None:
    from checkpoints.writer import CommitWriter

    writer = CommitWriter(memory_store, TRAIN_ONLY, CommitRef("train", 9, 1))
    writer.put("state.json", b"{}")
    writer.publish(meta={})
    made = _checkpointer(memory_store)
    with pytest.raises(Damaged, match="it cannot be understood"):
        made.load(CommitRef("train", 9, 1), {})
    made.close()


def test_objects_are_packed_aligned_and_large_tensors_begin_their_own_blocks() -> None:
    mib = 2**20
    sizes = {"a": 100, "b": 3 * mib, "c": 7, "d": OBJECT_BYTES, "e": 0, "f": 2 * OBJECT_BYTES, "g": 5}
    flat = flatten_state({name: torch.empty(size, dtype=torch.uint8, device="meta") for name, size in sizes.items()})
    objects = lay_out(plan_local(flat, is_coordinator=True).items, rank=3)
    assert [[placed.item.index.fqn for placed in planned.items] for planned in objects] == [
        ["a", "b", "c"],
        ["d"],
        ["f"],
        ["g"],
    ]
    assert [planned.name for planned in objects][:2] == ["rank-00003-0000.bin", "rank-00003-0001.bin"]
    assert [placed.offset for placed in objects[0].items] == [0, 128, 128 + 3 * mib]
    assert objects[0].cuts == (128, 128 + 3 * mib)


@pytest.mark.gpu
def test_a_state_on_the_gpu_is_saved_and_loaded(memory_store: Store) -> None:
    made = _checkpointer(memory_store)
    weights = torch.randn(1000, 1000, device="cuda")
    kept = weights.clone()
    made.save(1, {"w": weights, "t": weights.t()}, meta={}, fingerprint="")
    weights.zero_()
    made.wait()
    loaded = {"w": torch.zeros_like(kept), "t": torch.zeros_like(kept).t()}
    made.load(CommitRef("train", 1, 1), loaded)
    assert torch.equal(loaded["w"], kept)
    assert torch.equal(loaded["t"], kept.t())
    made.close()
