"""Where SkyPilot's controller lives, by its settings; it is priced where it is a machine of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from alpaca_jobs.examples import example_text
from alpaca_jobs.spec_io import parse_job
from cluster.launch.estimating import estimate_plan, gather_facts, plan_with
from cluster.launch.planner import offers_for
from cluster.price.controller import is_consolidated


@pytest.mark.parametrize(
    ("text", "is_so"),
    [
        ("jobs: {controller: {consolidation_mode: true}}", True),
        ("jobs: {controller: {consolidation_mode: false}}", False),
        ("jobs: nothing", False),
        ("{", False),
    ],
)
def test_where_the_controller_lives_is_read_from_skypilots_settings(tmp_path: Path, text: str, is_so: bool) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert is_consolidated(tmp_path / "config.yaml") is is_so
    assert is_consolidated(environ={"SKYPILOT_GLOBAL_CONFIG": str(tmp_path / "config.yaml")}) is is_so
    assert not is_consolidated(tmp_path / "missing")


@pytest.mark.parametrize("in_server", [False, True])
def test_a_controller_in_the_api_server_is_not_priced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_server: bool
) -> None:
    settings = tmp_path / "config.yaml"
    settings.write_text(f"jobs: {{controller: {{consolidation_mode: {str(in_server).lower()}}}}}")
    monkeypatch.setenv("SKYPILOT_GLOBAL_CONFIG", str(settings))
    job = parse_job(example_text("alpaca-7b"))
    facts, offers = gather_facts(job), offers_for(job)
    found = estimate_plan(plan_with(job, facts, offers), facts, offers)
    assert ("controller" in found.candidates[0].parts_usd) is not in_server
    assert ("controller" in {one.name for one in found.factors}) is not in_server
    assert not any("controller" in words for words in found.unpriced)
