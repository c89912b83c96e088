"""A preview asks at once, so it pays the full price, whatever the job says about batches."""

from __future__ import annotations

import pytest

from alpaca_jobs.errors import BudgetExceeded
from alpaca_jobs.generation.recipe import make_recipe
from alpaca_jobs.generation.seeds import load_seed_tasks
from alpaca_jobs.spec import JobSpec
from cluster.launch.preview import preview_rows
from cluster.node.ledger import worst_case_usd


def job(*, batch_api: bool, limit: float = 1.0) -> JobSpec:
    teacher = {
        "model": "gpt-4o-mini",
        "base_url": "http://127.0.0.1:9/v1",
        "price_per_million_input_usd": 1,
        "price_per_million_output_usd": 1,
        "batch_api": batch_api,
        "api_key_env": None,
    }
    data = {"recipe": "alpaca", "num_rows": 5, "num_actors": 1, "concurrency": 1, "teacher": teacher}
    rest = {"train": {"recipe": "alpaca", "model": "tiny-llama"}, "compute": {"workers": 2}}
    limits = {"teacher_max_usd": limit}
    return JobSpec.model_validate({"name": "look", "store": "memory://look", "data": data, "limits": limits, **rest})


def test_the_budget_of_a_preview_counts_the_full_price_in_a_job_for_batches() -> None:
    direct = job(batch_api=False)
    request = make_recipe(direct.data, load_seed_tasks("builtin"), (), ()).request(1)
    assert request is not None
    full = worst_case_usd(request, direct.data.teacher)
    assert full is not None
    assert worst_case_usd(request, job(batch_api=True).data.teacher) == pytest.approx(full / 2)
    for batch_api in (False, True):
        with pytest.raises(BudgetExceeded, match=r"above limits\.teacher_max_usd"):
            preview_rows(job(batch_api=batch_api, limit=0.75 * full), 1)
