"""What `trl-sft.yaml` runs: TRL's SFTTrainer on the run's rows, saving to the run's store and going on from it.

TRL is not part of this project's environment: rented machines make one for `train.install`. To run this on a machine of
your own, make one there (`pip install alpaca-jobs trl datasets`) and name its Python in `train.command`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path


def main() -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from alpaca_jobs.prompts import render_prompt
    from checkpoints.torch_trainer import StoreCallback

    job = json.loads(Path(os.environ["ALPACA_JOBS_JOB"]).read_text(encoding="utf-8"))
    train = job["train"]
    revision = (
        os.environ.get("ALPACA_JOBS_REVISION") or "main"
    )  # the commit of the launch: every attempt loads the same
    ranks = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's: more than one on a machine with several GPUs
    tokenizer = AutoTokenizer.from_pretrained(train["model"], revision=revision)
    rows = [json.loads(line) for line in Path(os.environ["ALPACA_JOBS_DATA"]).read_text(encoding="utf-8").splitlines()]
    dataset = Dataset.from_list(
        [{"prompt": render_prompt(row["instruction"], row["input"]), "completion": row["output"]} for row in rows]
    )
    callback = StoreCallback.from_env()  # saves to the run's store; SIGTERM: save, then leave
    trainer = SFTTrainer(
        model=train["model"],
        processing_class=tokenizer,
        train_dataset=dataset,
        args=SFTConfig(
            output_dir="trainer",
            model_init_kwargs={"revision": revision},
            save_strategy="no",  # the callback saves
            num_train_epochs=train["epochs"],
            learning_rate=train["learning_rate"],
            lr_scheduler_type=train["lr_schedule"],
            per_device_train_batch_size=train["micro_batch_size"],
            gradient_accumulation_steps=train["global_batch_size"] // (train["micro_batch_size"] * ranks),
            max_length=train["max_length"],
            completion_only_loss=True,
            bf16=train["dtype"] == "bfloat16",
            seed=train["seed"],
            logging_steps=1,
            report_to="none",
        ),
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=callback.resume_folder(trainer))
    trainer.save_model(os.environ["ALPACA_JOBS_OUTPUT"])  # rank 0 writes
    tokenizer.save_pretrained(os.environ["ALPACA_JOBS_OUTPUT"])


if __name__ == "__main__":
    main()
