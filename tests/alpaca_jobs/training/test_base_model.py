"""Base models: embeddings that grow by mean rows, refusals in words, and a resume that needs no base weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca_jobs.errors import ModelError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.model import build_model, matrix_parameters, preload
from alpaca_jobs.training.recipes import build_tokenizer
from alpaca_jobs.training.tokenizer import RowTokenizer, load_tokenizer

CPU = torch.device("cpu")


def _tokenizer(model: Path, worker: Any) -> RowTokenizer:
    return load_tokenizer(build_tokenizer(TrainSpec(model=str(model)), worker.rows(2)))


def test_new_embedding_rows_are_the_mean_of_the_old(tiny_opt: Path, worker: Any) -> None:
    from transformers import AutoModelForCausalLM

    old = AutoModelForCausalLM.from_pretrained(tiny_opt).get_input_embeddings().weight
    tokenizer = _tokenizer(tiny_opt, worker)
    model: Any = build_model(TrainSpec(model=str(tiny_opt), max_length=64), tokenizer, device=CPU)
    new = model.get_input_embeddings().weight
    assert len(new) == len(old) + 1 == tokenizer.vocab_size
    assert torch.equal(new[:-1], old)
    assert torch.allclose(new[-1], old.mean(dim=0))
    assert model.get_output_embeddings().weight is new  # OPT ties them
    assert model.config.vocab_size == len(new)
    assert model.training
    assert new.dtype == torch.float32


def test_rows_longer_than_the_context_are_refused_in_words(tiny_opt: Path, worker: Any) -> None:
    spec = TrainSpec(model=str(tiny_opt), max_length=512)
    with pytest.raises(ModelError, match=r"max_length is 512, but .* was trained for 256 tokens"):
        build_model(spec, _tokenizer(tiny_opt, worker), device=CPU)


def test_weights_that_cannot_be_read_are_refused_in_words(tiny_opt: Path, worker: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_opt, folder)
    tokenizer = _tokenizer(folder, worker)
    weights = folder / "model.safetensors"
    weights.unlink()
    with pytest.raises(ModelError, match=f"The model of {folder} cannot be loaded"):
        build_model(TrainSpec(model=str(folder), max_length=64), tokenizer, device=CPU)
    weights.write_bytes(b"\x10\0\0\0\0\0\0\0not a header")
    with pytest.raises(ModelError, match=f"The model of {folder} cannot be loaded"):
        build_model(TrainSpec(model=str(folder), max_length=64), tokenizer, device=CPU)
    (folder / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        build_model(TrainSpec(model=str(folder), max_length=64), tokenizer, device=CPU)


def test_tiny_llama_is_about_a_million_parameters_and_the_same_for_one_seed(worker: Any) -> None:
    spec = TrainSpec(model="tiny-llama")
    preload(spec)
    tokenizer = RowTokenizer(encode=lambda texts: [], prefix=(), eos_id=2, pad_id=0, vocab_size=2000)
    torch.manual_seed(1)
    first = build_model(spec, tokenizer, device=CPU)
    torch.manual_seed(2)
    again = build_model(spec, tokenizer, device=CPU)
    other = build_model(TrainSpec(model="tiny-llama", seed=7), tokenizer, device=CPU)
    assert 0.9e6 < sum(param.numel() for param in first.parameters()) < 1.1e6
    assert matrix_parameters(first) == sum(
        param.numel() for param in first.parameters()
    )  # the embedding is the output, too
    pairs = zip(first.parameters(), again.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(one, two) and (one.ndim == 1 or not torch.equal(one, three)) for one, two, three in pairs)


@pytest.mark.filterwarnings(
    "ignore:FSDP2-wrapped module:UserWarning"
)  # OPT's layers return views, nobody writes to them
def test_a_resume_does_not_read_the_base_models_weights(
    tiny_opt: Path, worker: Any, one_rank: None, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_opt, folder)
    train = {"model": str(folder), "global_batch_size": 8, "learning_rate": 1e-3, "epochs": 1, "max_length": 128}
    run = {"store": f"file://{tmp_path / 'store'}", "attempt": 1, "train": train, "stop_at": 2}
    assert worker.train_once(run, rank=0, world_size=1)["saved"] == [2]
    (folder / "model.safetensors").unlink()
    resumed = worker.train_once(
        {"store": run["store"], "attempt": 2, "train": train}, rank=0, world_size=1
    )  # fmt: skip
    assert (resumed["loaded"], resumed["final_step"]) == (2, 5)
