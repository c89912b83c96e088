"""Adapters on an embedding: first values, bits of a merge, what peft loads; and a tied one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_llama

from alpaca_jobs.errors import ModelError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.engines import make_engine
from alpaca_jobs.training.export import export_model
from alpaca_jobs.training.making import make_model
from alpaca_jobs.training.model_card import CardFacts
from alpaca_jobs.training.tokenizer import load_tokenizer
from checkpoints.keys import CommitRef
from checkpoints.store import Store

CPU = torch.device("cpu")
FACTS = CardFacts(
    run_id="demo-abcde", data="rows composed by rule", is_demo=True, num_rows=40, step=0, loss=None, weights_digest=""
)  # fmt: skip
IDS = torch.arange(3, 23)[None]


def _base(files: dict[str, bytes], folder: Path, *, is_tied: bool = False) -> Path:
    return tiny_llama(
        folder, files, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=2,
        pad_token_id=0, tie_word_embeddings=is_tied,
    )  # fmt: skip


def _train(base: Path, **changes: Any) -> dict[str, Any]:
    lora = {"rank": 4, "dropout": 0.0, "target_modules": ["q_proj", "embed_tokens", "lm_head"]}
    return {
        "model": str(base), "method": "lora", "lora": lora, "global_batch_size": 4, "micro_batch_size": 2,
        "learning_rate": 3e-2, "max_steps": 3, "max_length": 128, "dtype": "float32", **changes,
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
def test_first_values_are_the_same_on_every_engine_and_change_nothing(
    files: dict[str, bytes], one_rank: None, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    base = _base(files, tmp_path / "base")
    found: dict[str, dict[str, Any]] = {}
    for engine in ("single", "fsdp"):
        train = TrainSpec(**_train(base, engine=engine, attention="mask"))
        made = make_model(train, load_tokenizer(files), device=CPU, world_size=1)
        spread = make_engine(made.model, train, device=CPU, world_size=1, ranks_per_node=1, fill=made.fill)
        state = spread.state()["model"]
        found[engine] = {
            name: one.full_tensor() if hasattr(one, "full_tensor") else one.clone() for name, one in state.items()
        }
        if engine == "single":
            with torch.no_grad():
                adapted = made.model(IDS).logits
                plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(IDS).logits
            torch.testing.assert_close(adapted, plain, rtol=0, atol=1e-6)
    single, fsdp = found["single"], found["fsdp"]
    assert single.keys() == fsdp.keys()
    assert all(torch.equal(single[name], fsdp[name]) for name in single)
    (second,) = (one for name, one in single.items() if ".lora_embedding_B." in name)
    (first,) = (one for name, one in single.items() if ".lora_embedding_A." in name)
    assert not first.any()
    assert 0.7 < float(second.std()) < 1.3


def test_trained_ones_are_exported_as_peft_reads_them_and_merged_they_say_the_same(
    files: dict[str, bytes], worker: Any, one_rank: None, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = _base(files, tmp_path / "base")
    run = {"store": f"file://{tmp_path / 'store'}", "attempt": 1, "train": _train(base), "num_rows": 4}
    said = worker.train_once(run, rank=0, world_size=1)
    losses = [float.fromhex(loss) for loss in said["losses"]]
    assert losses[-1] < losses[0]
    reader = worker.Checkpointer(
        Store.open(f"file://{tmp_path / 'store'}"), worker.LAYOUT, stage="train", attempt=2, fence=None, keep=None
    )
    for name, merge in (("adapters", False), ("merged", True)):
        export_model(
            TrainSpec(**_train(base)), checkpointer=reader, ref=CommitRef("train", 3, 1), folder=tmp_path / name,
            facts=FACTS, merge=merge, tokenizer_files=files,
        )  # fmt: skip
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        before = plain(IDS).logits
        adapted = PeftModel.from_pretrained(plain, tmp_path / "adapters").eval()(IDS).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()(IDS).logits
    assert (adapted - before).abs().max() > 0.01
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)


def test_a_tied_embedding_is_not_adapted(files: dict[str, bytes], one_rank: None, tmp_path: Path) -> None:
    train = TrainSpec(**_train(_base(files, tmp_path / "base", is_tied=True)))
    with pytest.raises(ModelError, match=r"uses one matrix for its input and its output embedding.*train_embeddings"):
        make_model(train, load_tokenizer(files), device=CPU, world_size=1)
