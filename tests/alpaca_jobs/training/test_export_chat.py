"""What an exported model's own files say about talking to it: where it stops, in which words it is asked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import families
import pytest
import torch

from alpaca_jobs.data.record_files import Record
from alpaca_jobs.data.rows import Row
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.engines.protocol import kept_tensors
from alpaca_jobs.training.export import export_model
from alpaca_jobs.training.model import build_model
from alpaca_jobs.training.model_card import CardFacts
from alpaca_jobs.training.preview import preview_tokens
from alpaca_jobs.training.reading import Conversation, TrainingRow
from alpaca_jobs.training.recipes import build_tokenizer, prepare_rows
from alpaca_jobs.training.tokenizer import load_tokenizer, write_folder
from alpaca_jobs.training.tokenizer_export import tokenizer_to_export
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


RECIPES: dict[str, tuple[dict[str, Any], list[TrainingRow], list[str]]] = {
    "alpaca": ({}, [Row("Say {x} 😀.\n", "", "It is \"x\".\n")], ["Say {x} 😀.\n", "It is \"x\".\n"]),
    "vicuna": (
        {"recipe": "vicuna"},
        [Conversation((("Hi ", "Hello"), ("And\n\nnow?", " Bye")))],
        ["Hi ", "Hello", "And\n\nnow?", " Bye"],
    ),
    "templates": (
        {"templates": [{"prompt_input": "{instruction}{input}",
                        "prompt_no_input": "\"Frage\" \\n 😀:\n{instruction}\n> "}]},
        [Row("Was?", "", "Das.")],
        ["Was?", "Das."],
    ),
}  # fmt: skip


def _said(recipe: str, base: Path) -> tuple[list[int], list[int]]:
    """Tokens of a conversation in training, and by the exported tokenizer's chat template."""
    from transformers import AutoTokenizer

    changes, rows, texts = RECIPES[recipe]
    train = TrainSpec(model=str(base), max_length=512, **changes)
    files = build_tokenizer(train, [])
    tokenizer = load_tokenizer(files)
    made = tokenizer_to_export(train, files, tokenizer)
    write_folder(made, base / "exported")
    loaded: Any = AutoTokenizer.from_pretrained(base / "exported")
    chat = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    ids, _ = prepare_rows(rows, tokenizer, files, train).of_epoch(0).pieces(0)[0]
    return ids.tolist(), loaded.apply_chat_template(chat, return_dict=False)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "begin", [pytest.param("", id="no beginning"), pytest.param("<s>", id="begins with <s>"), "first"]
)
def test_the_exported_chat_template_writes_the_very_tokens_of_training(
    recipe: str, begin: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    if begin == "first":  # as transformers 5 loads LLaMA's: a space before the very beginning and nothing else
        words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **{f"<0x{byte:02X}>": 4 + byte for byte in range(256)}}
        tokenizer = Tokenizer(models.BPE(vocab=words | {"▁": 260}, merges=[], byte_fallback=True, unk_token="<unk>"))
        tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.ByteFallback()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    base = _base({**files, "tokenizer.json": tokenizer.to_str().encode()}, tmp_path / "base", chat_template=GEMMA)
    trained, asked = _said(recipe, base)
    assert asked == trained
    assert trained[0] == 1 or not begin


@pytest.mark.parametrize("changes", [{"recipe": "pretrain"}, {"template": "chat"}])
def test_what_is_trained_without_prompts_or_in_the_bases_own_keeps_its_chat_template(
    changes: dict[str, Any], files: dict[str, bytes], tmp_path: Path
) -> None:
    base = _base(files, tmp_path / "base", chat_template=GEMMA)
    train = TrainSpec(model=str(base), **changes)
    made = build_tokenizer(train, [])
    assert tokenizer_to_export(train, made, load_tokenizer(made))["chat_template.jinja"].decode() == GEMMA


def test_a_stretched_models_tokenizer_takes_rows_as_long_as_those_it_was_trained_on(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    base = _base(files, tmp_path / "base", model_max_length=512)
    for scaling, longest in (({"type": "linear", "factor": 4}, 2048), (None, 512)):
        train = TrainSpec(model=str(base), max_length=2048, rope_scaling=scaling)
        made = build_tokenizer(train, [])
        config = json.loads(tokenizer_to_export(train, made, load_tokenizer(made))["tokenizer_config.json"])
        assert config["model_max_length"] == longest


def test_a_template_that_cannot_be_made_does_not_keep_a_model_from_being_exported(
    files: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = _base(files, tmp_path / "base", chat_template=GEMMA)
    train = TrainSpec(model=str(base))
    made = build_tokenizer(train, [])
    tokenizer = dataclasses.replace(load_tokenizer(made), eos_id=7)  # which no template ends with
    assert "chat_template.jinja" not in tokenizer_to_export(train, made, tokenizer)
    made["tokenizer_config.json"] = b'{"tokenizer_class": "NobodysTokenizer"}'
    made["tokenizer.json"] = b"{}"
    assert "chat_template.jinja" not in tokenizer_to_export(train, made, tokenizer)
    assert caplog.text.count("has no chat template") == 2
