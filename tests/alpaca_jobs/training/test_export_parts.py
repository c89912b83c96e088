"""Exports written tensor by tensor: the bits that save_pretrained writes, for every family, and memory that stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import families
import pytest
import torch

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.adapters import add_adapters, merge_adapters, reset_adapters
from alpaca_jobs.training.engines.protocol import kept_tensors
from alpaca_jobs.training.export import export_model
from alpaca_jobs.training.model import build_model
from alpaca_jobs.training.model_card import CardFacts
from alpaca_jobs.training.tokenizer import load_tokenizer, write_folder
from alpaca_jobs.training.weights import weights_digest
from checkpoints.keys import CommitRef
from checkpoints.store import Store

CPU = torch.device("cpu")
FACTS = CardFacts(
    run_id="demo-abcde", data="rows composed by rule", is_demo=True, num_rows=40, step=0, loss=None, weights_digest=""
)  # fmt: skip


def _base(family: str, files: dict[str, bytes], folder: Path) -> Path:
    tokenizer = load_tokenizer(files)
    families.random_model(family, tokenizer, vocab_size=tokenizer.vocab_size - 3).save_pretrained(folder)
    write_folder(files, folder)
    return folder


def _commit(worker: Any, store: Path, tensors: dict[str, torch.Tensor]) -> Any:
    checkpointer = worker.Checkpointer(
        Store.open(f"file://{store}"), worker.LAYOUT, stage="train", attempt=1, fence=None, keep=None
    )
    checkpointer.save(2, {"model": tensors}, meta={"losses": {"hex": []}}, fingerprint="f")
    checkpointer.wait()
    return checkpointer


def _export(train: TrainSpec, checkpointer: Any, files: dict[str, bytes], folder: Path, *, merge: bool = False) -> None:
    export_model(
        train, checkpointer=checkpointer, ref=CommitRef("train", 2, 1), folder=folder, facts=FACTS, merge=merge,
        tokenizer_files=files,
    )  # fmt: skip


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_folder_has_the_bits_that_save_pretrained_writes(
    family: str, files: dict[str, bytes], worker: Any, one_rank: None, tmp_path: Path
) -> None:
    train = TrainSpec(model=str(_base(family, files, tmp_path / "base")), max_length=64)
    model: Any = build_model(train, load_tokenizer(files), device=CPU)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.125)
    checkpointer = _commit(worker, tmp_path / "store", kept_tensors(model, adapters_only=False))
    _export(train, checkpointer, files, tmp_path / "model")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "whole")
    assert weights_digest(tmp_path / "model") == weights_digest(tmp_path / "whole")
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("model", "whole"))
    assert ours.keys() == theirs.keys()
    assert (ours["dtype"], ours["use_cache"], ours["vocab_size"]) == ("bfloat16", True, theirs["vocab_size"])


@pytest.mark.parametrize("family", families.ADAPTED)
def test_merged_adapters_have_the_bits_of_a_merge_in_memory(
    family: str, files: dict[str, bytes], worker: Any, one_rank: None, tmp_path: Path
) -> None:
    lora = {"target_modules": families.ADAPTED[family]}
    base = _base(family, files, tmp_path / "base")
    train = TrainSpec(model=str(base), max_length=64, method="lora", lora=lora)
    model: Any = build_model(train, load_tokenizer(files), device=CPU)
    add_adapters(model, train)
    reset_adapters(model, 3)
    with torch.no_grad():
        for param in kept_tensors(model, adapters_only=True).values():
            param.add_(0.0625)
    checkpointer = _commit(worker, tmp_path / "store", kept_tensors(model, adapters_only=True))
    _export(train, checkpointer, files, tmp_path / "model", merge=True)
    merge_adapters(model)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "whole")
    assert weights_digest(tmp_path / "model") == weights_digest(tmp_path / "whole")
    assert (tmp_path / "model" / "adapter" / "adapter_config.json").is_file()


PROGRAM = """
import json, sys
from pathlib import Path
import torch, transformers, peft
torch.set_num_threads(1)
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.export import export_model
from alpaca_jobs.training.model_card import CardFacts
from alpaca_jobs.training.tokenizer import read_folder
from checkpoints.keys import CommitRef
from checkpoints.store import Store
from checkpoints.torch_bridge import Checkpointer
root, train = Path(sys.argv[1]), TrainSpec(**json.loads(sys.argv[2]))
def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
reader = Checkpointer(Store.open(f"file://{root}/store"), LAYOUT, stage="train", attempt=2, fence=None, keep=None)
facts = CardFacts(run_id="a", data="rows", is_demo=True, num_rows=1, step=0, loss=None, weights_digest="")
from transformers.models.llama import modeling_llama
before = peak()
export_model(train, checkpointer=reader, ref=CommitRef("train", 2, 1), folder=root / "model", facts=facts,
             tokenizer_files=read_folder(root / "tokenizer"), merge=train.method == "lora")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("method", ["full", "lora"])
def test_memory_does_not_grow_with_the_model(
    method: str, files: dict[str, bytes], worker: Any, one_rank: None, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    write_folder(files, tmp_path / "tokenizer")
    write_folder(files, tmp_path / "base")
    config = LlamaConfig(
        vocab_size=load_tokenizer(files).vocab_size, hidden_size=1024, intermediate_size=4096, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    model.to_empty(device="cpu").to(torch.float32)
    for param in model.parameters():
        param.data.fill_(0.5)
    model.save_pretrained(tmp_path / "base")
    train = {"model": str(tmp_path / "base"), "max_length": 64, "dtype": "float32", "method": method}
    if method == "lora":
        add_adapters(model, TrainSpec(**train))
        reset_adapters(model, 1)
    tensors = kept_tensors(model, adapters_only=method == "lora")
    _commit(worker, tmp_path / "store", tensors)
    size = sum(param.numel() * 4 for param in model.parameters())
    # Freed blocks go back at once: by itself malloc keeps those below 32 MiB, which tensors of a real model are above.
    environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(train)],
        capture_output=True, text=True, check=False, env=environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert size > 250 * 2**20
    assert int(done.stdout) < 160 * 2**20, f"an export of {size:,} bytes took {int(done.stdout):,}"
