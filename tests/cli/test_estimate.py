"""`alpaca-jobs estimate`, and the estimate in `validate` and `launch`: what a user sees, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.errors import SpecError
from alpaca_jobs.examples import example_text
from alpaca_jobs.spec_io import change_job, parse_job, render_job
from cli import plan_view, starting

pytestmark = pytest.mark.process

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(run_cli: Cli, tmp_path: Path) -> Cli:
    """The command in a folder of its own, with no catalogs of the user's."""

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        home = {"HOME": str(tmp_path / "home"), "ALPACA_JOBS_HOME": str(tmp_path / "alpaca-jobs-home")}
        return run_cli(*args, env={**os.environ, **home}, cwd=tmp_path)

    return run


@pytest.fixture
def job_file(tmp_path: Path) -> Callable[..., str]:
    """Write an example, changed, and return its path."""

    def write(name: str = "alpaca-7b", **changes: Any) -> str:
        job = change_job(parse_job(example_text(name)), {k.replace("__", "."): v for k, v in changes.items()})
        path = tmp_path / "job.yaml"
        path.write_text(render_job(job), encoding="utf-8")
        return str(path)

    return write


def test_estimate_shows_places_parts_and_factors(cli: Cli, job_file: Callable[..., str]) -> None:
    shown = cli("estimate", job_file())
    assert shown.returncode == 0, shown.stderr
    for part in (
        "Estimate of alpaca-7b, the whole job", "cost p10", "instead", "on_demand", "controller", "generation machine",
        "Its parts, one after the other",
        "6 x 6.74 B parameters x 20 M tokens", "MFU", "prior: published runs that were tuned", "AWS V100 traces",
    ):  # fmt: skip
        assert part in shown.stdout


def test_json_is_the_same_for_the_same_seed(cli: Cli, job_file: Callable[..., str]) -> None:
    path = job_file()
    first, again, other = (cli("estimate", path, "--json", *more) for more in ((), (), ("--seed", "7")))
    assert first.stdout == again.stdout != other.stdout
    found = json.loads(first.stdout)
    best = found["candidates"][0]
    assert best["cost_usd"]["p10"] <= best["cost_usd"]["p50"] <= best["cost_usd"]["p90"]
    assert sum(best["parts_usd"].values()) > 0
    assert {"MFU", "peak of a GPU", "preemptions", "set-up"} <= {one["name"] for one in found["factors"]}
    assert found["on_demand"]["placement"]["pricing"] == "on_demand"


def test_infra_of_the_command_line_wins(cli: Cli, job_file: Callable[..., str]) -> None:
    found = json.loads(cli("estimate", job_file(), "--infra", "azure", "--json").stdout)
    assert {one["placement"]["infra"] for one in found["candidates"]} == {"azure"}


def test_auto_picks_a_shape_and_says_by_what(cli: Cli, job_file: Callable[..., str]) -> None:
    shown = cli("estimate", job_file(compute__gpus="auto")).stdout
    assert "gpus: auto took " in shown
    assert "expected to finish the training for least, set-up counted" in shown


def test_rows_of_a_file_are_counted_and_unknown_models_are_asked_about(
    cli: Cli, job_file: Callable[..., str], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": "x" * 40, "input": "", "output": "y" * 400}] * 500), encoding="utf-8")
    path = job_file(data={"from": str(rows)}, train__model="my/model")
    refused = cli("estimate", path)
    assert refused.returncode == 2
    assert "The size of my/model is not known here" in refused.stderr
    found = json.loads(cli("estimate", path, "--parameters", "7e9", "--json").stdout)
    tokens = next(one for one in found["factors"] if one["name"] == "training tokens")
    assert 3 * 500 * 130 < tokens["value"] < 3 * 500 * 170
    assert "bytes of rows.json / 4 (prior)" in tokens["source"]
    fewer = json.loads(cli("estimate", path, "--parameters", "7e9", "--rows", "100", "--json").stdout)
    assert fewer["candidates"][0]["hours"]["p50"] < found["candidates"][0]["hours"]["p50"]


def test_local_job_costs_nothing_and_its_time_is_known_after_a_first_run(quick: Any) -> None:
    job = quick.job()
    before = quick("estimate", job)
    assert "known after a first run on such a machine" in before.stdout
    done = quick("launch", job, "--yes")
    assert done.returncode == 0, done.stderr
    run_id = json.loads(quick("runs", "--json").stdout)[0]["run_id"]
    found = json.loads(quick("estimate", job, "--json").stdout)
    assert found["candidates"][0]["cost_usd"] == {"p10": 0.0, "p50": 0.0, "p90": 0.0}
    assert found["candidates"][0]["hours"]["p50"] > 0
    assert {one["source"] for one in found["factors"] if one["name"] == "training time"} == {f"measured: {run_id}"}
    alone = json.loads(quick("estimate", job, "--no-history", "--json").stdout)
    assert alone["candidates"][0]["hours"] is None


def test_store_that_cannot_be_read_leaves_the_priors_and_is_said(quick: Any) -> None:
    quick.home.remember_store("memory://gone/away")
    quick.home.remember_store("nonsense://x")
    shown = quick("estimate", quick.job())
    assert shown.returncode == 0
    assert "Nothing is learned from the runs in nonsense://x" in shown.stderr


def test_validate_plans_and_shows_the_first_place_and_the_estimate(cli: Cli, job_file: Callable[..., str]) -> None:
    shown = cli("validate", job_file()).stdout
    assert "p4de.24xlarge (spot) in aws/" in shown
    assert "p50 $" in shown
    found = json.loads(cli("validate", job_file(), "--json").stdout)
    assert found["ok"] is True
    assert found["first_candidate"]["gpus"] == "A100-80GB:8"
    assert found["estimate"]["cost_usd"]["p50"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compute__gpus": "A100-80G:8"}, "Did you mean A100-80GB:8?"),
        ({"compute__gpus": "L4:1"}, "does not fit"),
        ({"compute__regions": ["us-east9"]}, "Did you mean us-east5?"),
        ({"compute__infra": ["lambda"]}, "compute.spot allows only spot machines"),
    ],
)
def test_validate_refuses_what_no_machine_could_run(
    cli: Cli, job_file: Callable[..., str], changes: dict[str, Any], said: str
) -> None:
    refused = cli("validate", job_file(**changes))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert said in refused.stderr


def test_plan_before_a_launch_shows_the_price_of_the_whole_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    job = change_job(parse_job(example_text("alpaca-7b")), {"limits.max_usd": 1, "limits.teacher_max_usd": 1})
    priced = starting.price(job, contact=False)
    summary, _ = plan_view.plan_grids(priced.plan, priced)
    (told,) = (row[1] for row in summary.rows if row[0] == "estimate")
    assert told.startswith("p50 $")
    assert ", p90 $" in told
    assert ("", "limits.max_usd would stop it in 100% of the plays.") in summary.rows
    assert any("limits.teacher_max_usd, $1.00, is below the $" in told for _, told in summary.rows)


def test_a_plan_says_that_training_would_wait_for_its_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    def told(interval: int | str) -> list[str]:
        job = change_job(parse_job(example_text("alpaca-7b")), {"checkpoints.interval_steps": interval})
        priced = starting.price(job, contact=False)
        return [text for _, text in plan_view.plan_grids(priced.plan, priced)[0].rows if "wait" in text]

    (line,) = told(50)
    assert line.startswith("Training would wait 51 min 12 s for saves: checkpoints.interval_steps is 50, 33 s of ")
    assert told("auto") == []


def test_launch_shows_an_estimate_where_there_is_a_bill(cli: Cli, job_file: Callable[..., str]) -> None:
    assert "after a first run" not in cli("launch", job_file("demo"), "--dry-run").stdout
    prices = {"price_per_million_input_usd": 1, "price_per_million_output_usd": 1}
    paid = job_file("demo", data__teacher={"model": "m", "base_url": "http://127.0.0.1:1/v1", **prices})
    assert "after a first run" in cli("launch", paid, "--dry-run").stdout


def test_an_unknown_teacher_price_is_said_and_no_limit_that_cannot_be_kept_is_taken(
    cli: Cli, job_file: Callable[..., str]
) -> None:
    unknown = {"model": "m", "base_url": "http://127.0.0.1:1/v1"}
    for command in (["validate"], ["launch", "--dry-run"]):
        shown = cli(*command, job_file("demo", data__teacher=unknown)).stdout
        assert "without the teacher, whose price is not known" in " ".join(shown.split())
    with pytest.raises(SpecError, match=r"limits\.teacher_max_usd is 5, but what m costs is not known"):
        job_file("demo", data__teacher=unknown, limits__teacher_max_usd=5)


def test_generate_asks_for_the_price_of_the_rows(cli: Cli, job_file: Callable[..., str]) -> None:
    prices = {"price_per_million_input_usd": 1, "price_per_million_output_usd": 1}
    paid = job_file("demo", data__teacher={"model": "m", "base_url": "http://127.0.0.1:1/v1", **prices})
    refused = cli("generate", paid, "--out", "new.jsonl")
    assert refused.returncode == 2  # nobody is there to agree
    assert "after a first run" in " ".join(refused.stderr.split())


def test_estimate_loads_nothing_heavy(job_file: Callable[..., str]) -> None:
    program = (
        "import sys, cli.main\n"
        f"try: cli.main.app(['estimate', {job_file()!r}, '--json'])\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'ray', 'sky', 'pandas', 'fsspec', 's3fs', 'openai', 'transformers')\n"
        "print('LOADED', [m for m in heavy if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "LOADED []"


def test_rows_in_a_file_that_is_not_here_are_said_to_be_missing_not_uncounted(
    cli: Cli, job_file: Callable[..., str]
) -> None:
    asked = cli("estimate", job_file("alpaca-lora", data__from="nowhere.json"))
    assert (asked.returncode, asked.stdout) == (2, "")
    assert "nowhere.json, but no such file is on this machine, so its rows cannot be counted" in asked.stderr
    assert cli("estimate", job_file("alpaca-lora"), "--rows", "100", "--row-tokens", "50").returncode == 0
