"""What an exported model's own files say about talking to it: where it stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import pytest
import torch

from alpaca_jobs.data.record_files import Record
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.engines.protocol import kept_tensors
from alpaca_jobs.training.export import export_model
from alpaca_jobs.training.model import build_model
from alpaca_jobs.training.model_card import CardFacts
from alpaca_jobs.training.preview import preview_tokens
from alpaca_jobs.training.recipes import build_tokenizer
from alpaca_jobs.training.tokenizer import load_tokenizer
from checkpoints.keys import CommitRef
from checkpoints.store import Store

FACTS = CardFacts(
    run_id="demo-abcde", data="rows composed by rule", is_demo=True, num_rows=40, step=0, loss=None, weights_digest=""
)  # fmt: skip
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + "
    "('model' if message['role'] == 'assistant' else message['role']) + '\n' + message['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def _base(files: dict[str, bytes], folder: Path, **config: Any) -> Path:
    """A tiny LLaMA whose tokenizer has two more special tokens, and what `config` adds to its configuration."""
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<start_of_turn>", "<end_of_turn>")])
    said = {**json.loads(files["tokenizer_config.json"]), **config}
    return families.tiny_llama(
        folder, {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(said).encode()}
    )


def _exported(train: TrainSpec, worker: Any, folder: Path) -> Path:
    """The base model itself, committed and exported as a job would."""
    files = build_tokenizer(train, [])
    checkpointer = worker.Checkpointer(
        Store.open(f"file://{folder}/store"), worker.LAYOUT, stage="train", attempt=1, fence=None, keep=None
    )
    model: Any = build_model(train, load_tokenizer(files), device=torch.device("cpu"))
    tensors = kept_tensors(model, adapters_only=False)
    checkpointer.save(2, {"model": tensors}, meta={"losses": {"hex": []}}, fingerprint="f")
    checkpointer.wait()
    export_model(
        train, checkpointer=checkpointer, ref=CommitRef("train", 2, 1), folder=folder / "model", facts=FACTS,
        tokenizer_files=files,
    )  # fmt: skip
    return folder / "model"


@pytest.mark.parametrize("template", ["chat", "recipe"])
def test_the_exported_model_stops_where_its_training_ended_answers(
    template: str, files: dict[str, bytes], worker: Any, one_rank: None, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    base = _base(files, tmp_path / "base", chat_template=GEMMA)
    train = TrainSpec(model=str(base), template=template, max_length=64, dtype="float32")
    folder = _exported(train, worker, tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ends = ["<end_of_turn>", "</s>"] if template == "chat" else "</s>"
    said = GenerationConfig.from_pretrained(folder)
    assert said.eos_token_id == tokenizer.convert_tokens_to_ids(ends)
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == said.eos_token_id


def test_a_preview_names_what_ends_a_turn_and_finds_nothing_wrong_with_it(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    base = _base(files, tmp_path / "base", chat_template=GEMMA)
    rows = [Record(f"row {number}", {"instruction": f"Say {number}", "output": f"{number}!"}) for number in range(4)]
    found = preview_tokens(rows, TrainSpec(model=str(base), template="chat", max_length=64), places=[0])
    assert [text for _, text in found.ends] == ["<end_of_turn>", "</s>"]
    assert found.rows[0].ends_with_eos
    assert found.warnings == ()
