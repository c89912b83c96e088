"""Export: what transformers loads, with the trained bits, and a digest that sees weights and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.errors import ModelError, TrainingError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.model_card import CardFacts, render_model_card
from alpaca_jobs.training.weights import stored_tensors, weights_digest
from checkpoints.errors import Damaged
from checkpoints.keys import CommitRef
from checkpoints.store import Store

TRAIN = {
    "model": "tiny-llama",
    "global_batch_size": 20,
    "micro_batch_size": 10,
    "learning_rate": 2e-3,
    "epochs": 1,
    "max_length": 128,
    "dtype": "float32",
}
FACTS = CardFacts(
    run_id="demo-abcde", data="rows composed by rule", is_demo=True, num_rows=40, step=0, loss=None, weights_digest=""
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(worker: Any, one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the store of a finished training of two steps."""
    store = tmp_path_factory.mktemp("trained")
    said = worker.train_once({"store": f"file://{store}", "attempt": 1, "train": TRAIN}, rank=0, world_size=1)
    assert said["saved"] == [2]
    return store


def _export(worker: Any, store: Path, folder: Path, **train: Any) -> Any:
    from alpaca_jobs.training.export import export_model
    from alpaca_jobs.training.recipes import build_tokenizer

    spec = TrainSpec(**{**TRAIN, **train})
    return export_model(
        spec,
        checkpointer=worker.Checkpointer(
            Store.open(f"file://{store}"), worker.LAYOUT, stage="train", attempt=2, fence=None, keep=None
        ),
        ref=CommitRef("train", 2, 1),
        tokenizer_files=build_tokenizer(spec, worker.rows(40)),
        facts=FACTS,
        folder=folder,
    )


def test_transformers_loads_the_export_and_the_weights_are_the_trained_ones(
    worker: Any, trained: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported = _export(worker, trained, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"} <= set(
        exported.files
    )
    parameters = sum(param.numel() for param in model.parameters())
    assert 0.8e6 < parameters < 1.2e6
    stored = {name: torch.zeros_like(param) for name, param in model.named_parameters()}
    worker.Checkpointer(
        Store.open(f"file://{trained}"), worker.LAYOUT, stage="train", attempt=3, fence=None, keep=None
    ).load(CommitRef("train", 2, 1), {"model": stored})
    for name, param in model.named_parameters():
        assert torch.equal(param, stored[name]), name
    prompt = tokenizer("### Response:", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > prompt["input_ids"].shape[1]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.use_cache


def test_two_exports_of_one_commit_have_one_digest_and_bfloat16_another(
    worker: Any, trained: Path, tmp_path: Path
) -> None:
    first = _export(worker, trained, tmp_path / "first")
    again = _export(worker, trained, tmp_path / "again")
    halved = _export(worker, trained, tmp_path / "halved", dtype="bfloat16")
    assert first.weights_digest == again.weights_digest == weights_digest(tmp_path / "again")
    assert halved.weights_digest != first.weights_digest
    assert {tensor.dtype for tensor in stored_tensors(tmp_path / "halved")} == {"BF16"}


def test_the_card_states_facts_and_marks_demo_data(worker: Any, trained: Path, tmp_path: Path) -> None:
    exported = _export(worker, trained, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Demo data" in card
    assert exported.weights_digest in card
    assert "2 of 20 rows" in card
    real = CardFacts(**{**FACTS.__dict__, "is_demo": False})
    other = render_model_card(TrainSpec(model="huggyllama/llama-7b"), real)
    assert "Demo data" not in other
    assert "base_model: huggyllama/llama-7b" in other


def test_a_damaged_commit_is_not_exported(worker: Any, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "store")
    shard = next((tmp_path / "store").rglob("rank-*.bin"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(Damaged):
        _export(worker, tmp_path / "store", tmp_path / "model")


def test_a_folder_that_cannot_be_written_is_named_with_the_space_it_needs(
    worker: Any, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(TrainingError, match=r"cannot be written to .*taken.* It needs 0\.0 GiB there"):
        _export(worker, trained, tmp_path / "taken")


def test_the_digest_sees_one_flipped_bit_and_no_metadata_or_file_borders(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(4, dtype=np.float32)}
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    for folder in (one, two, other):
        folder.mkdir()
    save_file(tensors, one / "model.safetensors")
    save_file({"b": tensors["b"]}, two / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    save_file({"a": tensors["a"]}, two / "model-00002-of-00002.safetensors")
    flipped = tensors["b"].copy()
    flipped.view(np.uint8)[0, 0] ^= 1
    save_file({**tensors, "b": flipped}, other / "model.safetensors")
    assert weights_digest(one) == weights_digest(two) != weights_digest(other)


def test_a_folder_without_weights_and_a_cut_file_are_named(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        weights_digest(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones(1000, dtype=np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelError, match="ends inside a"):
        weights_digest(tmp_path)
    path.write_bytes(json.dumps({"no": "header"}).encode())
    with pytest.raises(ModelError, match="is not a safetensors file"):
        weights_digest(tmp_path)


def test_licence_and_lineage_of_the_rows_stand_in_the_card() -> None:
    facts = CardFacts(**{**FACTS.__dict__, "lineage": {"licence of the seed tasks": "CC0", "terms": "a|b"}})
    card = render_model_card(TrainSpec(**TRAIN), facts)
    assert "| licence of the seed tasks | CC0 |\n| terms | a/b |\n" in card
    assert "Where the rows come from" not in render_model_card(TrainSpec(**TRAIN), FACTS)
