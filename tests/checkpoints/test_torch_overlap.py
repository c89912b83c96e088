"""A state that is copied while training goes on: what is saved is the state at the time of `save`, to the bit."""

from __future__ import annotations

import copy
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hand_driven import Steps
from slow_copies import slow_copies

from checkpoints.attempts import AttemptLog
from checkpoints.errors import SaveFailed, StateChanged
from checkpoints.fence import Fence
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Store
from checkpoints.torch_bridge import Checkpointer
from checkpoints.torch_overlap import LateCopy, Move, owned_by
from checkpoints.torch_trainer import StoreCallback

Copied = list[tuple[str, str]]
"""Name of a tensor, and of the thread that copied it."""


@pytest.fixture
def checkpointer(memory_store: Store) -> Iterator[Checkpointer]:
    log = AttemptLog(memory_store, TRAIN_ONLY)
    log.claim(1, {})
    log.put_base(1, None)
    made = Checkpointer(memory_store, TRAIN_ONLY, stage="train", attempt=1, fence=Fence(log, 1), keep=None)
    yield made
    made.close()


@pytest.fixture
def slow_copy() -> Iterator[Copied]:
    """Makes copies beside training begin when somebody waits for them (or after a second), and wait at each tensor."""
    copied: Copied = []
    with slow_copies(
        lambda name, is_late: copied.append((name, "late" if is_late else "at once")), begin_within_s=1.0, each_s=0.01
    ):
        yield copied


class _Training:
    """A model with a buffer that forward passes change, and an average of its weights kept by hand."""

    def __init__(self, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW, **more: Any) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 1))
        self.optimizer = optimizer(self.model.parameters(), **{"lr": 0.1, **more})
        self.average = [param.detach().clone() for param in self.model.parameters()]
        self.seen = 0

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optim": self.optimizer.state_dict(),
            "average": self.average,
            "seen": self.seen,
            "rng": torch.get_rng_state(),
        }

    def forward_backward(self) -> None:
        self.seen += 8
        self.model(torch.randn(8, 4)).square().mean().backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        for kept, param in zip(self.average, self.model.parameters(), strict=True):
            kept.lerp_(param.detach(), 0.1)


def _same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def _load(checkpointer: Checkpointer, position: int, like: dict[str, Any]) -> dict[str, Any]:
    state = copy.deepcopy(like)
    checkpointer.load(CommitRef("train", position, 1), state, partial=False)
    return state


def test_what_is_saved_is_the_state_at_the_time_of_save_while_steps_go_on(
    checkpointer: Checkpointer, slow_copy: Copied
) -> None:
    training, expected, results = _Training(), {}, []
    for step in range(1, 7):
        training.forward_backward()
        training.update()
        state = training.state()
        expected[step] = copy.deepcopy(state)
        checkpointer.save(step, state, meta={}, fingerprint="", optimizers=[training.optimizer])
        training.forward_backward()  # buffers, random numbers and counters change while weights are copied
        training.update()
        for kept in training.average:
            kept.zero_()
        results += checkpointer.poll()
    results += checkpointer.wait()
    assert [result.position for result in results] == list(expected)
    assert all(result.stall_s > 0.05 for result in results), "the update waited for eight moments and six weights"
    assert all(result.stall_s <= result.seconds for result in results)
    for step, state in expected.items():
        _same(_load(checkpointer, step, state), state)
    late = {name for name, when in slow_copy if when == "late"}
    assert {name.split(".")[0] for name in late} == {"model", "optim"}
    assert not any("running" in name or "num_batches" in name for name in late), "a forward pass changes these"


def test_without_optimizers_everything_is_copied_before_save_returns(
    checkpointer: Checkpointer, slow_copy: Copied
) -> None:
    training = _Training()
    training.forward_backward()
    training.update()
    checkpointer.save(1, training.state(), meta={}, fingerprint="")
    assert {when for _, when in slow_copy} == {"at once"}


@pytest.mark.parametrize("how", ["loaded", "by hand"])
def test_a_change_that_no_step_makes_fails_the_save_in_words(
    checkpointer: Checkpointer, slow_copy: Copied, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    training, other = _Training(), _Training()
    checkpointer.save(1, training.state(), meta={}, fingerprint="", optimizers=[training.optimizer])
    if how == "loaded":
        training.model.load_state_dict(other.model.state_dict())
    else:
        with torch.no_grad():
            training.model[0].weight.mul_(0.5)
    with (
        caplog.at_level(logging.CRITICAL),
        pytest.raises(StateChanged, match=r"model\.0\.weight.*only an optimizer's step.*Call wait_for_copy\(\)"),
    ):
        checkpointer.wait()
    assert list_commits(checkpointer._store, TRAIN_ONLY) == [], "nothing of what nobody can tell is committed"


def test_whoever_waits_for_the_copy_may_change_everything(checkpointer: Checkpointer, slow_copy: Copied) -> None:
    training = _Training()
    expected = copy.deepcopy(training.state())
    checkpointer.save(1, training.state(), meta={}, fingerprint="", optimizers=[training.optimizer])
    checkpointer.wait_for_copy()
    with torch.no_grad():
        for param in training.model.parameters():
            param.zero_()
    checkpointer.wait()
    _same(_load(checkpointer, 1, expected), expected)


def test_a_step_of_another_optimizer_of_the_same_weights_waits_too(
    checkpointer: Checkpointer, slow_copy: Copied
) -> None:
    training = _Training()
    expected = copy.deepcopy(training.state())
    second = torch.optim.SGD(training.model.parameters(), lr=1.0)
    checkpointer.save(1, training.state(), meta={}, fingerprint="", optimizers=[training.optimizer])
    training.forward_backward()
    second.step()
    checkpointer.wait()
    _same(_load(checkpointer, 1, expected)["model"]["0.weight"], expected["model"]["0.weight"])


def test_a_copy_that_fails_holds_no_step_back_and_is_a_failed_save(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    training = _Training()

    def broken(self: Move) -> None:
        if threading.current_thread().name.startswith("save-"):
            raise RuntimeError("the device is gone")

    monkeypatch.setattr(Move, "make", broken)
    with caplog.at_level(logging.CRITICAL):
        checkpointer.save(1, training.state(), meta={}, fingerprint="", optimizers=[training.optimizer])
        training.forward_backward()
        training.update()
        with pytest.raises(SaveFailed, match="rank 0: RuntimeError: the device is gone"):
            checkpointer.wait()
    monkeypatch.undo()
    checkpointer.save(2, training.state(), meta={}, fingerprint="", optimizers=[training.optimizer])
    assert checkpointer.wait()[0].committed


def test_a_wait_counts_from_when_it_began_to_the_end_of_the_copy() -> None:
    go_on = threading.Event()
    move = SimpleNamespace(name="w", source=torch.ones(1), version=lambda: (0, 0), make=lambda: go_on.wait(10))
    late = LateCopy([move])  # type: ignore[list-item]
    running = threading.Thread(target=late.run)
    running.start()
    waiting = threading.Thread(target=late.wait)
    waiting.start()
    while late._waiting_since is None:
        time.sleep(0.001)
    time.sleep(0.1)
    go_on.set()
    running.join()
    assert late.waited_s >= 0.1
    waited_s = late.waited_s
    late.wait()
    assert late.waited_s == waited_s, "whoever comes later does not wait"


class _ScheduleFree(torch.optim.SGD):
    def eval(self) -> None: ...


class _Foreign:
    """No optimizer of torch's: its step runs no hooks."""

    def __init__(self, params: list[torch.Tensor]) -> None:
        self.param_groups = [{"params": params}]
        self.state: dict[Any, Any] = {}


def test_only_what_a_hooked_step_alone_changes_is_copied_later() -> None:
    wide = torch.zeros(4, 8)
    weight = wide[:2]  # with another tensor behind it, which is not the optimizer's
    assert owned_by([torch.optim.SGD([weight], lr=0.1)]).hold(weight.t())
    assert not owned_by([torch.optim.SGD([weight], lr=0.1)]).hold(wide)
    assert not owned_by([torch.optim.SGD([weight], lr=0.1)]).hold(wide[2:])
    assert not owned_by([]).hold(weight)
    assert not owned_by([torch.optim.SGD([weight], lr=0.1)]).hold(torch.empty(0))
    assert not owned_by([_ScheduleFree([weight], lr=0.1)]).hold(weight)
    assert not owned_by([_Foreign([weight])]).hold(weight)  # type: ignore[list-item]
    rate = torch.tensor(0.1)  # a scheduler changes it between two steps
    assert not owned_by([torch.optim.AdamW([weight], lr=rate, capturable=True)]).hold(rate)


def test_accelerates_wrapper_owns_what_the_optimizer_in_it_owns() -> None:
    from accelerate import Accelerator

    weight = torch.nn.Parameter(torch.zeros(3))
    wrapped = Accelerator(cpu=True).prepare_optimizer(torch.optim.AdamW([weight]))
    weight.grad = torch.ones(3)
    wrapped.step()
    owned = owned_by([wrapped])
    assert owned.hold(weight)
    assert owned.hold(wrapped.state[weight]["exp_avg"])


def test_a_callback_saves_the_state_of_its_step_while_the_next_one_runs(memory_store: Store, slow_copy: Copied) -> None:
    callback = StoreCallback(memory_store, every_steps=1, keep=None)
    steps, expected = Steps(callback), {}
    steps.begin()
    for _ in range(4):
        steps.step()
        expected[steps.state.global_step] = steps.model.weight.detach().clone()
    steps.end()
    for position, weight in expected.items():
        manifest = {ref.position: ref for ref in list_commits(memory_store, TRAIN_ONLY)}[position]
        loaded = {"model": {"weight": torch.zeros_like(weight)}}
        reader = Checkpointer(memory_store, TRAIN_ONLY, stage="train", attempt=9, fence=None)
        reader.load(manifest, loaded)
        reader.close()
        _same(loaded["model"]["weight"], weight)
    assert ("model.weight", "late") in slow_copy
    assert slow_copy[-1][1] == "at once", "where nothing trains on, nothing is put off"


def test_a_trainer_commits_the_same_bits_beside_training_as_before_it(
    memory_store: Store, tmp_path: Path, slow_copy: Copied, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = _train(memory_store.child("late"), tmp_path)
    assert {name.split(".")[0] for name, when in slow_copy if when == "late"} == {"model", "optim"}
    monkeypatch.setattr("checkpoints.torch_bridge.owned_by", lambda optimizers: owned_by(()))
    assert _train(memory_store.child("at-once"), tmp_path) == late
    assert len(late) == 4


def _train(store: Store, folder: Path) -> dict[int, list[str]]:
    """Digests of every block of every commit of a Trainer's four steps."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 32, (8, 6))]
    callback = StoreCallback(store, every_steps=1, keep=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers warns about is not ours to fix
        arguments = TrainingArguments(
            str(folder), max_steps=4, per_device_train_batch_size=4, save_strategy="no", report_to=[], use_cpu=True,
            disable_tqdm=True, max_grad_norm=0.1,
        )  # fmt: skip
        trainer = Trainer(
            model=LlamaForCausalLM(config), args=arguments, train_dataset=rows, callbacks=[callback]
        )  # type: ignore[arg-type] # fmt: skip
        trainer.train(resume_from_checkpoint=callback.resume_folder(trainer))
    found = {}
    for ref in list_commits(store, TRAIN_ONLY):
        entries = CommitReader.open(store, TRAIN_ONLY, ref).manifest.objects
        found[ref.position] = [
            block.digest for entry in entries if entry.name != "state.json" for block in entry.blocks
        ]
    return found


@pytest.mark.gpu
def test_on_a_gpu_the_copy_runs_on_a_stream_of_its_own(memory_store: Store, checkpointer: Checkpointer) -> None:
    model = torch.nn.Linear(2048, 2048, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    inputs = torch.randn(512, 2048, device="cuda")
    running = torch.zeros(64, device="cuda")
    expected = {}
    for step in range(1, 9):
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        running += step
        state = {"model": model.state_dict(), "optim": optimizer.state_dict(), "running": running}
        expected[step] = copy.deepcopy(state)
        checkpointer.save(step, state, meta={}, fingerprint="", optimizers=[optimizer])
        running.zero_()
    checkpointer.wait()
    for step, state in expected.items():
        _same(_load(checkpointer, step, state), state)


def test_closing_lets_steps_pass_unasked(memory_store: Store, slow_copy: Copied) -> None:
    from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks

    before = dict(hooks)
    made = Checkpointer(memory_store, TRAIN_ONLY, stage="train", attempt=1, fence=None)
    training = _Training()
    made.save(1, training.state(), meta={}, fingerprint="", optimizers=[training.optimizer])
    assert len(hooks) == len(before) + 1
    made.close()
    assert dict(hooks) == before


OPTIMIZERS: list[Callable[[], _Training]] = [
    lambda: _Training(torch.optim.SGD, momentum=0.9),
    lambda: _Training(torch.optim.Adam, foreach=True),
    lambda: _Training(torch.optim.AdamW, fused=True),
    lambda: _Training(torch.optim.RMSprop),
]


@pytest.mark.parametrize("make", OPTIMIZERS, ids=["sgd", "adam foreach", "adamw fused", "rmsprop"])
def test_every_kind_of_optimizer_waits(checkpointer: Checkpointer, slow_copy: Copied, make: Any) -> None:
    training = make()
    for step in (1, 2, 3):
        training.forward_backward()
        training.update()
        expected = copy.deepcopy(training.state())
        checkpointer.save(step, training.state(), meta={}, fingerprint="", optimizers=[training.optimizer])
        training.forward_backward()
        training.update()
        assert checkpointer.wait()[0].stall_s > 0.02
        _same(_load(checkpointer, step, expected), expected)
    assert ("model.0.weight", "late") in slow_copy
