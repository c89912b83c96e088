"""StoreCallback under a Trainer: two ranks killed and gone on with the same bits, the best kept, refusals in words."""

from __future__ import annotations

import json
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hand_driven import Steps

from checkpoints.attempts import AttemptLog
from checkpoints.best import Metric, best_commit
from checkpoints.errors import StateMismatch
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.manifest import Manifest
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Store
from checkpoints.torch_random import random_state, set_random_state
from checkpoints.torch_trainer import LEFT_ON_NOTICE, StoreCallback
from checkpoints.torch_trainer_parts import leave_loading_to_callback, sharding_of

RunRanks = Callable[..., list[tuple[str, str]]]
STEPS = 6


WRAPPED = {"ddp": "DistributedDataParallel", "fsdp": "FSDPLlamaForCausalLM", "zero": "DeepSpeedEngine"}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, run_ranks: RunRanks) -> tuple[Path, dict[str, list[Any]]]:
    """Where the runs are, and what rank 0 of two said of two starts of each kind: one is killed, the other goes on.

    The processes import their libraries once for all of them.
    """
    folder = tmp_path_factory.mktemp("trainers")

    def job(how: str, name: str, die_at: int | None = None) -> dict[str, Any]:
        return {"how": how, "uri": str(folder / how / name), "steps": STEPS, "die_at": die_at}

    starts = [
        jobs for how in WRAPPED for jobs in ([job(how, "killed", die_at=5)], [job(how, "killed"), job(how, "whole")])
    ]
    told = [{"meet": f"file://{folder}/meet-{number}", "jobs": jobs} for number, jobs in enumerate(starts)]
    program = Path(__file__).parent / "programs" / "trainer_ranks.py"
    outputs = run_ranks(
        [[sys.executable, str(program), str(rank), "2", json.dumps(told)] for rank in range(2)], timeout=480
    )
    (line,) = (line for line in outputs[0][0].splitlines() if line.startswith("ANSWER "))
    answers = json.loads(line.removeprefix("ANSWER "))
    return folder, {how: answers[2 * place : 2 * place + 2] for place, how in enumerate(WRAPPED)}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", WRAPPED)
def test_a_trainer_on_two_ranks_that_was_killed_ends_with_the_same_bits(
    how: str, played: tuple[Path, dict[str, list[Any]]]
) -> None:
    folder, wrapped = played[0] / how, WRAPPED[how]
    newest_when_killed, (gone_on, whole) = played[1][how]
    assert newest_when_killed == 4
    killed = Store.open(str(folder / "killed"))
    assert (gone_on["resumed"], whole["resumed"]) == (4, None)
    assert gone_on["wrapped"] == whole["wrapped"] == wrapped
    assert gone_on["digests"] == whole["digests"]
    assert gone_on["random"] == whole["random"]
    assert gone_on["losses"] == whole["losses"], "also those from before the kill, which the commit carried"
    assert len(whole["losses"]) == STEPS
    newest = list_commits(killed, TRAIN_ONLY)[0]
    manifest = CommitReader.open(killed, TRAIN_ONLY, newest).manifest
    assert (newest.position, newest.attempt, manifest.world_size) == (STEPS, 2, 2)
    stored = [sum(entry.size for entry in manifest.objects if entry.name.startswith(f"rank-0000{r}")) for r in (0, 1)]
    assert min(stored) > 0.3 * sum(stored), "each rank stores its own part, of what is on both one half"
    assert set(manifest.meta["metrics"]) >= {"loss", "eval_loss"}
    undisturbed = CommitReader.open(
        Store.open(str(folder / "whole")), TRAIN_ONLY, CommitRef("train", STEPS, 1)
    ).manifest
    assert _digests(manifest) == _digests(undisturbed), "model, moments, counters, every rank's random states, all bits"


def _digests(manifest: Manifest) -> list[tuple[str, list[str]]]:
    return [(entry.name, [block.digest for block in entry.blocks]) for entry in manifest.objects]


def _trainer(folder: Path, callback: StoreCallback, steps: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        attention_dropout=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 32, (12, 6))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers warns about is not ours to fix
        arguments = TrainingArguments(
            str(folder), max_steps=steps, per_device_train_batch_size=4, save_strategy="no", report_to=[],
            use_cpu=True, eval_strategy="steps", eval_steps=2, disable_tqdm=True, logging_steps=1,
        )  # fmt: skip
        return Trainer(
            model=LlamaForCausalLM(config), args=arguments, train_dataset=rows, eval_dataset=rows[:4],
            callbacks=[callback],
        )  # type: ignore[arg-type] # fmt: skip


def _train(store: Store, folder: Path, steps: int, metric: str = "eval_loss", until: int | None = None) -> Any:
    """A Trainer over three steps an epoch, whose evaluation says that step 4 was the best; it may stop early."""
    callback = StoreCallback(store, every_steps=2, keep=2, best_by=Metric(metric))
    trainer = _trainer(folder, callback, steps)
    evaluate = trainer.evaluate

    def judged(*args: Any, **kwargs: Any) -> dict[str, float]:
        evaluate(*args, **kwargs)  # it draws random numbers, as evaluations do
        metrics = {"eval_loss": abs(4.0 - trainer.state.global_step)}
        trainer.log(dict(metrics))
        return metrics

    trainer.evaluate = judged
    if until is not None:
        trainer.add_callback(_stop_at(until))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(resume_from_checkpoint=callback.resume_folder(trainer))
    return trainer


def _stop_at(step: int) -> Any:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> Any:
            control.should_training_stop = state.global_step >= step
            return control

    return Stop()


@pytest.mark.parametrize("until", [8, 6])
def test_the_best_by_a_number_that_the_trainer_logs_stays_and_evaluations_change_no_bits(
    memory_store: Store, tmp_path: Path, until: int
) -> None:
    """Steps 3, 6, 9 end an epoch; every second step is evaluated and saved; the first start ends after `until`."""
    whole = _train(memory_store.child("whole"), tmp_path, 12)
    store = memory_store.child("parts")
    _train(store, tmp_path, 12, until=until)
    assert list_commits(store, TRAIN_ONLY)[0].position == until
    parts = _train(store, tmp_path, 12)
    for ours, theirs in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    commits = list_commits(store, TRAIN_ONLY)
    assert [ref.position for ref in commits][:2] == [12, 10]
    assert 4 in [ref.position for ref in commits], "the best stays"
    assert 2 not in [ref.position for ref in commits]
    best = best_commit(store, TRAIN_ONLY, commits, Metric("eval_loss"))
    assert best is not None
    assert best.position == 4
    meta = CommitReader.open(store, TRAIN_ONLY, best).manifest.meta
    assert meta["metrics"]["eval_loss"] == 0.0
    assert "eval_loss" in meta["trainer_state"]["log_history"][-1], "the evaluation of a step belongs to its commit"


def test_damage_that_only_the_optimizer_would_see_makes_the_trainer_fall_back(
    memory_store: Store, tmp_path: Path
) -> None:
    _train(memory_store, tmp_path, 6)
    newest = list_commits(memory_store, TRAIN_ONLY)[0]
    (key,) = (key for key in memory_store.list(TRAIN_ONLY.commit_prefix(newest)) if key.endswith(".bin"))
    bad = bytearray(memory_store.get(key))
    bad[-1] ^= 1  # of the last tensor of the object; the model's come first
    memory_store.put(key, bytes(bad))
    trainer = _train(memory_store, tmp_path, 8)
    callback = next(one for one in trainer.callback_handler.callbacks if isinstance(one, StoreCallback))
    assert callback._loaded is not None
    assert callback._loaded.ref.position < newest.position
    assert key in callback._loaded.fallbacks[0]


def test_random_states_go_on_where_they_stood() -> None:
    import random

    import numpy as np

    random.gauss(0, 1)  # leaves a second one kept
    np.random.standard_normal()
    state = {name: tensor.clone() for name, tensor in random_state().items()}
    drawn = [random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.rand(), float(torch.rand(()))]
    set_random_state(state)
    again = [random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.rand(), float(torch.rand(()))]
    assert drawn == again


def _sham_trainer(**more: Any) -> Any:
    plugin = SimpleNamespace(fsdp_version=2)
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    base = {"is_deepspeed_enabled": False, "is_fsdp_enabled": False, "is_fsdp_xla_enabled": False}
    return SimpleNamespace(accelerator=accelerator, callback_handler=None, **{**base, **more})


def test_what_cannot_be_saved_is_refused_with_what_to_do(memory_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old = _sham_trainer(is_fsdp_enabled=True)
    assert sharding_of(old) == "fsdp"
    old.accelerator.state.fsdp_plugin.fsdp_version = 1
    with pytest.raises(StateMismatch, match=r"found FSDP version 1.*fsdp_config=\{\"version\": 2\}"):
        sharding_of(old)
    with pytest.raises(StateMismatch, match="does not know FSDP of torch_xla"):
        sharding_of(_sham_trainer(is_fsdp_xla_enabled=True))
    with pytest.raises(StateMismatch, match=r"Install transformers 5\.17"):
        leave_loading_to_callback(_sham_trainer())
    callback = StoreCallback(memory_store, every_steps=1)
    for sharded in ({"fsdp": True}, {"deepspeed": {"zero_optimization": {}}}):
        with pytest.raises(StateMismatch, match=r"Give it the Trainer: .*resume_folder\(trainer\)"):
            callback.on_train_begin(SimpleNamespace(**sharded), None, None)
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun's, before anything met
    with pytest.raises(StateMismatch, match="each rank would take itself for the only one: make the Trainer first"):
        callback.resume_folder(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("by", ["leaving", "the end"])
def test_the_last_save_is_not_passed_over_because_one_is_under_way(memory_store: Store, by: str) -> None:
    callback = StoreCallback(memory_store, every_steps=1, when_busy="skip", lease_s=5.0)
    steps = Steps(callback)
    steps.begin()
    release, driver = threading.Event(), memory_store._driver
    write = driver.write

    def slow(key: str, data: bytes | memoryview, **more: Any) -> None:
        assert "lease" in key or release.wait(20)
        write(key, data, **more)

    driver.write = slow  # type: ignore[method-assign]
    for _ in range(3):
        steps.step()  # saved when the next begins: the first is under way, the second passed over
    threading.Timer(0.2, release.set).start()
    if by == "leaving":
        callback.leave()
        with pytest.raises(SystemExit) as left:
            steps.step()
        assert left.value.code == LEFT_ON_NOTICE
    else:
        steps.end()
    assert [ref.position for ref in list_commits(memory_store, TRAIN_ONLY)] == [3, 1]
    (record,) = AttemptLog(memory_store, TRAIN_ONLY).records()
    assert record.end is not None
    assert record.end["stop_reason"] == ("preempted" if by == "leaving" else "done")


def test_a_trainer_that_raised_in_a_with_block_leaves_nothing_open(memory_store: Store) -> None:
    callback = StoreCallback(memory_store, every_steps=1)
    steps = Steps(callback)

    def train() -> None:
        with callback:
            steps.begin()
            steps.step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    (record,) = AttemptLog(memory_store, TRAIN_ONLY).records()
    assert record.end is not None
    assert record.end["stop_reason"] == "crashed"


def test_the_loss_scale_of_fp16_goes_on_where_it_stood(memory_store: Store) -> None:
    def with_scaler(**scaler: Any) -> tuple[StoreCallback, Steps, Any]:
        callback = StoreCallback(memory_store, every_steps=1)
        steps = Steps(callback)
        steps.optimizer.scaler = made = torch.amp.GradScaler("cpu", **scaler)  # type: ignore[attr-defined]
        return callback, steps, made

    first, steps, scaler = with_scaler(init_scale=512.0, growth_interval=7)
    steps.begin()
    steps.step()
    scaler.scale(torch.ones(()))
    scaler.update(128.0)
    steps.step()
    first.close()
    second, again, fresh = with_scaler()
    second._loaded = second._run.resume({}, partial=True)
    again.state.global_step = 1
    again.begin()
    assert fresh.state_dict() == {**scaler.state_dict(), "scale": 128.0}
    assert fresh.get_scale() == 128.0
    second.close()
    third, without, _ = with_scaler(enabled=False)
    third._loaded = third._run.resume({}, partial=True)
    without.state.global_step = 1
    with pytest.raises(StateMismatch, match=r"5 of the .* being \['scaler\.scale'"):
        without.begin()
    third.close()
