"""The sampler: every row exactly once per epoch, the same batches on any world size, ranks balanced by tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca_jobs.training.batching import (
    epoch_order,
    global_batch,
    plan_step,
    rows_seen,
    spread,
    steps_per_epoch,
    total_steps,
)

lengths_lists = st.lists(st.integers(1, 600), min_size=1, max_size=60)
sizes = st.integers(1, 20)


@given(num_rows=st.integers(1, 200), batch=st.integers(1, 64), seed=st.integers(0, 2**32), epoch=st.integers(0, 3))
def test_an_epoch_shows_every_row_exactly_once(num_rows: int, batch: int, seed: int, epoch: int) -> None:
    per_epoch = steps_per_epoch(num_rows, batch)
    shown: list[int] = []
    for step in range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1):
        found_epoch, rows = global_batch(step, seed=seed, num_rows=num_rows, global_batch_size=batch)
        assert found_epoch == epoch
        assert len(rows) == batch or step == (epoch + 1) * per_epoch
        shown += rows
    assert sorted(shown) == list(range(num_rows))


@given(lengths=lengths_lists, step=st.integers(1, 30), batch=sizes, micro=sizes, world=st.integers(1, 9))
def test_a_plan_splits_the_batch_without_loss_or_repetition(
    lengths: list[int], step: int, batch: int, micro: int, world: int
) -> None:
    plan = plan_step(
        step, seed=7, lengths=lengths, global_batch_size=batch, micro_batch_size=micro, world_size=world
    )  # fmt: skip
    split = [row for rank in plan.ranks for part in rank for row in part]
    assert sorted(split) == sorted(plan.rows)
    assert len(plan.ranks) == world
    assert len({len(rank) for rank in plan.ranks}) == 1
    assert all(len(part) <= micro for rank in plan.ranks for part in rank)


@given(lengths=lengths_lists, step=st.integers(1, 30), batch=sizes, worlds=st.tuples(st.integers(1, 9), sizes))
def test_the_batch_is_the_same_on_any_world_size_and_micro_batch(
    lengths: list[int], step: int, batch: int, worlds: tuple[int, int]
) -> None:
    def rows(world: int, micro: int) -> tuple[int, ...]:
        plan = plan_step(
            step, seed=3, lengths=lengths, global_batch_size=batch, micro_batch_size=micro, world_size=world
        )  # fmt: skip
        return plan.rows

    assert rows(1, batch) == rows(*worlds)


@given(lengths=lengths_lists, world=st.integers(1, 9))
def test_no_rank_carries_more_than_the_longest_row_beyond_the_lightest(lengths: list[int], world: int) -> None:
    plan = plan_step(
        1, seed=0, lengths=lengths, global_batch_size=len(lengths), micro_batch_size=4, world_size=world
    )  # fmt: skip
    loads = [sum(lengths[row] for part in rank for row in part) for rank in plan.ranks]
    assert max(loads) - min(loads) <= max(lengths)


# Rows of Alpaca's 52,002 by tokens under LLaMA's tokenizer, template and EOS included, in bins 12.6 wide from 42 on.
# Source: a published histogram, read off within a few percent (2026-11).
ALPACA_COUNTS = [
    900, 4250, 6100, 7550, 5500, 3980, 3950, 3480, 3400, 2820, 2180, 1820, 1330, 950, 820, 550, 430, 330, 270, 220, 200,
    150, 140, 100, 90, 80, 70, 60, 55, 50, 45, 40, 35, 30, 25, 25, 20, 20, 15, 15,
]  # fmt: skip


@pytest.mark.parametrize("micro_batch_size", [4, 16])
def test_alpaca_lengths_waste_under_two_percent_on_eight_ranks(micro_batch_size: int) -> None:
    counts, generator = np.asarray(ALPACA_COUNTS, dtype=float), np.random.default_rng(0)
    bins = generator.choice(len(counts), size=8192, p=counts / counts.sum())
    lengths = np.minimum((42 + 12.6 * (bins + generator.random(8192))).astype(int), 512)
    waste = []
    for step in range(1, 65):
        plan = plan_step(
            step, seed=0, lengths=lengths, global_batch_size=128, micro_batch_size=micro_batch_size, world_size=8
        )  # fmt: skip
        loads = [sum(int(lengths[row]) for part in rank for row in part) for rank in plan.ranks]
        waste.append(1 - sum(loads) / (max(loads) * 8))
    assert np.mean(waste) < 0.02


def test_spread_goes_longest_first_and_breaks_ties_by_index() -> None:
    tokens = {0: 5, 1: 9, 2: 5, 3: 5}
    assert spread([0, 1, 2, 3], tokens, num_bins=2, max_rows=4) == [(1, 3), (0, 2)]
    assert spread([0, 1, 2], tokens, num_bins=4, max_rows=1) == [(1,), (0,), (2,), ()]


def test_a_bin_that_is_full_gets_no_more_rows() -> None:
    assert spread([0, 1, 2], {0: 100, 1: 1, 2: 1}, num_bins=2, max_rows=2) == [(0,), (1, 2)]
    with pytest.raises(ValueError, match="3 rows do not fit into 1 bins of 2"):
        spread([0, 1, 2], {0: 1, 1: 1, 2: 1}, num_bins=1, max_rows=2)


def test_more_ranks_than_rows_leave_empty_micro_batches() -> None:
    plan = plan_step(1, seed=0, lengths=[3, 4], global_batch_size=2, micro_batch_size=1, world_size=4)
    assert sorted(len(part) for rank in plan.ranks for part in rank) == [0, 0, 1, 1]


def test_epochs_differ_and_the_order_is_the_recorded_one() -> None:
    # A changed generator would change every resumed run's data: this is the order of numpy's PCG64 for (42, 0).
    assert epoch_order(42, 0, 10).tolist() == ORDER_42_0
    assert epoch_order(42, 0, 100).tolist() != epoch_order(42, 1, 100).tolist()
    assert epoch_order(42, 0, 100).tolist() != epoch_order(43, 0, 100).tolist()


ORDER_42_0 = [5, 6, 0, 7, 3, 2, 4, 9, 1, 8]


@given(num_rows=st.integers(1, 300), batch=st.integers(1, 64), epochs=st.floats(0.1, 4), cap=st.none() | sizes)
@settings(max_examples=50)
def test_total_steps_rounds_epochs_up_and_keeps_the_cap(
    num_rows: int, batch: int, epochs: float, cap: int | None
) -> None:
    steps = total_steps(num_rows, global_batch_size=batch, epochs=epochs, max_steps=cap)
    assert steps >= 1
    if cap is None:
        assert steps - 1 < epochs * steps_per_epoch(num_rows, batch) <= steps + 1e-9
    else:
        assert steps <= cap


def test_alpaca_takes_407_steps_an_epoch() -> None:
    assert total_steps(52_002, global_batch_size=128, epochs=3, max_steps=None) == 1221
    assert rows_seen(407, 52_002, 128) == 52_002
    assert rows_seen(408, 52_002, 128) == 52_130
    assert rows_seen(0, 52_002, 128) == 0


def test_steps_count_from_one() -> None:
    with pytest.raises(ValueError, match="steps count from 1"):
        global_batch(0, seed=0, num_rows=3, global_batch_size=2)
