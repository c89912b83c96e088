"""Documents to rows: nothing lost or repeated, nothing cut that fits, and packed documents do not see each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alpaca_jobs.errors import DataError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.collate import Layout, collate, lay_out, target_loss
from alpaca_jobs.training.data import TokenizedRows, gather_rows
from alpaca_jobs.training.model import build_model
from alpaca_jobs.training.packing import best_fit, encode_documents
from alpaca_jobs.training.reading import Document, load_training_rows
from alpaca_jobs.training.recipes import build_tokenizer, prepare_rows
from alpaca_jobs.training.tokenizer import RowTokenizer, load_tokenizer

TRAIN = TrainSpec(model="tiny-llama", recipe="pretrain", max_length=32, global_batch_size=4, dtype="float32")
TEXTS = ["red and green and blue", "", "a stone by the river " * 9, "sky", "the song of the apple tree " * 3]


def _letters() -> RowTokenizer:
    """One token for each letter; 1 begins a text and 2 ends it."""
    return RowTokenizer(
        encode=lambda texts: [[10 + ord(letter) for letter in text] for text in texts],
        prefix=(1,), eos_id=2, pad_id=0, vocab_size=200,
    )  # fmt: skip


def _pack(texts: list[str], tokenizer: RowTokenizer, *, block_size: int, packing: Any) -> TokenizedRows:
    rows = encode_documents(texts, tokenizer, block_size=block_size, packing=packing)
    return gather_rows(rows, max_length=block_size)


def test_blocks_are_the_running_text_cut_every_so_many_tokens() -> None:
    rows = _pack(["abc", "defgh"], _letters(), block_size=5, packing="blocks")
    assert rows.tokens.tolist() == [1, 107, 108, 109, 2, 1, 110, 111, 112, 113, 114, 2]
    assert rows.lengths.tolist() == [5, 5, 2]
    assert [mask.tolist() for row in range(3) for _, mask in rows.pieces(row)] == [
        [False, True, True, True, True], [False, True, True, True, True], [False, True]
    ]  # fmt: skip


def test_best_fit_keeps_documents_whole_and_apart() -> None:
    rows = _pack(["abcd", "a", "abcdefgh", "ab"], _letters(), block_size=7, packing="best_fit")
    # With begin and end they are 6, 3, 10 and 4 tokens long; only the third does not fit, and is cut at 7.
    assert [[len(ids) for ids, _ in rows.pieces(row)] for row in range(len(rows))] == [[7], [6], [4, 3], [3]]
    assert rows.squared_lengths.tolist() == [49, 36, 25, 9]
    assert all(not mask[0] and mask[1:].all() for row in range(len(rows)) for _, mask in rows.pieces(row))


@given(st.lists(st.integers(1, 50), max_size=80))
def test_best_fit_holds_every_piece_once_and_overfills_no_bin(lengths: list[int]) -> None:
    bins = best_fit(lengths, 50)
    assert sorted(piece for members in bins for piece in members) == list(range(len(lengths)))
    loads = [sum(lengths[piece] for piece in members) for members in bins]
    assert all(load <= 50 for load in loads)
    assert all(one + other > 50 for one, other in zip(sorted(loads), sorted(loads)[1:], strict=False))


def test_long_documents_are_packed_nearly_full() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 1, 20_000).astype(int), 1, 2048).tolist()
    bins = best_fit(lengths, 2048)
    assert sum(lengths) / (2048 * len(bins)) > 0.99


@pytest.fixture(scope="module")
def tokenizer() -> RowTokenizer:
    """tiny-llama's, trained on the texts."""
    return load_tokenizer(build_tokenizer(TRAIN, [Document(text) for text in TEXTS]))


def _loss(model: Any, rows: TokenizedRows, which: list[int], layout: Layout) -> float:
    with torch.no_grad():
        return float(target_loss(model, lay_out(collate(rows, which), layout=layout, pad_id=1)))


def test_packed_documents_have_the_loss_of_each_alone(tokenizer: RowTokenizer) -> None:
    packed = _pack(TEXTS, tokenizer, block_size=64, packing="best_fit")
    assert packed.piece_starts is not None
    assert len(packed.piece_starts) > len(packed)  # otherwise this tests nothing
    model = build_model(TRAIN, tokenizer, device=torch.device("cpu")).eval()
    alone = 0.0
    for text in TEXTS[:1] + TEXTS[2:]:
        single = _pack([text], tokenizer, block_size=64, packing="best_fit")
        alone += sum(_loss(model, single, [row], Layout.PADDED) for row in range(len(single)))
    assert _loss(model, packed, list(range(len(packed))), Layout.POSITIONS) == pytest.approx(alone, rel=1e-5)


def test_texts_are_read_from_lines_and_from_records(tmp_path: Any) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "two"}\n')
    for name in ("a.txt", "a.jsonl"):
        rows = load_training_rows(str(tmp_path / name), TRAIN)
        assert [row.text for row in rows if isinstance(row, Document) and row.text] == ["one", "two"]


def test_empty_documents_are_refused_in_words(tokenizer: RowTokenizer) -> None:
    with pytest.raises(DataError, match="no text to train on"):
        prepare_rows([Document(" ")], tokenizer, {}, TRAIN)


def test_the_whole_loop_trains_on_packed_documents(worker: Any, one_rank: None, tmp_path: Any) -> None:
    from alpaca_jobs.training.dataset import prepare_dataset

    texts = [f"the song number {number} of the {'apple ' * (number % 7)}tree" for number in range(60)]
    for packing in ("blocks", "best_fit"):
        train = TRAIN.model_copy(update={"packing": packing, "max_length": 64, "max_steps": 3, "learning_rate": 3e-3})
        dataset = prepare_dataset(train, [Document(text) for text in texts])
        losses = worker.losses_of(train, dataset, tmp_path / packing)
        assert losses[-1] < losses[0]
