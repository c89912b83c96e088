"""`alpaca-jobs weights diff` and `weights recover` from the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.process

Cli = Callable[..., subprocess.CompletedProcess[str]]


def models(folder: Path) -> tuple[str, str]:
    for seed, name in enumerate(("raw", "tuned")):
        (folder / name).mkdir()
        torch.manual_seed(seed)
        save_file({"model.norm.weight": torch.randn(64)}, folder / name / "model.safetensors")
    return str(folder / "raw"), str(folder / "tuned")


def test_diff_and_recover_tell_what_they_did(run_cli: Cli, tmp_path: Path) -> None:
    raw, tuned = models(tmp_path)
    made = run_cli("weights", "diff", raw, tuned, str(tmp_path / "diff"), "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert (told["num_tensors"], told["num_elements"], told["padding"]) == (1, 64, "mean")
    back = run_cli("weights", "recover", raw, str(tmp_path / "diff"), str(tmp_path / "back"))
    assert back.returncode == 0, back.stderr
    assert back.stdout == f"{tmp_path / 'back'}\n"
    assert "the same, bit for bit" in back.stderr
    assert (tmp_path / "back" / "model.safetensors").read_bytes()[-256:] == (
        tmp_path / "tuned" / "model.safetensors"
    ).read_bytes()[-256:]


def test_a_wrong_base_is_wrong_input(run_cli: Cli, tmp_path: Path) -> None:
    raw, tuned = models(tmp_path)
    run_cli("weights", "diff", raw, tuned, str(tmp_path / "diff"))
    refused = run_cli("weights", "recover", tuned, str(tmp_path / "diff"), str(tmp_path / "back"), "--json")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert "is not the base" in refused.stderr
