"""Decoder-only families, each tiny and random: rows stay apart in the layout that is chosen, and two steps train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.collate import Layout, choose_layout, choose_loss_head, collate, lay_out, target_loss
from alpaca_jobs.training.recipes import build_tokenizer, prepare_rows
from alpaca_jobs.training.tokenizer import RowTokenizer, load_tokenizer, write_folder

CPU = torch.device("cpu")
ROPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[Layout, dict[str, Any]]] = {
    "llama": (Layout.POSITIONS, ROPE),
    "internlm": (Layout.POSITIONS, {**ROPE, "attention_bias": True}),
    "qwen2": (Layout.POSITIONS, ROPE),
    "qwen3": (Layout.POSITIONS, {**ROPE, "head_dim": 8}),
    "mistral": (Layout.POSITIONS, {**ROPE, "sliding_window": 16}),
    "mixtral": (Layout.POSITIONS, {**ROPE, "num_local_experts": 4}),
    "gemma2": (Layout.POSITIONS, {**ROPE, "head_dim": 8, "sliding_window": 16}),
    "phi3": (Layout.POSITIONS, ROPE),
    "gpt_neox": (Layout.POSITIONS, {key: value for key, value in ROPE.items() if key != "num_key_value_heads"}),
    "gpt2": (
        Layout.POSITIONS,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "opt": (
        Layout.BLOCK_MASK,
        {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32},
    ),
    "falcon": (Layout.BLOCK_MASK, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "bloom": (Layout.PADDED, {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mamba": (Layout.PADDED, {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
}


TYPES = {"internlm": "llama"}
"""InternLM-7B is LLaMA with biases in its attention, and is trained as a checkpoint of LLaMA's classes: the code that
its own folder brings is not run."""

CUT_OUT = {"llama", "internlm", "qwen2", "qwen3", "mistral", "mixtral", "phi3", "gpt_neox", "gpt2", "opt"}
"""Families whose attention can be replaced by one that takes rows apart; the masked layouts serve the others."""


@pytest.fixture(scope="module")
def files(worker: Any) -> dict[str, bytes]:
    """The tokenizer of all families."""
    return build_tokenizer(TrainSpec(model="tiny-llama"), worker.rows(8))


def _random_model(family: str, tokenizer: RowTokenizer, *, vocab_size: int | None = None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    kind = TYPES.get(family, family)
    config = AutoConfig.for_model(kind, vocab_size=vocab_size or tokenizer.vocab_size, **FAMILIES[family][1])
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_stay_apart_in_the_layout_that_is_chosen(family: str, files: dict[str, bytes], worker: Any) -> None:
    tokenizer = load_tokenizer(files)
    data = prepare_rows(worker.rows(8), tokenizer, {}, TrainSpec(model="tiny-llama", max_length=128))
    model = _random_model(family, tokenizer).eval()
    layout = choose_layout(model, pad_id=tokenizer.pad_id, device=CPU, may_cut=False)
    assert layout is FAMILIES[family][0]
    chunked = choose_loss_head(model, layout=layout, pad_id=tokenizer.pad_id, device=CPU)
    assert (chunked is None) is (family == "gemma2")  # it caps its logits, so its loss is not that of its last layer

    def loss(rows: list[int], layout: Layout) -> float:
        with torch.no_grad():
            inputs = lay_out(collate(data, rows), layout=layout, pad_id=tokenizer.pad_id)
            losses = {float(target_loss(model, inputs, head=head)) for head in {None, chunked}}
            assert max(losses) == pytest.approx(min(losses), rel=1e-6)
            return losses.pop()

    alone = sum(loss([row], Layout.PADDED) for row in range(8))
    assert loss(list(range(8)), layout) == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_cut_out_have_the_loss_and_gradients_of_masked_ones(
    family: str, files: dict[str, bytes], worker: Any
) -> None:
    tokenizer = load_tokenizer(files)
    data = prepare_rows(worker.rows(8), tokenizer, {}, TrainSpec(model="tiny-llama", max_length=128))
    model = _random_model(family, tokenizer).eval()

    def gradients(layout: Layout) -> torch.Tensor:
        model.zero_grad()
        target_loss(model, lay_out(collate(data, range(8)), layout=layout, pad_id=tokenizer.pad_id)).backward()  # type: ignore[no-untyped-call]
        return torch.cat([param.grad.flatten() for param in model.parameters() if param.grad is not None])

    masked = gradients(FAMILIES[family][0])
    layout = choose_layout(model, pad_id=tokenizer.pad_id, device=CPU)
    assert (layout is Layout.ROWS) is (family in CUT_OUT)
    torch.testing.assert_close(gradients(layout), masked, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings(
    "ignore:FSDP2-wrapped module:UserWarning"
)  # some layers return views, nobody writes to them
@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_train_and_are_committed(
    family: str, files: dict[str, bytes], worker: Any, one_rank: None, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    _random_model(family, load_tokenizer(files)).save_pretrained(folder)
    write_folder(files, folder)
    train = {"model": str(folder), "global_batch_size": 4, "learning_rate": 1e-3, "max_steps": 2, "max_length": 128}
    said = worker.train_once(
        {"store": f"file://{tmp_path / 'store'}", "attempt": 1, "train": train, "num_rows": 8}, rank=0, world_size=1
    )
    assert said["saved"] == [2]
    assert all(norm > 0 for norm in said["grad_norms"])


ADAPTED = {
    "llama": ["q_proj", "v_proj"], "internlm": ["q_proj", "o_proj"], "qwen2": ["q_proj", "v_proj"],
    "mixtral": ["q_proj", "o_proj"], "gpt2": ["c_attn"], "gpt_neox": ["query_key_value"], "opt": ["q_proj", "fc1"],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("engine", ["single", "fsdp"])
@pytest.mark.parametrize("family", ADAPTED)
def test_adapters_train_beside_a_frozen_base(
    family: str, engine: str, files: dict[str, bytes], worker: Any, one_rank: None, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    _random_model(family, load_tokenizer(files)).save_pretrained(folder)
    write_folder(files, folder)
    train = {
        "model": str(folder), "engine": engine, "method": "lora", "lora": {"target_modules": ADAPTED[family]},
        "global_batch_size": 4, "learning_rate": 3e-2, "max_steps": 3, "max_length": 128,
    }  # fmt: skip
    said = worker.train_once(
        {"store": f"file://{tmp_path / 'store'}", "attempt": 1, "train": train, "num_rows": 4}, rank=0, world_size=1
    )
    first, *_, last = (float.fromhex(loss) for loss in said["losses"])
    assert last < first
