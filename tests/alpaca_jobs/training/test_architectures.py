"""Decoder-only families, each tiny and random: rows stay apart in the layout that is chosen, and two steps train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import ADAPTED, CUT_OUT, FAMILIES, random_model

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.collate import Layout, choose_layout, choose_loss_head, collate, lay_out, target_loss
from alpaca_jobs.training.recipes import prepare_rows
from alpaca_jobs.training.tokenizer import load_tokenizer, write_folder

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_stay_apart_in_the_layout_that_is_chosen(family: str, files: dict[str, bytes], worker: Any) -> None:
    tokenizer = load_tokenizer(files)
    data = prepare_rows(worker.rows(8), tokenizer, {}, TrainSpec(model="tiny-llama", max_length=128))
    model = random_model(family, tokenizer).eval()
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
    model = random_model(family, tokenizer).eval()

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
    random_model(family, load_tokenizer(files)).save_pretrained(folder)
    write_folder(files, folder)
    train = {"model": str(folder), "global_batch_size": 4, "learning_rate": 1e-3, "max_steps": 2, "max_length": 128}
    said = worker.train_once(
        {"store": f"file://{tmp_path / 'store'}", "attempt": 1, "train": train, "num_rows": 8}, rank=0, world_size=1
    )
    assert said["saved"] == [2]
    assert all(norm > 0 for norm in said["grad_norms"])


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("engine", ["single", "fsdp"])
@pytest.mark.parametrize("family", ADAPTED)
def test_adapters_train_beside_a_frozen_base(
    family: str, engine: str, files: dict[str, bytes], worker: Any, one_rank: None, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    random_model(family, load_tokenizer(files)).save_pretrained(folder)
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
