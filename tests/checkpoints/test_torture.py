"""Real writers killed at random moments and byte offsets; after each, nothing half is visible and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process


def _torture(uri: str, kills: int, seed: int, **options: Any) -> dict[str, Any]:
    program = Path(__file__).parent / "programs" / "torture.py"
    ended = subprocess.run(
        [sys.executable, str(program), uri, str(kills), str(seed), json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=590,
        cwd=Path(__file__).parents[2],
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_a_hundred_kills_lose_nothing_and_show_no_half(quick_folder: Path) -> None:
    found = _torture(str(quick_folder), 100, seed=7)
    assert found["kills"] == 100
    assert found["hits"].get("store", 0) > 10, "most of a writer's life is storing"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_kills_lose_nothing_and_show_no_half(quick_folder: Path) -> None:
    found = _torture(str(quick_folder), 1000, seed=1)
    assert sum(found["hits"].values()) == 1000
    assert {"claim", "read", "base", "store", "publish", "tidy"} <= set(found["hits"]), "every phase was hit"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_of_writers_to_s3_lose_nothing_and_show_no_half(s3_options: dict[str, str]) -> None:
    found = _torture("s3://bucket/torture", 60, seed=3, **s3_options)
    assert found["kills"] == 60
