"""Against the reference: the losses of every step equal those of a plain Hugging Face Trainer; and the model learns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.spec import CheckpointSpec, TrainSpec
from alpaca_jobs.training.batching import global_batch
from alpaca_jobs.training.data import unigram_entropy
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


@pytest.fixture(params=["tiny-llama", "tiny-opt"])
def train(request: pytest.FixtureRequest, tmp_path: Path) -> TrainSpec:
    """The same training of tiny-llama, which is packed by positions, and of OPT without dropout, by a block mask."""
    if request.param == "tiny-llama":
        return TRAIN
    folder = tmp_path / "opt"
    shutil.copytree(request.getfixturevalue("tiny_opt"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dropout": 0.0}))
    return TRAIN.model_copy(update={"model": str(folder)})


@pytest.mark.filterwarnings(
    "ignore:FSDP2-wrapped module:UserWarning"
)  # OPT's layers return views, nobody writes to them
def test_losses_of_twenty_steps_equal_those_of_a_plain_hugging_face_trainer(
    train: TrainSpec, worker: Any, one_rank: None, tmp_path: Path
) -> None:
    """The published recipe: padded batches, labels of -100, accumulation, AdamW, cosine with warm-up, clipping."""
    dataset = prepare_dataset(train, worker.rows(40))
    ours = _train(worker, train, dataset, tmp_path / "store")
    theirs = _train_with_hugging_face(train, dataset, tmp_path / "reference")
    assert len(ours) == len(theirs) == 20
    for mine, log in zip(ours, theirs, strict=True):
        assert mine.loss == pytest.approx(log["loss"], abs=1e-5), mine.step
        assert mine.learning_rate == pytest.approx(log["learning_rate"], rel=1e-9), mine.step
        assert mine.grad_norm == pytest.approx(log["grad_norm"], rel=1e-3), mine.step


def _train_with_hugging_face(train: TrainSpec, dataset: Any, folder: Path) -> list[dict[str, float]]:
    import torch
    from transformers import Trainer, TrainingArguments

    from alpaca_jobs.training.model import build_model
    from alpaca_jobs.training.tokenizer import load_tokenizer

    tokenizer, data = load_tokenizer(dataset.tokenizer_files), dataset.rows
    order = [
        row
        for step in range(1, 21)
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
    with pytest.raises(TrainingError, match=r"Step \d: the loss is .* The last good state is step 0\. Lower train"):
        _train(worker, wild, prepare_dataset(wild, worker.rows(24)), tmp_path / "store")


@pytest.mark.slow
def test_tiny_llama_learns_far_beyond_the_unigram_entropy(worker: Any, one_rank: None, tmp_path: Path) -> None:
    train = TRAIN.model_copy(update={"epochs": 3.0, "micro_batch_size": 8, "weight_decay": 0.0})
    dataset = prepare_dataset(train, worker.rows(160))
    metrics = _train(worker, train, dataset, tmp_path / "store")
    entropy = unigram_entropy(dataset.rows)
    assert metrics[0].loss > entropy  # it knows nothing yet, not even the frequencies
    assert sum(m.loss for m in metrics[-5:]) / 5 < 0.5 * entropy
