"""Steps made ahead are the steps; the mean over micro batches is that of the recipe of 2023, however it is split."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.collate import Layout, collate, lay_out, target_loss
from alpaca_jobs.training.data import TokenizedRows
from alpaca_jobs.training.feed import StepFeed, StepInputs, make_step
from alpaca_jobs.training.model import build_model
from alpaca_jobs.training.recipes import build_tokenizer, prepare_rows
from alpaca_jobs.training.tokenizer import load_tokenizer

TRAIN = TrainSpec(
    model="tiny-llama", global_batch_size=8, micro_batch_size=3, max_length=128, loss_average="micro_batch"
)


@pytest.fixture(scope="module")
def made(worker: Any) -> tuple[Any, TokenizedRows, int]:
    """tiny-llama, rows, padding id."""
    rows = worker.rows(20)
    tokenizer = load_tokenizer(build_tokenizer(TRAIN, rows))
    return (
        build_model(TRAIN, tokenizer, device=torch.device("cpu")).eval(),
        prepare_rows(rows, tokenizer, {}, TRAIN),
        tokenizer.pad_id,
    )


def _step(
    step: int, made: tuple[Any, TokenizedRows, int], *, rank: int = 0, world_size: int = 1, train: TrainSpec = TRAIN
) -> StepInputs:
    _, data, pad_id = made
    return make_step(
        step, train=train, data=data, rank=rank, world_size=world_size, layout=Layout.POSITIONS, pad_id=pad_id
    )


@pytest.mark.parametrize("world_size", [1, 3])
def test_micro_batch_average_is_the_mean_of_each_micro_batch_s_mean(
    made: tuple[Any, TokenizedRows, int], world_size: int
) -> None:
    model, data, pad_id = made
    ranks = [_step(1, made, rank=rank, world_size=world_size) for rank in range(world_size)]
    with torch.no_grad():
        ours = sum(float(target_loss(model, inputs)) for ready in ranks for inputs in ready.micros) / ranks[0].divisor
        means = []
        rows = ranks[0].plan.rows
        for group in (rows[:3], rows[3:6], rows[6:8]):  # as the Trainer's data loader hands them out
            inputs = lay_out(collate(data, group), layout=Layout.PADDED, pad_id=pad_id)
            means.append(float(target_loss(model, inputs)) / len(inputs.labels))
    assert ours == pytest.approx(sum(means) / 3, abs=1e-5)
    token = ranks[0].plan.rows
    assert token == _step(1, made, train=TRAIN.model_copy(update={"loss_average": "token"})).plan.rows


def test_the_two_averages_differ_where_micro_batches_have_unlike_numbers_of_targets(
    made: tuple[Any, TokenizedRows, int],
) -> None:
    per_micro = _step(1, made)
    weights = torch.cat([inputs.token_weights for inputs in per_micro.micros if inputs.token_weights is not None])
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float(weights.max()) > float(weights.min())
    per_token = _step(1, made, train=TRAIN.model_copy(update={"loss_average": "token"}))
    assert all(inputs.token_weights is None for inputs in per_token.micros)
    assert per_token.divisor == per_token.num_targets


def _same(one: StepInputs, other: StepInputs) -> bool:
    tensors = [
        (a, b)
        for mine, theirs in zip(one.micros, other.micros, strict=True)
        for a, b in [(mine.labels, theirs.labels), (mine.model_inputs["input_ids"], theirs.model_inputs["input_ids"])]
    ]
    return one.plan == other.plan and all(torch.equal(a, b) for a, b in tensors)


def test_steps_made_ahead_are_the_steps_in_their_order(made: tuple[Any, TokenizedRows, int]) -> None:
    feed = StepFeed(partial(_step, made=made), last_step=6, ahead=2)
    try:
        for step in range(3, 7):  # a resumed run begins anywhere
            assert _same(feed.take(step), _step(step, made))
    finally:
        feed.close()


def test_no_step_is_made_beyond_the_last_one(made: tuple[Any, TokenizedRows, int]) -> None:
    asked: list[int] = []

    def make(step: int) -> StepInputs:
        asked.append(step)
        return _step(step, made)

    feed = StepFeed(make, last_step=3, ahead=5)
    feed.take(2)
    feed.take(3)
    feed.close()
    assert asked == [2, 3]


def test_what_goes_wrong_while_a_step_is_made_ahead_is_raised_where_it_is_taken() -> None:
    def make(step: int) -> StepInputs:
        raise ValueError(f"step {step} is bad")

    feed = StepFeed(make, last_step=3, ahead=1)
    with pytest.raises(ValueError, match="step 1 is bad"):
        feed.take(1)
    feed.close()


def test_the_whole_loop_runs_with_either_average_and_either_loss(worker: Any, one_rank: None, tmp_path: Path) -> None:
    """chunked and plain agree to rounding, with the batches made ahead or when they are needed."""
    common = {"model": "tiny-llama", "global_batch_size": 8, "micro_batch_size": 3, "learning_rate": 2e-3}
    said = {}
    for name, more in {
        "chunked": {},
        "plain": {"cross_entropy": "plain", "prefetch_steps": 0},
        "micro": {"loss_average": "micro_batch"},
    }.items():
        train = {**common, "max_steps": 4, "max_length": 128, "dtype": "float32", **more}
        said[name] = worker.train_once(
            {"store": f"file://{tmp_path / name}", "attempt": 1, "train": train}, rank=0, world_size=1
        )
    losses = {name: [float.fromhex(loss) for loss in answer["losses"]] for name, answer in said.items()}
    assert losses["chunked"] == pytest.approx(losses["plain"], abs=1e-5)
    assert losses["micro"] != pytest.approx(losses["plain"], abs=1e-5)
    assert losses["micro"] == pytest.approx(losses["plain"], rel=0.1)
