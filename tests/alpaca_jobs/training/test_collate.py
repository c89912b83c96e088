"""Packed, padded and one row at a time give the same loss and gradients; models that mix rows up are found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.collate import Layout, MicroBatch, choose_layout, collate, lay_out, target_loss
from alpaca_jobs.training.data import TokenizedRows
from alpaca_jobs.training.model import build_model
from alpaca_jobs.training.recipes import build_tokenizer, prepare_rows
from alpaca_jobs.training.tokenizer import load_tokenizer

CPU = torch.device("cpu")


def _made(worker: Any, model: str) -> tuple[nn.Module, TokenizedRows, int]:
    train = TrainSpec(model=model, max_length=128, dtype="float32")
    rows = worker.rows(12)
    tokenizer = load_tokenizer(build_tokenizer(train, rows))
    built = build_model(train, tokenizer, device=CPU)
    return built.eval(), prepare_rows(rows, tokenizer, {}, train), tokenizer.pad_id


@pytest.fixture(scope="module")
def llama(worker: Any) -> tuple[nn.Module, TokenizedRows, int]:
    """tiny-llama, rows, padding id."""
    return _made(worker, "tiny-llama")


@pytest.fixture(scope="module")
def opt(worker: Any, tiny_opt: Path) -> tuple[nn.Module, TokenizedRows, int]:
    """The tiny OPT without dropout (evaluation mode), rows, padding id."""
    return _made(worker, str(tiny_opt))


def _losses_and_gradients(
    made: tuple[nn.Module, TokenizedRows, int], groups: list[list[int]], layout: Layout
) -> tuple[float, torch.Tensor]:
    model, rows, pad_id = made
    model.zero_grad()
    total = 0.0
    for group in groups:
        loss = target_loss(model, lay_out(collate(rows, group), layout=layout, pad_id=pad_id))
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    gradients = [param.grad.flatten() for param in model.parameters() if param.grad is not None]
    return total, torch.cat(gradients)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_packed_padded_and_one_by_one_agree(name: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(name)
    number = int(made[1].target_counts[:12].sum())
    alone, alone_gradients = _losses_and_gradients(made, [[row] for row in range(12)], Layout.PADDED)
    for layout in (Layout.PADDED, Layout.BLOCK_MASK, *([Layout.POSITIONS] if name == "llama" else [])):
        for groups in ([list(range(12))], [[3, 1], [0, 2, 4, 5], [11, 9, 10], [6, 7, 8]]):
            loss, gradients = _losses_and_gradients(made, groups, layout)
            assert loss / number == pytest.approx(alone / number, abs=1e-6), layout
            assert torch.allclose(gradients, alone_gradients, atol=1e-4, rtol=1e-4), layout


def test_the_loss_is_the_one_transformers_computes_from_masked_labels(
    llama: tuple[nn.Module, TokenizedRows, int],
) -> None:
    model, rows, pad_id = llama
    begin, end = int(rows.offsets[3]), int(rows.offsets[4])
    ids = torch.from_numpy(rows.tokens[begin:end]).long()[None]
    labels = torch.where(torch.from_numpy(rows.is_target[begin:end])[None], ids, -100)
    theirs = model(input_ids=ids, labels=labels).loss
    ours = target_loss(model, lay_out(collate(rows, [3]), layout=Layout.POSITIONS, pad_id=pad_id))
    assert float(ours.detach() / rows.target_counts[3]) == pytest.approx(float(theirs.detach()), abs=1e-6)


def test_llama_is_packed_by_positions_and_opt_by_a_block_mask(
    llama: tuple[nn.Module, TokenizedRows, int], opt: tuple[nn.Module, TokenizedRows, int]
) -> None:
    assert choose_layout(llama[0], pad_id=llama[2], device=CPU, may_cut=False) is Layout.POSITIONS
    assert choose_layout(opt[0], pad_id=opt[2], device=CPU, may_cut=False) is Layout.BLOCK_MASK


def test_packing_opt_by_positions_would_mix_rows_up(opt: tuple[nn.Module, TokenizedRows, int]) -> None:
    """The silent failure that choose_layout is there for: without it this is what training would compute."""
    alone, _ = _losses_and_gradients(opt, [[row] for row in range(12)], Layout.PADDED)
    mixed, _ = _losses_and_gradients(opt, [list(range(12))], Layout.POSITIONS)
    assert abs(mixed - alone) / alone > 1e-5


def test_a_model_that_leaks_either_way_is_padded() -> None:
    class Leaky(nn.Module):
        """Mixes all tokens of a sequence, whatever mask it is given."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 8)

        def get_input_embeddings(self) -> nn.Embedding:
            return self.embed

        def forward(
            self, input_ids: Any, position_ids: Any = None, attention_mask: Any = None, use_cache: Any = None
        ) -> Any:
            from types import SimpleNamespace

            hidden = self.embed(input_ids)
            return SimpleNamespace(logits=(hidden + hidden.cumsum(1)) @ self.embed.weight.T)

    assert choose_layout(Leaky(), pad_id=0, device=CPU) is Layout.PADDED


@pytest.mark.parametrize("layout", list(Layout))
def test_an_empty_micro_batch_has_no_loss_and_zero_gradients(
    llama: tuple[nn.Module, TokenizedRows, int], layout: Layout
) -> None:
    loss, gradients = _losses_and_gradients(llama, [[]], layout)
    assert loss == 0.0
    assert not gradients.any()


def test_no_row_is_predicted_from_the_one_before_it(llama: tuple[nn.Module, TokenizedRows, int]) -> None:
    rows = llama[1]
    batch = collate(rows, [5, 2])
    assert isinstance(batch, MicroBatch)
    for ids, places in zip(batch.rows, batch.targets, strict=True):
        assert int(places.min()) >= 0
        assert int(places.max()) == len(ids) - 2  # the last target, EOS, is predicted from the token before it
    assert sum(len(places) for places in batch.targets) == int(rows.target_counts[[5, 2]].sum())
    assert batch.num_tokens == int(rows.lengths[[5, 2]].sum())
