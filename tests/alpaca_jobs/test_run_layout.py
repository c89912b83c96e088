"""Where a job's commits live."""

from __future__ import annotations

import pytest

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec_io import parse_job
from checkpoints.keys import CommitRef


@pytest.mark.parametrize(
    ("ref", "prefix"),
    [
        (CommitRef("generate", 12, 1), "data/part-000012/attempt-000001/"),
        (CommitRef("train", 400, 2), "checkpoints/step-00000400/attempt-000002/"),
        (CommitRef("export", 0, 3), "model/attempt-000003/"),
    ],
)
def test_commits_live_where_the_design_says(ref: CommitRef, prefix: str) -> None:
    assert LAYOUT.commit_prefix(ref) == prefix
    assert LAYOUT.parse_manifest_key(f"{prefix}manifest.json") == ref


def test_stages_of_a_job_are_the_stages_of_the_layout_in_order() -> None:
    text = "name: a\ndata: {teacher: offline}\ntrain: {model: tiny-llama}\ncompute: {workers: 1}\n"
    assert parse_job(text).stages == tuple(stage.name for stage in LAYOUT.stages)
