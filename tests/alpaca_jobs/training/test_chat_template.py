"""The tokenizer's own chat template: tokens and targets are those of a table written by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from alpaca_jobs.data.formats import Example, Turn, each_answer
from alpaca_jobs.data.rows import Row
from alpaca_jobs.errors import DataError, ModelError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.chat_template import encode_chats, stop_ids
from alpaca_jobs.training.data import gather_rows
from alpaca_jobs.training.recipes import end_ids, prepare_rows
from alpaca_jobs.training.tokenizer import load_tokenizer

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<s>[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'system' %}{{ raise_exception('no system turns') }}"
    "{% else %}{{ ' ' + message['content'] + '</s>' }}{% endif %}{% endfor %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
WORDS = [
    "user",
    "assistant",
    "system",
    "Hi",
    "Hello",
    "Bye",
    "ĠSo",
    "So",
    "Ġlong",
    "Ġ",
    "Ċ",
    "[",
    "INST",
    "]",
    "/",
    "Be",
    "Ġkind",
]
CHAT = (Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Bye"), Turn("assistant", "So long"))

S, E = "<|im_start|>", "<|im_end|>"
CHATML_TABLE = [
    (S, False), ("user", False), ("Ċ", False), ("Hi", False), (E, False), ("Ċ", False),
    (S, False), ("assistant", False), ("Ċ", False), ("Hello", True), (E, True), ("Ċ", False),
    (S, False), ("user", False), ("Ċ", False), ("Bye", False), (E, False), ("Ċ", False),
    (S, False), ("assistant", False), ("Ċ", False), ("So", True), ("Ġlong", True), (E, True), ("Ċ", False),
]  # fmt: skip
LLAMA_TABLE = [
    ("<s>", False), ("[", False), ("INST", False), ("]", False), ("ĠHi", False), ("Ġ[", False), ("/", False),
    ("INST", False), ("]", False), ("ĠHello", True), ("</s>", True),
    ("<s>", False), ("[", False), ("INST", False), ("]", False), ("ĠBye", False), ("Ġ[", False), ("/", False),
    ("INST", False), ("]", False), ("ĠSo", True), ("Ġlong", True), ("</s>", True),
]  # fmt: skip


def _files(template: str | None, eos: str, *, named: bool = True) -> dict[str, bytes]:
    """A byte-level BPE whose merges build exactly the words above.

    Args:
        named: whether tokenizer_config.json names the special tokens that tokenizer.json has.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary: dict[str, int] = {token: number for number, token in enumerate(SPECIALS)}
    merges: list[tuple[str, str]] = []
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary.setdefault(letter, len(vocabulary))
    for word in ["ĠHi", "ĠHello", "ĠBye", "Ġ[", *WORDS]:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "pad_token": "<|endoftext|>",
        "additional_special_tokens": SPECIALS[1:] if named else [],
    }  # fmt: skip
    if template is not None:
        config["chat_template"] = template
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}


@pytest.mark.parametrize(
    ("template", "eos", "table"),
    [pytest.param(CHATML, E, CHATML_TABLE, id="chatml"), pytest.param(LLAMA, "</s>", LLAMA_TABLE, id="llama-2")],
)
def test_tokens_and_targets_are_those_of_the_table(template: str, eos: str, table: list[tuple[str, bool]]) -> None:
    assert _tokens(_files(template, eos), CHAT) == table


def _tokens(files: dict[str, bytes], chat: tuple[Turn, ...]) -> list[tuple[str, bool]]:
    """Tokens of a conversation, and which of them are targets."""
    rows = gather_rows(encode_chats([chat], files, max_length=512), max_length=512)
    definition = json.loads(files["tokenizer.json"])
    names = {number: token for token, number in definition["model"]["vocab"].items()}
    return [(names[int(token)], bool(target)) for token, target in zip(rows.tokens, rows.is_target, strict=True)]


HEADED = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|im_start|>user' + message['content'] }}"
    "{% else %}{{ '<|im_start|>assistant<s>So long</s>' + message['content'] }}{% endif %}{{ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
"""As gpt-oss has it: what begins an answer holds special tokens of its own (<|channel|>final<|message|>)."""


@pytest.mark.parametrize("answer", ["Be", "So", "Hello", "So long" * 9])
def test_an_answer_behind_a_header_of_special_tokens_is_learned_to_its_end(answer: str) -> None:
    found = _tokens(_files(HEADED, E), (Turn("user", "Hi"), Turn("assistant", answer)))
    learned = "".join(token for token, is_target in found if is_target).replace("Ġ", " ")
    assert learned == f"<s>So long</s>{answer}{E}"


def test_a_template_that_ends_the_whole_text_with_eos_takes_several_turns() -> None:
    """As Phi-3's does where it is not asked for an answer; the first answer's turn has no such end once more follow."""
    phi = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    found = _tokens(_files(phi, "<|endoftext|>"), CHAT)
    assert found == [*CHATML_TABLE, ("<|endoftext|>", False)]
    assert stop_ids(_files(phi, "<|endoftext|>")) == (SPECIALS.index(E),)


QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ 'So\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As Qwen3 writes an empty thought into the last answer alone (here the word So)."""


def test_an_answer_that_a_template_writes_otherwise_once_more_turns_follow_is_learned_as_the_last_one() -> None:
    files, chat = _files(QWEN3, E), Example("", CHAT)
    with pytest.raises(DataError, match=r"writes it otherwise once more turns follow.*data convert .* --each-answer"):
        _tokens(files, CHAT)
    first, second = (_tokens(files, one.turns) for one in each_answer(chat))
    assert first == [*CHATML_TABLE[:9], ("So", True), ("Ċ", True), ("Hello", True), (E, True), ("Ċ", False)]
    earlier = [(token, False) for token, _ in CHATML_TABLE[:21]]
    assert second == [*earlier, ("So", True), ("Ċ", True), *CHATML_TABLE[21:]]


def test_an_answer_with_weight_0_is_read_and_not_learned() -> None:
    chat = (CHAT[0], replace(CHAT[1], is_learned=False), *CHAT[2:])
    found = _tokens(_files(CHATML, E), chat)
    assert found == [(token, is_target and place > 12) for place, (token, is_target) in enumerate(CHATML_TABLE)]


def test_special_tokens_that_tokenizer_config_does_not_name_are_special_all_the_same() -> None:
    files = _files(CHATML, "<|endoftext|>", named=False)
    assert _tokens(files, CHAT) == CHATML_TABLE
    with pytest.raises(DataError, match=re.escape("holds the text <|im_end|>")):
        _tokens(files, (Turn("user", "Hi <|im_end|>"), Turn("assistant", "Hello")))


@pytest.mark.parametrize(("eos", "stops"), [("<|endoftext|>", [E, "<|endoftext|>"]), (E, [E])])
def test_a_model_stops_at_what_ends_a_turn_in_its_template_and_at_the_end_of_sequence(
    eos: str, stops: list[str]
) -> None:
    files = _files(CHATML, eos)
    chat = TrainSpec(model="some/model", template="chat")
    ids = [SPECIALS.index(token) for token in stops]
    assert list(end_ids(chat, load_tokenizer(files), files)) == ids
    own = end_ids(TrainSpec(model="some/model"), load_tokenizer(files), files)
    assert own == (SPECIALS.index(eos),)
    assert stop_ids(_files("{{ raise_exception('never') }}", eos)) == ()


def test_alpaca_rows_fit_as_chats_of_one_exchange_too() -> None:
    files = _files(CHATML, E)
    train = TrainSpec(model="some/model", template="chat", max_length=64)
    rows = prepare_rows([Row("Hi", "", "Hello")], load_tokenizer(files), files, train)
    assert rows.of_epoch(0).target_counts.tolist() == [2]


@pytest.mark.parametrize(
    ("template", "chat", "words"),
    [
        (CHATML, (Turn("user", "Hi <|im_end|>"), Turn("assistant", "Hello")), "holds the text <|im_end|>"),
        (
            LLAMA,
            (Turn("system", "Be kind"), *CHAT),
            "Conversation 0 (system, user, assistant, user, ...) does not "
            "fit the tokenizer's chat template, which says: no system turns. Take out the turns",
        ),
        (CHATML, CHAT[1:], "begins with the assistant"),
        (CHATML.replace("assistant\n' }}", "assistant\n<think>' }}"), CHAT, "asks for an answer with "),
        (CHATML.replace("<|im_end|>", ""), CHAT, "with no special token, so a model trained with it would never stop"),
        (
            "{% for m in messages %}{{ m['content'] if loop.last else 'x' }}<|im_end|>{% endfor %}",
            CHAT,
            "writes it otherwise once more turns follow",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(template: str, chat: tuple[Turn, ...], words: str) -> None:
    with pytest.raises(DataError) as caught:
        list(encode_chats([chat], _files(template, E), max_length=64))
    assert words in str(caught.value)


def test_a_tokenizer_without_a_template_says_so() -> None:
    with pytest.raises(ModelError, match="has no chat template"):
        list(encode_chats([CHAT], _files(None, E), max_length=64))
