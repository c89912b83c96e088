"""RunCheckpointer: nothing is lost without a word: moments, the last save, the lease, an attempt that was left open."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.attempts import AttemptLog
from checkpoints.errors import RunActive, StateMismatch, StoreFull
from checkpoints.given import GivenAttempt, Progress
from checkpoints.keys import TRAIN_ONLY
from checkpoints.reader import list_commits
from checkpoints.store import Store
from checkpoints.torch_given import GivenCheckpointer
from checkpoints.torch_optimizer import make_moments
from checkpoints.torch_run import RunCheckpointer


def _end_of(store: Store, attempt: int) -> Any:
    end = AttemptLog(store, TRAIN_ONLY).records()[attempt - 1].end
    return end and end["stop_reason"]


@pytest.fixture
def full_disk(memory_store: Store) -> Iterator[Callable[[], None]]:
    """`full_disk()`: from now on nothing but records can be stored."""
    driver = memory_store._driver
    write = driver.write

    def refuse(key: str, data: bytes | memoryview, **more: Any) -> None:
        if "checkpoints/" in key:
            raise OSError(28, "No space left on device")
        write(key, data, **more)

    yield lambda: setattr(driver, "write", refuse)
    driver.write = write  # type: ignore[method-assign]


def _adam(model: torch.nn.Module, **more: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1, **more)


def _trained(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[torch.Tensor]:
    for step in range(steps):
        torch.manual_seed(step)
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [param.detach().clone() for param in model.parameters()]


def test_moments_are_never_dropped_without_a_word(memory_store: Store) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = _adam(model)
    _trained(model, optimizer, 3)
    with RunCheckpointer(memory_store) as run:
        run.resume({})
        run.save(3, {"model": model.state_dict(), "optim": optimizer.state_dict()})
    fresh = torch.nn.Linear(3, 2)
    begun = _adam(fresh)
    with RunCheckpointer(memory_store) as run:
        with pytest.raises(StateMismatch, match=r"6 of the .* being \['optim\.state\.0\..*make_moments\(opt"):
            run.resume({"model": fresh.state_dict(), "optim": begun.state_dict()})
        assert not run.started, "what was refused is no base"
        assert run.resume({"model": fresh.state_dict()}, partial=True) is not None
    with RunCheckpointer(memory_store) as run:
        make_moments(begun)
        state = {"model": fresh.state_dict(), "optim": begun.state_dict()}
        assert run.resume(state) is not None
        begun.load_state_dict(state["optim"])
    assert all(torch.equal(a, b) for a, b in zip(_trained(model, optimizer, 2), _trained(fresh, begun, 2), strict=True))


@pytest.mark.parametrize(
    "make",
    [
        _adam,
        lambda model: _adam(model, amsgrad=True, foreach=False),
        lambda model: torch.optim.Adam(model.parameters(), weight_decay=0.1, lr=torch.tensor(0.1)),
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
        lambda model: torch.optim.RMSprop(model.parameters(), momentum=0.5, weight_decay=0.1),
    ],
)
def test_making_moments_changes_no_bit_of_a_training(make: Callable[[torch.nn.Module], torch.optim.Optimizer]) -> None:
    results = []
    for with_moments in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        model.bias.requires_grad_(False)
        optimizer = make(model)
        if with_moments:
            model.weight.grad = torch.ones_like(model.weight)
            before = [param.detach().clone() for param in model.parameters()]
            make_moments(optimizer)
            assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            assert torch.equal(model.weight.grad, torch.ones(2, 3)), "a gradient that was there is kept"
            assert len(optimizer.state_dict()["state"]) == 1
            optimizer.zero_grad()
        results.append(_trained(model, optimizer, 3))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_last_save_that_failed_is_raised_by_close_and_recorded(
    memory_store: Store, full_disk: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    def train() -> None:
        with RunCheckpointer(memory_store) as run:
            run.resume({})
            full_disk()
            run.save(1, {"w": torch.ones(1)})

    with caplog.at_level(logging.CRITICAL), pytest.raises(StoreFull, match=r"train 1 .* was not committed"):
        train()
    assert _end_of(memory_store, 1) == "save_failed"


def test_a_failed_save_hides_no_other_exception(
    memory_store: Store, full_disk: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = RunCheckpointer(memory_store)

    def crash() -> None:
        try:
            run.resume({})
            full_disk()
            run.save(1, {"w": torch.ones(1)})
            raise ZeroDivisionError
        finally:
            run.close()

    with caplog.at_level(logging.ERROR), pytest.raises(ZeroDivisionError):
        crash()
    assert "a save of train failed and nobody asked" in caplog.text
    assert _end_of(memory_store, 1) == "crashed"


def test_an_attempt_this_process_left_open_is_named_and_closing_it_helps(memory_store: Store) -> None:
    left = RunCheckpointer(memory_store, lease_s=0.4)
    with pytest.raises(RunActive, match=r"begun by this very process and not closed.*[Cc]all close\(\)"):
        RunCheckpointer(memory_store, lease_s=0.4)
    left.close()
    RunCheckpointer(memory_store, lease_s=0.4).close()


def test_a_store_that_was_away_for_longer_than_the_lease_ends_nothing(
    memory_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    driver = memory_store._driver
    listing, away = driver.list, threading.Event()

    def unreachable(prefix: str) -> list[str]:
        if away.is_set():
            raise ConnectionResetError("the connection broke")
        return listing(prefix)

    driver.list = unreachable  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING), RunCheckpointer(memory_store, lease_s=0.3) as run:
        run.resume({})
        away.set()
        _until(lambda: "could not renew its lease for 0.3 s" in caplog.text)
        away.clear()
        log = AttemptLog(memory_store, TRAIN_ONLY)
        before = log.read_lease(1)
        _until(lambda: log.read_lease(1) != before)
        run.save(1, {"w": torch.ones(1)})
        assert run.wait()[0].committed
        with pytest.raises(RunActive):
            RunCheckpointer(memory_store, lease_s=0.3)
    assert _end_of(memory_store, 1) == "done"
    assert not [one for one in threading.enumerate() if one.name.startswith("lease-1-")], "its threads have ended"


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


@pytest.mark.parametrize("when_busy", ["wait", "skip"])
def test_a_run_says_what_its_program_does_while_a_save_is_under_way(tmp_path: Path, when_busy: Any) -> None:
    given = GivenAttempt(
        store_uri=str(tmp_path), run_id="run", attempt=1, layout=TRAIN_ONLY, stage="train", candidates=(),
        base_is_open=True, every_steps=None, keep=2, keep_every=None, when_busy=when_busy,
    )  # fmt: skip
    given = GivenAttempt.from_env({"ALPACA_JOBS_CHECKPOINTS": given.to_json()})
    store = Store.open(str(tmp_path)).child("run")
    AttemptLog(store, TRAIN_ONLY).claim(1, {})
    run = GivenCheckpointer(given, progress=Progress(str(tmp_path / "progress")))
    run.resume({})
    release = threading.Event()
    driver: Any = run._checkpointer._patient._driver
    write = driver.write
    driver.write = lambda *args, **more: (release.wait(20), write(*args, **more))
    run.save(1, {"w": torch.ones(1)})
    second = threading.Thread(target=run.save, args=(2, {"w": torch.ones(1)}))
    second.start()
    second.join(0.3)
    assert second.is_alive() == (when_busy == "wait"), "it waits for the first, or does not"
    release.set()
    second.join(20)
    results = run.wait()
    run.close()
    assert [result.committed for result in results if result.position == 2] == [when_busy == "wait"]
    assert [ref.position for ref in list_commits(store, TRAIN_ONLY)] == ([2, 1] if when_busy == "wait" else [1])
    assert (tmp_path / "progress").read_text("utf-8").count('"kind": "save"') == 2
