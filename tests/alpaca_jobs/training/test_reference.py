"""Against the reference: the losses of every step equal those of a plain Hugging Face Trainer; and the model learns."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpaca_jobs.errors import Diverged
from alpaca_jobs.spec import CheckpointSpec, TrainSpec
from alpaca_jobs.training.batching import global_batch
from alpaca_jobs.training.collate import Layout
from alpaca_jobs.training.data import TokenizedRows, cut_row, gather_rows
from alpaca_jobs.training.dataset import prepare_dataset
from checkpoints.store import Store

pytestmark = pytest.mark.timeout(300)  # 10 s alone, more on a busy machine

TRAIN = TrainSpec(
    model="tiny-llama",
    global_batch_size=8,
    micro_batch_size=3,
    learning_rate=2e-3,
    weight_decay=0.1,
    warmup_ratio=0.2,
    epochs=4,
    max_length=128,
    dtype="float32",
)


def _train(worker: Any, train: TrainSpec, dataset: Any, folder: Path) -> list[Any]:
    """Our loop, alone; returns the metrics of every step."""
    from alpaca_jobs.training.control import TrainContext
    from alpaca_jobs.training.loop import run_training

    control = worker.Control({}, 0)
    checkpointer = worker.Checkpointer(
        Store.open(f"file://{folder}"), worker.LAYOUT, stage="train", attempt=1, fence=None, keep=None
    )
    run_training(
        TrainContext(
            train=train,
            checkpoints=CheckpointSpec(interval_steps=1000),
            rank=0,
            world_size=1,
            rows=dataset.rows,
            tokenizer_files=dataset.tokenizer_files,
            checkpointer=checkpointer,
            candidates=[],
            control=control,
            threads=1,
        )
    )
    checkpointer.close()
    metrics: list[Any] = control.metrics
    return metrics


STEPS = 20


@dataclass(frozen=True)
class Reference:
    """What a plain Hugging Face Trainer says of the published recipe: padded batches, labels of -100, accumulation,
    AdamW, cosine with warm-up, clipping."""

    dataset: Any
    log: list[dict[str, float]]

    def check(self, losses: Sequence[float], grad_norms: Sequence[float]) -> None:
        assert len(losses) == len(self.log) == STEPS
        for step, (log, loss, grad_norm) in enumerate(zip(self.log, losses, grad_norms, strict=True), 1):
            assert loss == pytest.approx(log["loss"], abs=1e-5), step
            assert grad_norm == pytest.approx(log["grad_norm"], rel=1e-3), step


@pytest.fixture(scope="module")
def reference(worker: Any, one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """One run of the reference for all engines and layouts."""
    dataset = prepare_dataset(TRAIN, worker.rows(40))
    return Reference(dataset, _train_with_hugging_face(TRAIN, dataset, tmp_path_factory.mktemp("reference")))


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_losses_of_twenty_steps_equal_those_of_a_plain_hugging_face_trainer(
    layout: Layout, reference: Reference, worker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process, engine single, in every layout: rows cut out, masks from positions, a block mask, padded."""
    worker.use_layout(layout, monkeypatch.setattr)
    ours = _train(worker, TRAIN, reference.dataset, tmp_path / "store")
    reference.check([one.loss for one in ours], [one.grad_norm for one in ours])
    for mine, log in zip(ours, reference.log, strict=True):
        assert mine.learning_rate == pytest.approx(log["learning_rate"], rel=1e-9), mine.step


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory, train_on_two_ranks: Any) -> dict[str, list[dict[str, Any]]]:
    """The same training with engine fsdp on two ranks, in every layout; one start of two processes."""
    stores = tmp_path_factory.mktemp("stores")
    train = {**TRAIN.model_dump(mode="json", exclude_unset=True), "engine": "fsdp"}
    told: dict[str, list[dict[str, Any]]] = train_on_two_ranks(
        [
            {"name": layout, "store": f"file://{stores / layout}", "attempt": 1, "train": train, "interval": 1000,
             "num_rows": 40, "layout": layout}
            for layout in Layout
        ],
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    return told


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_fsdp_on_two_ranks_has_the_losses_of_a_plain_hugging_face_trainer(
    layout: Layout, reference: Reference, on_two_ranks: dict[str, list[dict[str, Any]]]
) -> None:
    told = on_two_ranks[layout][0]
    assert "error" not in told, told["text"]
    reference.check([float.fromhex(loss) for loss in told["losses"]], told["grad_norms"])


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:FSDP2-wrapped module:UserWarning"
)  # OPT's layers return views, nobody writes to them
def test_opt_has_the_losses_of_a_plain_hugging_face_trainer_too(
    tiny_opt: Path, worker: Any, one_rank: None, tmp_path: Path
) -> None:
    """OPT without dropout, whose rows transformers never keeps apart by itself: cut out here."""
    folder = tmp_path / "opt"
    shutil.copytree(tiny_opt, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dropout": 0.0}))
    train = TRAIN.model_copy(update={"model": str(folder)})
    dataset = prepare_dataset(train, worker.rows(40))
    ours = _train(worker, train, dataset, tmp_path / "store")
    theirs = Reference(dataset, _train_with_hugging_face(train, dataset, tmp_path / "reference"))
    theirs.check([one.loss for one in ours], [one.grad_norm for one in ours])


def _train_with_hugging_face(train: TrainSpec, dataset: Any, folder: Path) -> list[dict[str, float]]:
    import torch
    from transformers import Trainer, TrainingArguments

    from alpaca_jobs.training.model import build_model
    from alpaca_jobs.training.tokenizer import load_tokenizer

    tokenizer, data = load_tokenizer(dataset.tokenizer_files), dataset.rows
    order = [
        row
        for step in range(1, STEPS + 1)
        for row in global_batch(step, seed=train.seed, num_rows=len(data), global_batch_size=8)[1]
    ]

    def example(row: int) -> dict[str, torch.Tensor]:
        span = slice(int(data.offsets[row]), int(data.offsets[row + 1]))
        ids = torch.from_numpy(data.tokens[span]).long()
        return {"input_ids": ids, "labels": torch.where(torch.from_numpy(data.is_target[span]), ids, -100)}

    def pad(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        from torch.nn.utils.rnn import pad_sequence

        ids = pad_sequence([e["input_ids"] for e in examples], batch_first=True, padding_value=tokenizer.pad_id)
        labels = pad_sequence([e["labels"] for e in examples], batch_first=True, padding_value=-100)
        mask = pad_sequence([torch.ones_like(e["input_ids"]) for e in examples], batch_first=True)
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    class InOurOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        warmup_steps=train.warmup_ratio,
        lr_scheduler_type="cosine",
        num_train_epochs=1,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = InOurOrder(
        model=build_model(train, tokenizer, device=torch.device("cpu")),
        args=arguments,
        train_dataset=[example(row) for row in order],
        data_collator=pad,
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def test_gradient_checkpointing_changes_no_bit(worker: Any, one_rank: None, tmp_path: Path) -> None:
    short = TRAIN.model_copy(update={"max_steps": 3, "exactness": "bits"})
    dataset = prepare_dataset(short, worker.rows(24))
    plain = _train(worker, short, dataset, tmp_path / "plain")
    recomputed = short.model_copy(update={"gradient_checkpointing": True})
    again = _train(worker, recomputed, dataset, tmp_path / "recomputed")
    assert [(m.loss, m.grad_norm) for m in again] == [(m.loss, m.grad_norm) for m in plain]
    for one in plain:
        assert 0 <= one.data_wait_s < one.seconds, "rows are waited for inside the step"
        assert one.peak_memory_bytes > 100 * 2**20, "torch alone is more"


def test_a_loss_that_is_no_number_ends_the_training_in_words(worker: Any, one_rank: None, tmp_path: Path) -> None:
    wild = TRAIN.model_copy(update={"learning_rate": 1e30, "warmup_ratio": 0.0, "max_steps": 6})
    with pytest.raises(Diverged, match=r"Step \d: the loss is .*good state is step 0\..*launch it as a new run"):
        _train(worker, wild, prepare_dataset(wild, worker.rows(24)), tmp_path / "store")


def _unigram_entropy(rows: TokenizedRows) -> float:
    """Entropy in nats of the target tokens' own frequencies: the best mean loss of a model that knows nothing else."""
    counts = np.bincount(rows.tokens[rows.is_target])
    shares = counts[counts > 0] / counts.sum()
    return float(-math.fsum(shares * np.log(shares)))


def test_unigram_entropy_is_that_of_the_target_tokens_alone() -> None:
    row = cut_row([9, 9, 9, 1, 1, 2, 0], [False] * 3 + [True] * 4, max_length=99)
    entropy = _unigram_entropy(gather_rows([row], max_length=99))
    assert entropy == pytest.approx(-(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)))


@pytest.mark.slow
def test_tiny_llama_learns_far_beyond_the_unigram_entropy(worker: Any, one_rank: None, tmp_path: Path) -> None:
    train = TRAIN.model_copy(update={"epochs": 3.0, "micro_batch_size": 8, "weight_decay": 0.0})
    dataset = prepare_dataset(train, worker.rows(160))
    metrics = _train(worker, train, dataset, tmp_path / "store")
    entropy = _unigram_entropy(dataset.rows)
    assert metrics[0].loss > entropy  # it knows nothing yet, not even the frequencies
    assert sum(m.loss for m in metrics[-5:]) / 5 < 0.5 * entropy
