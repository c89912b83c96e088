"""Adapters: what peft and transformers load of an export, what a changed base means, which layers there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca_jobs.errors import ModelError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.model_card import CardFacts
from checkpoints.keys import CommitRef
from checkpoints.store import Store

FACTS = CardFacts(
    run_id="demo-abcde", data="rows composed by rule", is_demo=True, num_rows=40, step=0, loss=None, weights_digest=""
)  # fmt: skip


def _train(tiny_opt: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(tiny_opt), "method": "lora", "lora": {"rank": 4, "target_modules": ["q_proj", "v_proj", "fc1"]},
        "global_batch_size": 20, "micro_batch_size": 10, "learning_rate": 1e-1, "epochs": 1, "max_length": 128,
        "dtype": "float32", **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(worker: Any, one_rank: None, tiny_opt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the store of a finished training of two steps."""
    store = tmp_path_factory.mktemp("trained")
    run = {"store": f"file://{store}", "attempt": 1, "train": _train(tiny_opt)}
    assert worker.train_once(run, rank=0, world_size=1)["saved"] == [2]
    return store


def _export(worker: Any, store: Path, folder: Path, train: dict[str, Any], *, merge: bool) -> Any:
    from alpaca_jobs.training.export import export_model
    from alpaca_jobs.training.recipes import build_tokenizer

    spec = TrainSpec(**train)
    reader = worker.Checkpointer(
        Store.open(f"file://{store}"), worker.LAYOUT, stage="train", attempt=2, fence=None, keep=None
    )
    return export_model(
        spec, checkpointer=reader, ref=CommitRef("train", 2, 1), folder=folder, facts=FACTS, merge=merge,
        tokenizer_files=build_tokenizer(spec, worker.rows(40)),
    )  # fmt: skip


def test_peft_loads_the_adapters_and_transformers_the_merged_model_and_both_say_the_same(
    worker: Any, trained: Path, tiny_opt: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    exported = _export(worker, trained, tmp_path / "adapters", _train(tiny_opt), merge=False)
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= set(exported.files)
    _export(worker, trained, tmp_path / "merged", _train(tiny_opt), merge=True)
    base = AutoModelForCausalLM.from_pretrained(tiny_opt).eval()
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapters").eval()(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(ids).logits[..., : before.shape[-1]]
        beside = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny_opt).eval(), tmp_path / "merged" / "adapter"
        )
        assert torch.equal(beside.eval()(ids).logits, adapted)
    assert (adapted - before).abs().max() > 0.01
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)


def test_the_card_of_adapters_says_how_to_load_them_and_a_padded_batch_runs(
    worker: Any, trained: Path, tiny_opt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their tokenizer has a padding token that the base has no row for, as LLaMA's has."""
    _export(worker, trained, tmp_path / "adapters", _train(tiny_opt), merge=False)
    card = (tmp_path / "adapters" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert f'from_pretrained("{tiny_opt.name}")' in code
    monkeypatch.chdir(tmp_path / "adapters")
    found: dict[str, Any] = {}
    exec(code.replace(f'"{tiny_opt.name}"', f'"{tiny_opt}"'), found)  # what a reader would type
    batch = found["tokenizer"](["red", "red and blue"], padding=True, return_tensors="pt")
    assert (batch["input_ids"] == found["tokenizer"].pad_token_id).any()
    assert found["model"](**batch).logits.shape[:2] == batch["input_ids"].shape
    assert found["model"].generation_config.eos_token_id == [found["tokenizer"].eos_token_id]
    _export(worker, trained, tmp_path / "merged", _train(tiny_opt), merge=True)
    assert "How to load it" not in (tmp_path / "merged" / "README.md").read_text()


def test_adapters_do_not_go_on_beside_another_base(worker: Any, one_rank: None, tiny_opt: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    shutil.copytree(tiny_opt, base)
    run = {"store": f"file://{tmp_path / 'store'}", "train": _train(base, max_steps=2), "interval": 1}
    stopped = worker.train_once({**run, "attempt": 1, "stop_at": 1}, rank=0, world_size=1)
    assert stopped["saved_step"] == 1
    tensors = load_file(base / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    said = worker.train_once({**run, "attempt": 2}, rank=0, world_size=1)
    assert said["error"] == "TrainingError"
    assert "the base model has changed. Put the old one back" in said["text"]


def test_adapters_are_not_merged_into_another_base(worker: Any, trained: Path, tiny_opt: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_opt, other)
    tensors = load_file(other / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"were trained beside .* the base model has changed, and merged into it"):
        _export(worker, trained, tmp_path / "model", _train(other), merge=True)
    assert not (tmp_path / "model").exists()
    _export(worker, trained, tmp_path / "adapters", _train(other), merge=False)  # what does not touch the base may go


def test_layers_that_a_model_does_not_have_are_refused_with_the_names_it_has(
    worker: Any, one_rank: None, tiny_opt: Path, tmp_path: Path
) -> None:
    train = _train(tiny_opt, lora={"target_modules": ["query_key_value"]})
    with pytest.raises(ModelError, match=r"\['query_key_value'\].*Its linear layers are called .*k_proj.*q_proj"):
        worker.train_once({"store": f"file://{tmp_path}", "attempt": 1, "train": train}, rank=0, world_size=1)


def test_defaults_are_those_of_alpaca_lora() -> None:
    train = TrainSpec(model="tiny-llama", method="lora")
    assert train.lora is not None
    assert (train.lora.rank, train.lora.alpha, train.lora.dropout) == (8, 16, 0.05)
    assert (train.lora.target_modules, train.learning_rate) == (("q_proj", "v_proj"), 3e-4)
    assert TrainSpec(model="tiny-llama").lora is None
