"""Multi-turn masks against token tables written by hand, for three families of tokenizers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.reading import Conversation
from alpaca_jobs.training.recipes import prepare_rows
from alpaca_jobs.training.tokenizer import load_tokenizer, write_folder

CHAT = Conversation((("Hi", "Hello"), ("Bye", "So long")))
TRAIN = TrainSpec(model="tiny-llama", recipe="vicuna")
SPECIALS = ["<unk>", "<s>", "</s>", "[PAD]"]

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

# One line per token: what it is, and whether it carries loss. Between them stands the system text, which never does.
LLAMA = [
    ("<s>", False), (SYSTEM, False),
    ("▁USER", False), (":", False), ("▁Hi", False), ("▁ASSISTANT", False), (":", False),
    ("▁Hello", True), ("</s>", True),
    ("▁USER", False), (":", False), ("▁Bye", False), ("▁ASSISTANT", False), (":", False),
    ("▁So", True), ("▁long", True), ("</s>", True),
]  # fmt: skip
LLAMA_5 = [(token.removeprefix("▁") if place > 8 and token == "▁USER" else token, is_target)
           for place, (token, is_target) in enumerate(LLAMA)]  # fmt: skip
"""As transformers 5 loads LLaMA's tokenizer: nothing is put before what follows a special token."""
QWEN = [
    (SYSTEM, False),
    ("ĠUSER", False), (":", False), ("ĠHi", False), ("ĠASSISTANT", False), (":", False),
    ("ĠHello", True), ("</s>", True),
    ("USER", False), (":", False), ("ĠBye", False), ("ĠASSISTANT", False), (":", False),
    ("ĠSo", True), ("Ġlong", True), ("</s>", True),
]  # fmt: skip
OPT = [("</s>", False), *QWEN]  # its beginning is its end: the first </s> is no target, the others are


def _tokenizer(words: Sequence[str], *, space: str, begin: str | None, kind: str) -> dict[str, bytes]:
    """A BPE tokenizer whose merges build exactly these words, as the files of its folder."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary: dict[str, int] = {token: number for number, token in enumerate(SPECIALS)}
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(1, len(word) + 1):
            vocabulary.setdefault(word[end - 1], len(vocabulary))
            if end > 1 and word[:end] not in vocabulary:
                merges.append((word[: end - 1], word[end - 1]))
            vocabulary.setdefault(word[:end], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    if space == "▁":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif space == "▁first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, vocabulary[begin])]
        )
    named = {"bos_token": begin, "eos_token": "</s>", "pad_token": "[PAD]", "unk_token": "<unk>"}
    config = {"tokenizer_class": kind, **{name: token for name, token in named.items() if token}}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def _words(table: list[tuple[str, bool]], system: list[str]) -> list[str]:
    return [*system, *dict.fromkeys(token for token, _ in table if token not in (*SPECIALS, SYSTEM))]


LLAMA_SYSTEM = [f"▁{word}" for word in SYSTEM.split(" ")]
BYTE_SYSTEM = [
    "A", "Ġchat", "Ġbetween", "Ġa", "Ġcurious", "Ġuser", "Ġand", "Ġan", "Ġartificial", "Ġintelligence",
    "Ġassistant", ".", "ĠThe", "Ġassistant", "Ġgives", "Ġhelpful", ",", "Ġdetailed", ",", "Ġand", "Ġpolite",
    "Ġanswers", "Ġto", "Ġthe", "Ġuser", "'s", "Ġquestions", ".",
]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "system", "space", "begin", "kind"),
    [
        pytest.param(LLAMA, LLAMA_SYSTEM, "▁", "<s>", "PreTrainedTokenizerFast", id="llama"),
        pytest.param(LLAMA_5, LLAMA_SYSTEM, "▁first", "<s>", "PreTrainedTokenizerFast", id="llama-5"),
        pytest.param(LLAMA_5, LLAMA_SYSTEM, "▁", "<s>", "LlamaTokenizer", id="llama-5-class"),
        pytest.param(QWEN, BYTE_SYSTEM, "Ġ", None, "PreTrainedTokenizerFast", id="qwen"),
        pytest.param(OPT, BYTE_SYSTEM, "Ġ", "</s>", "GPT2Tokenizer", id="opt"),
    ],
)
def test_tokens_and_masks_are_those_of_the_table(
    table: list[tuple[str, bool]], system: list[str], space: str, begin: str | None, kind: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    from transformers import AutoTokenizer

    files = _tokenizer(_words(table, system), space=space, begin=begin, kind=kind)
    rows = prepare_rows([CHAT], load_tokenizer(files), {}, TRAIN)
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    names = {number: token for token, number in vocabulary.items()}
    expected = [
        (token, is_target) for entry, is_target in table for token in (system if entry == SYSTEM else [entry])
    ]  # fmt: skip
    found = [(names[int(token)], bool(target)) for token, target in zip(rows.tokens, rows.is_target, strict=True)]
    assert found == expected
    write_folder(files, tmp_path)
    text = f"{SYSTEM} USER: Hi ASSISTANT: Hello</s>USER: Bye ASSISTANT: So long</s>"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == rows.tokens.tolist()  # when it is used


def test_chats_split_by_tokens_fit_the_limit_exactly_as_training_counts() -> None:
    from alpaca_jobs.data.cleaning import clean_chats
    from alpaca_jobs.data.formats import Example, Turn
    from alpaca_jobs.spec import TrainSpec
    from alpaca_jobs.training.chat_length import chat_counter
    from alpaca_jobs.training.recipes import build_tokenizer, prepare_rows
    from alpaca_jobs.training.tokenizer import load_tokenizer

    turns = tuple(
        Turn(role, f"{role} says thing number {number} in some words " * (1 + number % 3))
        for number in range(12)
        for role in ("user", "assistant")
    )
    train, chat = TrainSpec(recipe="vicuna", model="tiny-llama"), Example("c", turns)
    count = chat_counter(train, [chat])
    rows = [Conversation(tuple((turns[at].text, turns[at + 1].text) for at in range(0, 24, 2)))]
    tokenizer = load_tokenizer(build_tokenizer(train, rows))
    assert count(turns) == prepare_rows(rows, tokenizer, {}, train).lengths[0]
    limit = count(turns) // 3
    found = clean_chats([chat], max_length=limit, length=count)
    assert all(count(part.turns) <= limit for part in found.chats)
    assert tuple(turn for part in found.chats for turn in part.turns) == turns
    assert found.num_split == len(found.chats) - 1 >= 2
    assert found.num_too_long == 0
    assert clean_chats([chat], max_length=10, length=count).num_too_long == 12
