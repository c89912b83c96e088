"""A longer context: in the configuration that is exported, computed as transformers does, refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_llama

from alpaca_jobs.errors import ModelError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.model import build_model
from alpaca_jobs.training.rope import stretch_context
from alpaca_jobs.training.tokenizer import build_tokenizer, load_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA trained for 64 tokens, as a folder."""
    files = build_tokenizer("tiny-llama", ["a text"])
    return tiny_llama(tmp_path_factory.mktemp("base"), files, vocab_size=300, max_position_embeddings=64)


def _built(base: Path, **train: Any) -> Any:
    files = {name: (base / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    return build_model(TrainSpec(model=str(base), dtype="float32", **train), load_tokenizer(files), device=CPU).eval()


@torch.no_grad()
def _logits(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    seen = torch.ones_like(ids)  # or positions that jump would be taken for several rows
    made: torch.Tensor = model(input_ids=ids, attention_mask=seen, position_ids=positions, use_cache=False).logits
    return made


def test_linear_scaling_makes_position_8_what_position_2_was(base: Path) -> None:
    ids = torch.arange(10, 42)[None]
    plain = _logits(_built(base, max_length=64), ids, torch.arange(32)[None])
    scaled = _built(base, max_length=256, rope_scaling={"factor": 4})
    torch.testing.assert_close(_logits(scaled, ids, 4 * torch.arange(32)[None]), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_the_scaling_is_in_the_model_that_is_saved(base: Path, kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = _built(base, max_length=256, rope_scaling={"type": kind, "factor": 4})
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == kind
    assert config["rope_parameters"]["factor"] == 4
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids, positions = torch.arange(200)[None], torch.arange(200)[None]
    torch.testing.assert_close(_logits(loaded, ids, positions), _logits(model, ids, positions))


def test_rows_beyond_the_context_are_refused_in_words(base: Path, tiny_opt: Path) -> None:
    from transformers import AutoConfig

    with pytest.raises(ModelError) as caught:
        _built(base, max_length=200)
    assert f"is 200, but {base} was trained for 64 and no rope_scaling is given" in str(caught.value)
    assert "Set train.rope_scaling (linear, factor 4), or max_length to 64 or less." in str(caught.value)
    with pytest.raises(ModelError, match=r"with factor 2 makes that 128\. Set the factor to 4"):
        _built(base, max_length=200, rope_scaling={"factor": 2})
    train = TrainSpec(model=str(tiny_opt), max_length=512, rope_scaling={"factor": 2})
    with pytest.raises(ModelError, match=r"\(opt\) has no rotary position embeddings"):
        stretch_context(AutoConfig.from_pretrained(tiny_opt), train)
