"""docs/JOB.md is the spec as it is."""

from __future__ import annotations

from pathlib import Path

from alpaca_jobs.spec_doc import job_reference


def test_page_is_current(repo_root: Path) -> None:
    """Refresh it with: python -m alpaca_jobs.spec_doc > docs/JOB.md"""
    assert (repo_root / "docs" / "JOB.md").read_text(encoding="utf-8") == job_reference()


def test_page_says_values_bounds_and_defaults() -> None:
    page = job_reference()
    for line in (
        "| `learning_rate` | number, more than 0 | `2e-05` | Peak learning rate. |",
        "| `exactness` | `rows`, `bits` | `rows` |",
        "| `keep` | whole number, at least 2 | `2` |",
        "| `similarity_threshold` | number, at least 0 and at most 1 | `0.7` |",
        "| `name` | text | required |",
        "## data.teacher",
        "## compute.spot",
    ):
        assert line in page
    assert page.count("## compute.spot") == 1
    assert "It says" not in page
    assert "|  |" not in page, "every key has its meaning"
