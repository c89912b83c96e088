"""Compiled layers train like plain ones; a machine that cannot compile says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.spec import TrainSpec
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


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TrainingError, match=r"neither g\+\+ nor clang\+\+.*leave train\.compile out"):
        use_fast_kernels(torch.nn.Linear(2, 2), TrainSpec(model="tiny-llama", compile=True), device=torch.device("cpu"))
