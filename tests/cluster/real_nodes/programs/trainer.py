"""A training program of a user's: Hugging Face's Trainer on a tiny random model, by the run's callback or by folders.

python trainer.py callback|folders
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

torch.use_deterministic_algorithms(True)
torch.set_num_threads(1)
WORDS = 64


def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(int(os.environ["ALPACA_JOBS_SEED"]))
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, attention_dropout=0.1, bos_token_id=None, eos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def rows() -> list[dict[str, torch.Tensor]]:
    found = []
    for line in Path(os.environ["ALPACA_JOBS_DATA"]).read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["output"].encode()[:16].ljust(16)
        ids = torch.tensor([byte % WORDS for byte in text])
        found.append({"input_ids": ids, "labels": ids.clone()})
    return found


def main(how: str) -> None:
    from transformers import Trainer, TrainingArguments

    job = json.loads(Path(os.environ["ALPACA_JOBS_JOB"]).read_text(encoding="utf-8"))
    output, every = os.environ["ALPACA_JOBS_OUTPUT"], int(os.environ["ALPACA_JOBS_SAVE_EVERY"])
    arguments = {"save_strategy": "steps", "save_steps": every} if how == "folders" else {"save_strategy": "no"}
    callbacks: list[Any] = []
    made = model()
    resume = os.environ["ALPACA_JOBS_RESUME"] or None
    if how == "callback":
        from checkpoints.torch_trainer import StoreCallback

        callback = StoreCallback.from_env()
        callbacks, resume = [callback], callback.resume_folder(made)
    trainer = Trainer(
        model=made,
        args=TrainingArguments(
            output, per_device_train_batch_size=4, max_steps=job["train"]["max_steps"], logging_steps=1,
            learning_rate=1e-3, use_cpu=True, report_to="none", disable_tqdm=True, seed=7, **arguments,
        ),
        train_dataset=rows(),  # type: ignore[arg-type]
        callbacks=callbacks,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(output)


if __name__ == "__main__":
    main(sys.argv[1])
