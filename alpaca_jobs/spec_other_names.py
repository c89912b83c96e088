"""What other tools call a key of the job: transformers' TrainingArguments, TRL, LLaMA-Factory, Axolotl and SkyPilot.

For the words about an unknown key alone: a job file has one name for each thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

OTHER_NAMES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "lr": ("train.learning_rate",),
        "batch_size": ("train.global_batch_size", "train.micro_batch_size"),
        "per_device_train_batch_size": ("train.micro_batch_size",),
        "per_device_batch_size": ("train.micro_batch_size",),
        "gradient_accumulation_steps": ("train.global_batch_size",),
        "num_train_epochs": ("train.epochs",),
        "num_epochs": ("train.epochs",),
        "warmup_steps": ("train.warmup_ratio",),
        "lr_scheduler": ("train.lr_schedule",),
        "lr_scheduler_type": ("train.lr_schedule",),
        "gradient_clipping": ("train.max_grad_norm",),
        "bf16": ("train.dtype",),
        "fp16": ("train.dtype",),
        "torch_dtype": ("train.dtype",),
        "max_seq_length": ("train.max_length",),
        "max_seq_len": ("train.max_length",),
        "model_max_length": ("train.max_length",),
        "cutoff_len": ("train.max_length",),
        "sequence_len": ("train.max_length",),
        "model_name_or_path": ("train.model",),
        "base_model": ("train.model",),
        "finetuning_type": ("train.method",),
        "lora_r": ("train.lora.rank",),
        "lora_rank": ("train.lora.rank",),
        "lora_alpha": ("train.lora.alpha",),
        "lora_dropout": ("train.lora.dropout",),
        "lora_target": ("train.lora.target_modules",),
        "lora_target_modules": ("train.lora.target_modules",),
        "fsdp": ("train.engine",),
        "deepspeed": ("train.engine",),
        "flash_attn": ("train.attention",),
        "flash_attention": ("train.attention",),
        "attn_implementation": ("train.attention",),
        "torch_compile": ("train.compile",),
        "report_to": ("train.track",),
        "save_steps": ("checkpoints.interval_steps",),
        "eval_steps": ("train.eval.every_steps",),
        "val_size": ("train.eval.fraction",),
        "val_set_size": ("train.eval.fraction",),
        "dataset": ("data.from",),
        "datasets": ("data.from",),
        "data_path": ("data.from",),
        "train_file": ("data.from",),
        "output_dir": ("store",),
        "run_name": ("name",),
        "accelerators": ("compute.gpus",),
        "num_gpus": ("compute.gpus",),
        "use_spot": ("compute.spot",),
    }
)
"""Their name -> the keys here that say it, dotted."""
