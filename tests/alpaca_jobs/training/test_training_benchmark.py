"""benchmarks/training.py: a lever that takes too long is left out in words, and takes its process with it."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest


@pytest.mark.process
def test_a_lever_has_so_many_seconds_and_no_more(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    import training  # type: ignore[import-not-found, unused-ignore]

    began = time.monotonic()
    assert training.in_limit(time.sleep, (120,), threads=1, seconds=1) == "it was not done after 1 s"
    assert training.in_limit(time.sleep, (120,), threads=1, seconds=0) == "no time was given to it"
    assert time.monotonic() - began < 60
    assert not multiprocessing.active_children()
