"""Rows to tokens: the letter of the templates, EOS, what carries loss, what is cut; tokenizers that are the same
everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alpaca_jobs.data.rows import Row
from alpaca_jobs.errors import DataError, ModelError
from alpaca_jobs.prompts import render_prompt
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.data import Example, TokenizedRows, Turn, encode_examples, gather_rows
from alpaca_jobs.training.dataset import prepare_dataset
from alpaca_jobs.training.reading import Conversation, load_training_rows
from alpaca_jobs.training.recipes import build_tokenizer, prepare_rows, to_example
from alpaca_jobs.training.tokenizer import TINY_VOCAB_SIZE, RowTokenizer, load_tokenizer, write_folder

ROWS = [
    Row("Name a colour.", "", "Red is a colour."),
    Row("Reverse the words.", "one two", "two one"),
    Row("Say </s> twice.", "", "</s></s>"),
]
TINY = TrainSpec(model="tiny-llama", max_length=256)


def _letters(prefix: tuple[int, ...] = (7,)) -> RowTokenizer:
    """One token per letter, so that expected ids can be written by hand."""

    def encode(texts: object) -> list[list[int]]:
        return [[ord(letter) for letter in text] for text in texts]  # type: ignore[attr-defined]

    return RowTokenizer(encode=encode, prefix=prefix, eos_id=2, pad_id=0, vocab_size=300)


def _tokenize(examples: list[Example], tokenizer: RowTokenizer, *, max_length: int) -> TokenizedRows:
    return gather_rows(encode_examples(examples, tokenizer, max_length=max_length), max_length=max_length)


def test_prompt_answer_and_eos_lie_together_and_only_the_answer_and_eos_carry_loss() -> None:
    rows = _tokenize([(Turn("ab:", "cd"),)], _letters(), max_length=10)
    assert rows.tokens.tolist() == [7, *map(ord, "ab:cd"), 2]
    assert rows.is_target.tolist() == [False] * 4 + [True] * 3
    assert rows.lengths.tolist() == [7]
    assert rows.target_counts.tolist() == [3]


def test_every_turn_of_a_conversation_ends_with_eos_and_only_answers_carry_loss() -> None:
    rows = _tokenize([(Turn("a:", "b"), Turn("c:", "de"))], _letters(), max_length=99)
    assert rows.tokens.tolist() == [7, *map(ord, "a:b"), 2, *map(ord, "c:de"), 2]
    assert rows.is_target.tolist() == [False, False, False, True, True, False, False, True, True, True]


def test_the_first_token_of_a_row_is_never_a_target() -> None:
    rows = _tokenize([(Turn("", "ab"),), (Turn("", "c"),)], _letters(prefix=()), max_length=99)
    assert rows.tokens.tolist() == [*map(ord, "ab"), 2, ord("c"), 2]
    assert rows.is_target.tolist() == [False, True, True, False, True]


def test_a_long_row_is_cut_with_its_eos_and_counted() -> None:
    examples = [(Turn("ab:", "cdef"),), (Turn("abcdefgh:", "x"),), (Turn("a:", "b"),)]
    rows = _tokenize(examples, _letters(), max_length=6)
    assert rows.lengths.tolist() == [6, 6, 5]
    assert rows.tokens[:6].tolist() == [7, *map(ord, "ab:cd")]
    assert (rows.num_truncated, rows.num_without_target) == (2, 1)
    assert rows.target_counts.tolist() == [2, 0, 2]


def test_nothing_to_learn_from_is_an_error_in_words() -> None:
    with pytest.raises(DataError, match=r"of 1 rows none keeps a token of its answer within train\.max_length 3"):
        _tokenize([(Turn("abcdef", "g"),)], _letters(), max_length=3)
    with pytest.raises(DataError, match="There are no rows to train on"):
        _tokenize([], _letters(), max_length=3)


def test_an_alpaca_row_is_the_template_to_the_letter() -> None:
    ((turn,), (with_input,)) = to_example(ROWS[0]), to_example(ROWS[1])
    assert turn == Turn(render_prompt("Name a colour."), "Red is a colour.")
    assert with_input.prompt.endswith("### Input:\none two\n\n### Response:")


def test_tiny_llamas_tokens_read_back_as_the_row_and_special_text_stays_text() -> None:
    files = build_tokenizer(TINY, ROWS)
    tokenizer = load_tokenizer(files)
    rows = prepare_rows(ROWS, tokenizer, {}, TINY)
    from tokenizers import Tokenizer

    reader = Tokenizer.from_str(files["tokenizer.json"].decode())
    for index, row in enumerate(ROWS):
        ids = rows.tokens[rows.offsets[index] : rows.offsets[index + 1]]
        is_target = rows.is_target[rows.offsets[index] : rows.offsets[index + 1]]
        assert ids[-1] == tokenizer.eos_id
        assert (ids[:-1] != tokenizer.eos_id).all()
        assert reader.decode(ids[is_target][:-1].tolist()) == row.output
        assert reader.decode(ids[~is_target].tolist()) == render_prompt(row.instruction, row.input)


def test_the_same_rows_give_the_same_tokenizer_in_another_process(tmp_path: Path) -> None:
    rows = [Row(f"Count to {n} and name {n % 7} things.", "", " ".join(map(str, range(n % 40)))) for n in range(300)]
    program = (
        "import json, sys, hashlib; from alpaca_jobs.data.rows import Row; from alpaca_jobs.spec import TrainSpec;"
        "from alpaca_jobs.training.recipes import build_tokenizer;"
        "rows = [Row(*fields) for fields in json.load(open(sys.argv[1]))];"
        "files = build_tokenizer(TrainSpec(model='tiny-llama'), rows);"
        "sys.stdout.write(hashlib.sha256(b''.join(files[name] for name in sorted(files))).hexdigest())"
    )
    (tmp_path / "rows.json").write_text(json.dumps([[row.instruction, row.input, row.output] for row in rows]))
    said = [
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "rows.json")],
            env={**os.environ, "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": parallel},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, parallel in (("1", "true"), ("2", "false"))
    ]
    files = build_tokenizer(TINY, rows)
    here = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()
    assert said == [here, here]


def test_transformers_reads_the_tiny_tokenizer_alike(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    files = build_tokenizer(TINY, ROWS)
    write_folder(files, tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(files)
    text = render_prompt("Grüße an 東京!", "x = {1: 'a'}")
    assert theirs(text)["input_ids"] == [*ours.prefix, *ours.encode([text])[0]]
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.eos_id, ours.pad_id)
    assert len(theirs) == ours.vocab_size <= TINY_VOCAB_SIZE
    assert theirs.decode(ours.encode([text])[0]) == text


def test_a_base_models_tokenizer_gets_a_padding_token(tiny_opt: Path) -> None:
    files = build_tokenizer(TrainSpec(model=str(tiny_opt)), ROWS)
    tokenizer = load_tokenizer(files)
    assert tokenizer.pad_id == tokenizer.vocab_size - 1
    assert tokenizer.pad_id != tokenizer.eos_id


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("/no/such/folder", "there is no such folder here"),
        ("facebook/opt-126m", r"did you mean facebook/opt-125m\?"),
        ("nobody/nothing", "neither a folder here nor in this machine's Hugging Face cache"),
        ("not a name!", "train.model is not a name!"),
    ],
)
def test_a_model_that_does_not_exist_is_an_error_in_words(model: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build_tokenizer(TrainSpec(model=model), ROWS)


def test_a_folder_without_a_model_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        build_tokenizer(TrainSpec(model=str(tmp_path)), ROWS)


def test_rows_of_another_recipe_are_refused() -> None:
    conversation = Conversation((("Hi", "Hello"),))
    with pytest.raises(DataError, match=r"Row 0 is a Conversation, but train\.recipe is alpaca"):
        prepare_rows([conversation], _letters(), {}, TINY)


def test_a_dataset_is_read_from_a_file_and_counts_its_steps(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(10)]))
    dataset = prepare_dataset(TrainSpec(model="tiny-llama", global_batch_size=4, epochs=2), str(path))
    assert len(dataset.rows) == 10
    assert dataset.num_steps == 6
    capped = prepare_dataset(TrainSpec(model="tiny-llama", global_batch_size=4, max_steps=5), f"file://{path}")
    assert capped.num_steps == 5
    assert capped.rows.digest == dataset.rows.digest


VICUNA = TrainSpec(model="tiny-llama", recipe="vicuna")


def _write(path: Path, *conversations: object) -> str:
    path.write_text(json.dumps([{"id": str(n), "conversations": turns} for n, turns in enumerate(conversations)]))
    return str(path)


def _say(*texts: str, first: str = "human") -> list[dict[str, str]]:
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": speakers[n % 2], "value": text} for n, text in enumerate(texts)]


def test_conversations_become_the_vicuna_format(tmp_path: Path) -> None:
    source = _write(
        tmp_path / "chat.json", _say("Hi", "Hello", "Bye", "So long"), _say("x", "Q", "A", "Q2", first="gpt")
    )
    first, second = load_training_rows(source, VICUNA)
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. "
    )
    assert to_example(first) == (
        Turn(f"{system}USER: Hi ASSISTANT:", " Hello"),
        Turn("USER: Bye ASSISTANT:", " So long"),
    )
    assert second == Conversation((("Q", "A"),))  # an answer before any question, and a question without an answer, go


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ("Hi", "item 1: no list of conversations was found"),
        ([{"from": "human", "value": "a"}, {"from": "human", "value": "b"}], "human speaks twice in a row"),
        ([{"from": "system", "value": "a"}], "message 0 is"),
        ([{"from": "human", "value": "a"}], "no question is answered"),
        (
            [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0}],
            r"message 1 is not to be learned \(weight 0\), but recipe vicuna learns every answer",
        ),
    ],
)
def test_conversations_that_cannot_be_used_are_named(tmp_path: Path, turns: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_training_rows(_write(tmp_path / "chat.json", turns), VICUNA)


def test_the_digest_follows_every_part_of_the_rows() -> None:
    base = _tokenize([(Turn("ab", "cd"),)], _letters(), max_length=99)
    moved = _tokenize([(Turn("abc", "d"),)], _letters(), max_length=99)
    assert np.array_equal(base.tokens, moved.tokens)
    assert base.digest != moved.digest


def test_an_embedding_has_a_row_for_the_highest_id_where_ids_have_gaps() -> None:
    from tokenizers import Tokenizer, models

    vocabulary = {"<unk>": 0, "</s>": 1, "a": 2, "b": 40}
    definition = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")).to_str()
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<unk>"}
    files = {"tokenizer.json": definition.encode(), "tokenizer_config.json": json.dumps(config).encode()}
    tokenizer = load_tokenizer(files)
    assert tokenizer.encode(["b"]) == [[40]]
    assert tokenizer.vocab_size == 41
