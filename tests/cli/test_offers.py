"""`alpaca-jobs offers` as a user meets it: tables, JSON, refusals with exit code 2, an answer in time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def offers(run_cli: Cli, tmp_path: Path) -> Cli:
    """The command with no catalogs of the user's."""
    return lambda *args: run_cli("offers", *args, env={**os.environ, "HOME": str(tmp_path)})


def test_offers_are_a_table_with_the_source_of_every_price(offers: Cli) -> None:
    shown = offers("--gpus", "A100-80GB:8", "--max", "3")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("A100-80GB:8)") == 3
    assert "and 104 more: --max 107" in shown.stdout
    assert "lambda: 17 spot rows without a price: the catalog lists no spot price." in shown.stdout
    assert "from the snapshot that ships with alpaca-jobs (undated)" in shown.stdout


def test_json_has_offers_and_sources_and_nothing_else(offers: Cli) -> None:
    found = json.loads(offers("--gpus", "H100:8", "--infra", "azure", "--json").stdout)
    assert [one["price_per_hour_usd"] for one in found["offers"]] == [98.32, 98.32, 127.816, None, None, None]
    assert {one["gpus"] for one in found["offers"]} == {"H100:8"}
    assert found["hidden"] == 0
    assert [(one["infra"], one["dated"]) for one in found["sources"]] == [("azure", None)]


def test_without_gpus_every_kind_is_listed(offers: Cli) -> None:
    shown = offers("--infra", "lambda", "--on-demand").stdout
    assert "A100-80GB:8" in shown
    assert "alpaca-jobs offers --gpus NAME:COUNT" in shown


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--gpus", "A100-80G:8"), "Did you mean A100-80GB:8?"),
        (("--infra", "ibm"), "there are price lists for aws"),
        (("--region", "mars"), "--region is mars"),
    ],
)
def test_what_is_not_there_is_wrong_input(offers: Cli, args: tuple[str, ...], said: str) -> None:
    refused = offers(*args)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert said in refused.stderr


def test_offers_load_nothing_heavy() -> None:
    program = (
        "import sys, cli.main\n"
        "try: cli.main.app(['offers', '--gpus', 'L4:1', '--json'])\n"
        "except SystemExit: pass\n"
        "print('LOADED', [m for m in ('torch', 'ray', 'sky', 'pandas', 'fsspec', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "LOADED []"


def test_quota_says_what_a_new_account_has_where_nobody_is_signed_in(run_cli: Cli, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environ |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    asked = ("offers", "--gpus", "A100-80GB:8", "--infra", "aws", "--spot", "--max", "2", "--quota")
    shown = run_cli(*asked, env=environ)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("no: 0 vCPUs in a new account") == 2
    assert "What a new account has is shown instead of yours: AWS wants credentials" in shown.stderr
    found = json.loads(run_cli(*asked, "--json", env=environ).stdout)
    assert [one["quota"]["source"] for one in found["offers"]] == ["new account"] * 2
