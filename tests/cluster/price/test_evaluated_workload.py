"""Held-out rows are not trained on, and what their evaluation computes is counted."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca_jobs.spec_io import job_from_dict
from cluster.price.workload import workload_of


def _work(**train: Any) -> Any:
    job = job_from_dict(
        {
            "name": "j",
            "data": {"from": "rows.jsonl"},
            "train": {"model": "facebook/opt-125m", "global_batch_size": 10, "epochs": 2, **train},
            "compute": {"workers": 1, "infra": ["local"]},
        }
    )
    return workload_of(job, num_rows=1000, tokens_per_row=30.0)


def test_a_share_that_is_held_out_shortens_training_and_costs_forward_passes() -> None:
    plain, evaluated = _work(), _work(eval={"fraction": 0.1, "every_steps": 50})
    assert (plain.steps, plain.tokens) == (200, 60_000)
    assert evaluated.steps == 180
    # 180 steps: after 50, 100, 150 and the last; 100 rows each time
    assert evaluated.tokens == pytest.approx(54_000 + 4 * 100 * 30 / 3)
    assert _work(eval={"fraction": 0.1}).tokens == pytest.approx(54_000 + 2 * 100 * 30 / 3)


def test_rows_of_a_file_take_none_away() -> None:
    assert _work(eval={"file": "held-out.jsonl"}).tokens == 60_000
