"""What training is compared with: Hugging Face's Trainer on rows padded to the longest of their micro batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alpaca_jobs.training.data import TokenizedRows


def examples(data: TokenizedRows, order: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Rows in the order of the steps, as the Trainer's dataset: input_ids and labels, -100 where no loss is."""
    made = []
    for row in (row for batch in order for row in batch):
        span = slice(int(data.offsets[row]), int(data.offsets[row + 1]))
        ids = data.tokens[span].astype(np.int64)
        made.append({"input_ids": ids.tolist(), "labels": np.where(data.is_target[span], ids, -100).tolist()})
    return made


class Clock:
    """Seconds of every optimizer step of a Hugging Face Trainer.

    Args:
        wait: called before the clock is read; on a GPU, what waits until it has computed what it was given.
    """

    def __init__(self, wait: Callable[[], object] | None = None) -> None:
        from transformers import TrainerCallback

        seconds: list[float] = []
        self.seconds = seconds

        def now() -> float:
            if wait is not None:
                wait()
            return time.perf_counter()

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                self.begin = now()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                seconds.append(now() - self.begin)

        self.callback = Callback()


def trainer_arguments(make: Any, folder: Path | str, *, size: int, accumulation: int, **more: Any) -> Any:
    """The recipe's arguments without logging and saves; `make` is TrainingArguments or a subclass of it."""
    return make(
        output_dir=f"{folder}-out", per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
        learning_rate=2e-5, num_train_epochs=1, logging_strategy="no", save_strategy="no", report_to=[],
        disable_tqdm=True, **more,
    )  # fmt: skip


def train_padded(
    model: Any,
    data: TokenizedRows,
    order: Sequence[Sequence[int]],
    size: int,
    folder: Path | str,
    *,
    is_flat: bool = False,
    wait: Callable[[], object] | None = None,
    **more: Any,
) -> list[float]:
    """Seconds of every step: each micro batch padded to its longest row; or, flat, its rows side by side.

    Args:
        order: rows of each optimizer step.
        size: rows of a micro batch.
        wait: as for Clock.
        more: further TrainingArguments.
    """
    from torch.nn.utils.rnn import pad_sequence
    from transformers import DataCollatorWithFlattening, PrinterCallback, Trainer, TrainingArguments

    def pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(example["input_ids"]) for example in rows]
        labels = [torch.tensor(example["labels"]) for example in rows]
        return {
            "input_ids": pad_sequence(ids, batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    clock = Clock(wait)
    model.config.use_cache = False
    accumulation = -(-len(order[0]) // size)
    trainer = InOrder(
        model=model,
        args=trainer_arguments(
            TrainingArguments, folder, size=size, accumulation=accumulation, remove_unused_columns=False, **more
        ),
        train_dataset=examples(data, order),
        data_collator=DataCollatorWithFlattening() if is_flat else pad,
        callbacks=[clock.callback],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.seconds
