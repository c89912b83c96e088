"""Adapters beside an enlarged vocabulary: new words are learned, saved, and exported so that peft has them too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_llama

from alpaca_jobs.errors import ModelError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.fingerprint import train_fingerprint
from alpaca_jobs.training.model_card import CardFacts
from alpaca_jobs.training.recipes import build_tokenizer
from alpaca_jobs.training.tokenizer import build_tokenizer as train_tokenizer
from alpaca_jobs.training.tokenizer import write_folder
from checkpoints.keys import CommitRef
from checkpoints.store import Store

FACTS = CardFacts(
    run_id="zh-abcde", data="rows composed by rule", is_demo=True, num_rows=40, step=0, loss=None, weights_digest=""
)  # fmt: skip


@pytest.fixture(scope="module", params=["tied", "apart"])
def base(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA whose tokenizer knows no English word."""
    files = train_tokenizer("tiny-llama", ["0123456789 0123456789"] * 4)
    folder = tmp_path_factory.mktemp("base")
    return tiny_llama(folder, files, max_position_embeddings=256, tie_word_embeddings=request.param == "tied")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, worker: Any) -> Path:
    """A tokenizer that knows the rows' words."""
    folder = tmp_path_factory.mktemp("words")
    write_folder(train_tokenizer("tiny-llama", [row.instruction + row.output for row in worker.rows(40)]), folder)
    return folder


def _train(base: Path, words: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(base), "method": "lora", "lora": {"rank": 4}, "tokenizer": {"extend": str(words)},
        "global_batch_size": 20, "micro_batch_size": 10, "learning_rate": 1e-2, "max_length": 192, "dtype": "float32",
        "max_steps": 2, **changes,
    }  # fmt: skip


def test_new_words_are_learned_and_exported_for_peft_and_merged(
    base: Path, words: Path, worker: Any, one_rank: None, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alpaca_jobs.training.export import export_model

    spec = TrainSpec(**_train(base, words))
    run = {"store": f"file://{tmp_path / 'store'}", "attempt": 1, "train": _train(base, words)}
    assert worker.train_once(run, rank=0, world_size=1)["saved"] == [2]
    reader = worker.Checkpointer(
        Store.open(run["store"]), worker.LAYOUT, stage="train", attempt=2, fence=None, keep=None
    )  # fmt: skip
    for merge in (False, True):
        export_model(
            spec, checkpointer=reader, ref=CommitRef("train", 2, 1), folder=tmp_path / f"merged {merge}", facts=FACTS,
            merge=merge, tokenizer_files=build_tokenizer(spec, worker.rows(40)),
        )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged False")
    raw = AutoModelForCausalLM.from_pretrained(base)
    old = raw.get_input_embeddings().weight.detach().clone()
    raw.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    adapted = PeftModel.from_pretrained(raw, tmp_path / "merged False").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged True").eval()
    rows = merged.get_input_embeddings().weight
    assert len(tokenizer) == len(rows) > len(old)
    new = tokenizer(worker.rows(1)[0].output)["input_ids"]  # targets: only those tell output rows from each other
    used = {one for one in new if one >= len(old)}
    assert used, "the rows are written in new words"
    assert all((rows[one] - old.mean(dim=0)).abs().max() > 1e-3 for one in used)
    for matrix in (merged.get_input_embeddings(), merged.get_output_embeddings()):
        assert len({tuple(row.tolist()) for row in matrix.weight[sorted(used)]}) == len(used)
    with torch.no_grad():
        ids = torch.tensor([new])
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)


def test_embeddings_are_trained_where_words_are_added_or_the_job_says_so(base: Path, words: Path) -> None:
    assert TrainSpec(**_train(base, words)).trains_embeddings
    assert not TrainSpec(**_train(base, words, tokenizer=None)).trains_embeddings
    assert TrainSpec(**_train(base, words, tokenizer=None, lora={"train_embeddings": True})).trains_embeddings
    assert not TrainSpec(model="tiny-llama").trains_embeddings
    with pytest.raises(ValueError, match=r"train_embeddings: false, but train\.tokenizer adds words"):
        TrainSpec(**_train(base, words, lora={"train_embeddings": False}))


def test_an_embedding_is_not_both_adapted_and_trained(
    base: Path, words: Path, worker: Any, one_rank: None, tmp_path: Path
) -> None:
    train = _train(base, words, lora={"target_modules": ["q_proj", "embed_tokens"]})
    with pytest.raises(ModelError, match=r"target_modules has embed_tokens, an embedding of .* trained whole"):
        worker.train_once({"store": f"file://{tmp_path}", "attempt": 1, "train": train}, rank=0, world_size=1)


def test_the_new_key_leaves_older_runs_their_fingerprint(base: Path, words: Path) -> None:
    def fingerprint(**lora: Any) -> str:
        train = TrainSpec(**_train(base, words, tokenizer=None, lora={"rank": 4, **lora}))
        return train_fingerprint(train, data_digest="rows", tokenizer_files={})

    assert fingerprint() == fingerprint(train_embeddings="auto") != fingerprint(train_embeddings=True)


def test_adapters_name_the_revision_of_their_base(tmp_path: Path) -> None:
    from alpaca_jobs.training.adapters import write_adapters

    train = TrainSpec(model="acme/base", revision="0123abc", method="lora")
    adapters = {"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(8, 4)}
    write_adapters(adapters, train, tmp_path, embeddings={})
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (said["base_model_name_or_path"], said["revision"]) == ("acme/base", "0123abc")
    assert said["modules_to_save"] is None
