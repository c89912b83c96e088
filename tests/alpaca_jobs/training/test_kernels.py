"""Compiled layers train like plain ones; a machine that cannot compile says so; a GPU's norms are fused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training import kernels
from alpaca_jobs.training.kernels import use_fast_kernels

TRAIN = {
    "model": "tiny-llama", "global_batch_size": 8, "micro_batch_size": 3, "learning_rate": 2e-3, "max_steps": 3,
    "max_length": 128, "dtype": "float32",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_compiled_layers_give_the_losses_of_plain_ones(
    worker: Any, one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))

    def losses(**more: Any) -> list[float]:
        run = {"store": f"file://{tmp_path / str(more)}", "attempt": 1, "train": {**TRAIN, **more}}
        answer = worker.train_once(run, rank=0, world_size=1)
        return [float.fromhex(loss) for loss in answer["losses"]]

    torch._dynamo.reset()
    compiled = losses(compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it was not left out in silence
    assert compiled == pytest.approx(losses(), abs=1e-5)


@pytest.fixture
def float32_as_before() -> Iterator[None]:
    """How products in float32 are computed is a setting of the process."""
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize(
    ("device", "installed", "is_enough"),
    [("cpu", "g++", True), ("cpu", "gcc", False), ("cuda", "gcc", True), ("cuda", "clang", True), ("cuda", "", False)],
)
def test_a_machine_without_a_compiler_says_so(
    device: str, installed: str, is_enough: bool, float32_as_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == installed else None)
    monkeypatch.delenv("CC", raising=False)

    def use() -> None:
        use_fast_kernels(nn.Linear(2, 2), TrainSpec(model="m", compile=True), device=torch.device(device))

    if is_enough:
        use()
        return
    names = r"g\+\+ nor clang\+\+" if device == "cpu" else "gcc nor clang"
    with pytest.raises(TrainingError, match=rf"neither {names}.*leave train\.compile out"):
        use()
    if device == "cuda":
        monkeypatch.setenv("CC", "/opt/cc")
        use()


@pytest.mark.parametrize(
    ("device", "keys", "is_fused"),
    [
        ("cuda", {}, True),
        ("cpu", {}, False),
        ("cuda", {"exactness": "bits"}, False),
        ("cuda", {"compile": True}, False),
    ],
)
def test_a_gpus_norms_are_fused_unless_bits_are_promised_or_a_compiler_fuses(
    device: str, keys: dict[str, Any], is_fused: bool, float32_as_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused: list[Any] = []
    monkeypatch.setattr(kernels, "fuse_norms", fused.append)
    use_fast_kernels(nn.Linear(2, 2), TrainSpec(model="m", **keys), device=torch.device(device))
    assert bool(fused) is is_fused
