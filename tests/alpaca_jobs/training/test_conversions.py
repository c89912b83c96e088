"""Models that transformers stores otherwise than it has them: read and written in parts, with the same bits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alpaca_jobs.training.base_files import ConvertedFiles, SafetensorsFiles
from alpaca_jobs.training.base_weights import Fill, open_base, parameters_without_memory
from alpaca_jobs.training.conversions import groups_to_load, groups_to_save

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {**SMALL, "num_experts": 12, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {**SMALL, "num_local_experts": 12},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 8},
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "olmoe": EXPERTS,
    "gpt_neox": {key: value for key, value in SMALL.items() if key != "num_key_value_heads"},
}


def _stored(kind: str, folder: Path) -> Any:
    """A random model in a folder, bfloat16, and in memory as from_pretrained has it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **KINDS[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _without_memory(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with parameters_without_memory():
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_in_parts_is_what_from_pretrained_loads(kind: str, tmp_path: Path) -> None:
    whole = _stored(kind, tmp_path)
    model = _without_memory(whole.config)
    assert load_file(tmp_path / "model.safetensors").keys() != dict(model.named_parameters()).keys()
    source = open_base(tmp_path, model)
    assert source is not None
    for _ in Fill(source, None, params=CPU, buffers=CPU).one_by_one(model):
        pass
    params = dict(whole.named_parameters())
    assert params.keys() == dict(model.named_parameters()).keys()
    for name, param in model.named_parameters():
        assert torch.equal(param, params[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_in_parts_is_what_save_pretrained_writes(kind: str, tmp_path: Path) -> None:
    whole = _stored(kind, tmp_path).to(torch.bfloat16)
    whole.save_pretrained(tmp_path / "again")
    wanted = load_file(tmp_path / "again" / "model.safetensors")
    tensors = {name: param.detach() for name, param in whole.named_parameters()}
    written: dict[str, torch.Tensor] = {}
    for group in groups_to_save(_without_memory(whole.config), tensors):
        written.update(group.convert(tensors.__getitem__))
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)


class _Counted:
    """Files that tell what was read of them."""

    def __init__(self, files: SafetensorsFiles) -> None:
        self._files, self.read = files, list[str]()
        self.shapes: Mapping[str, tuple[int, ...]] = files.shapes

    def part(self, name: str, cut: tuple[slice, ...]) -> torch.Tensor:
        self.read.append(name)
        return self._files.part(name, cut)


def test_a_rank_reads_the_experts_that_it_holds_and_no_other(tmp_path: Path) -> None:
    whole = _stored("mixtral", tmp_path)
    counted = _Counted(SafetensorsFiles(tmp_path))
    files = ConvertedFiles(counted, groups_to_load(_without_memory(whole.config), counted.shapes))
    name = "model.layers.1.mlp.experts.gate_up_proj"
    param = dict(whole.named_parameters())[name]
    everything = tuple(slice(0, size) for size in param.shape[1:])
    assert torch.equal(files.part(name, (slice(9, 11), *everything)).float(), param[9:11])
    layer = "model.layers.1.block_sparse_moe.experts"
    assert counted.read == [f"{layer}.{number}.{one}.weight" for one in ("w1", "w3") for number in (9, 10)]
    narrow = (slice(2, 3), slice(4, 9), slice(0, param.shape[2]))
    assert torch.equal(files.part(name, narrow).float(), param[narrow])
    assert torch.equal(files.part(name, ()).float(), param)


def test_gpt2_as_it_was_published_without_a_prefix_is_read_in_parts(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("gpt2", vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)  # a mask that old files hold, and no model has a place for
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    model = _without_memory(config)
    source = open_base(tmp_path, model)
    assert source is not None
    for _ in Fill(source, None, params=CPU, buffers=CPU).one_by_one(model):
        pass
    for name, param in model.named_parameters():
        assert torch.equal(param, dict(whole.named_parameters())[name]), name


def test_stored_tensors_without_a_place_are_named_and_a_lacking_one_is_not_made_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """InternLM's biases under a configuration without attention_bias: a model of other arithmetic, without a word."""
    from transformers import AutoConfig, AutoModelForCausalLM

    biased = AutoConfig.for_model("llama", **SMALL, attention_bias=True)
    AutoModelForCausalLM.from_config(biased, dtype=torch.float32).save_pretrained(tmp_path)
    plain = AutoConfig.for_model("llama", **SMALL)
    with caplog.at_level(logging.WARNING):
        assert open_base(tmp_path, _without_memory(plain)) is not None
    (said,) = caplog.messages
    assert said.startswith("8 tensors in")
    assert "model.layers.0.self_attn.k_proj.bias" in said
    assert "attention_bias" in said
    stored = load_file(tmp_path / "model.safetensors")
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert open_base(tmp_path, _without_memory(biased)) is None


def test_a_transformers_with_other_tables_reads_and_writes_by_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoConfig, core_model_loading

    plain, odd = (AutoConfig.for_model(kind, **KINDS.get(kind, SMALL)) for kind in ("llama", "mixtral"))
    _without_memory(plain)
    monkeypatch.delattr(core_model_loading, "rename_source_key")
    model = _without_memory(plain)
    names = list(dict(model.named_parameters()))
    assert sorted(group.made for group in groups_to_load(model, [*names, "other"])) == sorted(names)
    assert sorted(group.made for group in groups_to_save(model, names)) == sorted(names)
    assert "keeps its conversions in another way than 5.17" in caplog.text
    save_file({"model.norm.weight": torch.ones(16)}, tmp_path / "model.safetensors")
    assert open_base(tmp_path, _without_memory(odd)) is None  # left to from_pretrained
