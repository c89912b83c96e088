"""The estimate against what others have published: the bounds of the check, and the page that shows it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def bills(repo_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("published_bills", repo_root / "benchmarks" / "published_bills.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_published_throughput_predicts_every_bill_within_15_percent(bills: ModuleType) -> None:
    for row in bills.rows():
        if row.with_throughput is not None:
            assert row.with_throughput <= row.published * 1.15, row.what
            assert row.is_bound or row.with_throughput >= row.published * 0.85, row.what


def test_bounds_hold(bills: ModuleType) -> None:
    for row in bills.rows():
        if row.is_bound:
            assert row.with_prior <= row.published, row.what


def test_prior_is_the_mean_of_the_tuned_published_runs(bills: ModuleType) -> None:
    own = [
        bills.measured_mfu(
            num_parameters=size, tokens=1e12, seconds=hours * 3600, num_gpus=1, peak_flops=bills.A100_FLOPS
        )
        for size, hours in ((bills.P7, 82_432), (bills.P13, 135_168))
    ]
    tuned = [*own, bills.LLAMA_MFU, bills.VICUNA_MFU, bills.VICUNA_7B_MFU]
    assert [round(value, 2) for value in tuned] == [0.44, 0.51, 0.48, 0.29, 0.3]
    product = 1.0
    for value in tuned:
        product *= value
    assert product ** (1 / len(tuned)) == pytest.approx(bills.MFU_PRIOR, abs=0.015)


def test_page_shows_the_table_as_it_is(bills: ModuleType, repo_root: Path) -> None:
    """Refresh it with: python benchmarks/published_bills.py"""
    assert bills.table() in (repo_root / "docs" / "ESTIMATE.md").read_text(encoding="utf-8")
