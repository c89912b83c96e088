"""When the last row is written, a budget that does not pay for training ends the run before a machine trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.errors import BudgetExceeded
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from checkpoints.attempts import AttemptLog
from checkpoints.fence import Fence
from checkpoints.keys import CommitRef
from checkpoints.store import Store
from checkpoints.writer import CommitWriter
from cluster.event_reading import read_events
from cluster.events import EventWriter, iso_time, seconds_of, utc_now
from cluster.job_record import ESTIMATE_KEY
from cluster.node.attempt_context import AttemptContext, Interruption
from cluster.node.failures import describe_failure
from cluster.node.limits import put_limits
from cluster.node.training_budget import check_training_budget, expected_training_usd
from cluster.phase import PhaseMarker
from cluster.plan import Placement, Pricing
from cluster.recovery import StopReason

PLACE = Placement(
    infra="aws", region="us-east-1", zone=None, pricing=Pricing.SPOT, instance_type="m5.large",
    price_per_hour_usd=1.0, num_nodes=1,
)  # fmt: skip
STAGES = [{"name": "rows", "cost_usd": {"p50": 7.0}}, {"name": "training", "cost_usd": {"p10": 5.0, "p50": 6.0}}]
ESTIMATE = {"candidates": [{"stages": STAGES}]}


def written(tmp_path: Path, max_usd: float | None, *, estimate: Any = ESTIMATE) -> AttemptContext:
    """The first attempt, two hours old at a dollar an hour, whose rows cost the teacher three."""
    data = {"teacher": "offline", "num_rows": 8}
    job = JobSpec.model_validate(
        {"name": "budget", "data": data, "train": {"model": "tiny-llama"}, "compute": {"workers": 1},
         "limits": {"max_usd": max_usd}}
    )  # fmt: skip
    store = Store.open(f"file://{tmp_path}").child("run")
    log = AttemptLog(store, LAYOUT)
    began = iso_time(seconds_of(utc_now()) - 7200)
    log.claim(1, {"placement": PLACE.to_json(), "started_at": began})
    log.put_base(1, None)
    CommitWriter(store, LAYOUT, CommitRef("generate", 1, 1)).publish(meta={"teacher_usd": 3.0, "complete": True})
    if estimate is not None:
        store.put_once(ESTIMATE_KEY, estimate)
    return AttemptContext(
        run_id="run", attempt=1, job=job, world_size=1, layout=LAYOUT, store=store, store_uri=f"file://{tmp_path}",
        log=log, fence=Fence(log, 1), events=EventWriter(store, 1, "node"), marker=PhaseMarker(tmp_path),
        interruption=Interruption(), scratch=tmp_path,
    )  # fmt: skip


def test_what_is_left_has_to_pay_the_p50_of_training(tmp_path: Path) -> None:
    check_training_budget(written(tmp_path / "enough", 11.5))  # 3 + 2 are spent, and training is 6
    ctx = written(tmp_path / "short", 10.5)
    with pytest.raises(BudgetExceeded) as found:
        check_training_budget(ctx)
    words = str(found.value)
    assert "limits.max_usd is 10.50 USD, of which the teacher has taken 3.00 and machines 2.00" in words
    assert "expected to cost 6.00 (p50), and 5.50 are left" in words
    failure = describe_failure(found.value)
    assert (failure.reason, failure.exit_code, failure.retryable) == (StopReason.BUDGET, 4, False)
    ctx.events.close()
    (event,) = [one for one in read_events(ctx.store) if one.kind == "budget"]
    assert (event.fields["limit_usd"], event.fields["training_usd"]) == (10.5, 6.0)
    assert event.fields["left_usd"] == pytest.approx(5.5, abs=0.01)


def test_a_resume_with_more_is_what_counts(tmp_path: Path) -> None:
    ctx = written(tmp_path, 10.5)
    put_limits(ctx.store, max_usd=20.0, teacher_max_usd=None)
    check_training_budget(ctx)


@pytest.mark.parametrize(
    ("max_usd", "estimate"),
    [
        (None, ESTIMATE),
        (5.5, None),
        (5.5, {"candidates": []}),
        (5.5, {"candidates": [{"stages": [{"name": "training", "cost_usd": None}]}]}),
        (5.5, {"candidates": [{"stages": [{"name": "training", "cost_usd": {"p50": None}}]}]}),
        (5.5, {"candidates": [{"stages": [{"name": "training", "cost_usd": {"p50": 0.0}}]}]}),
    ],
)
def test_without_a_limit_or_a_price_of_training_nothing_is_refused(
    tmp_path: Path, max_usd: float | None, estimate: Any
) -> None:
    check_training_budget(written(tmp_path, max_usd, estimate=estimate))


def test_whoever_goes_on_with_rows_that_were_there_goes_on_in_spite_of_it(tmp_path: Path) -> None:
    ctx = written(tmp_path, 10.5)
    ctx.log.claim(2, {"placement": PLACE.to_json(), "started_at": utc_now()})
    ctx.log.put_base(2, CommitRef("generate", 1, 1))
    check_training_budget(replace(ctx, attempt=2))


def test_the_estimate_says_what_training_costs() -> None:
    assert expected_training_usd(ESTIMATE) == 6.0
    assert expected_training_usd(None) is None
