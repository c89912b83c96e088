"""Compiled layers train like plain ones; a machine that cannot compile says so; a GPU's norms are fused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training import attention, kernels
from alpaca_jobs.training.collate import Layout, MicroBatch, lay_out, target_loss
from alpaca_jobs.training.kernels import use_fast_kernels
from alpaca_jobs.training.loss import attach_loss_head
from alpaca_jobs.training.model import _for_training

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
        ("cuda", {"exactness": "bits"}, True),
        ("cuda", {"compile": True}, False),
    ],
)
def test_a_gpus_norms_are_fused_unless_a_compiler_does_it(
    device: str, keys: dict[str, Any], is_fused: bool, float32_as_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused: list[Any] = []
    monkeypatch.setattr(kernels, "fuse_norms", fused.append)
    use_fast_kernels(nn.Linear(2, 2), TrainSpec(model="m", **keys), device=torch.device(device))
    assert bool(fused) is is_fused


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("Llama", {"num_key_value_heads": 4}),
        ("Llama", {"num_key_value_heads": 2}),
        ("Mistral", {"num_key_value_heads": 4, "sliding_window": 16}),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, "selective"])
def test_on_the_path_of_a_gpu_a_layer_is_compiled_whole_and_once_for_batches_of_all_shapes(
    family: str, more: dict[str, Any], checkpointing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, with everything but the last step to a GPU's code: a break would cost the fusion, and a
    compilation for each shape half a minute of every step.
    """
    import transformers
    from torch._dynamo.testing import CompileCounterWithBackend

    meta = torch.device("meta")
    shape = {"vocab_size": 60, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    config = getattr(transformers, f"{family}Config")(**shape, num_attention_heads=4, **more)
    with meta:
        model = getattr(transformers, f"{family}ForCausalLM")(config).to(torch.bfloat16)
    monkeypatch.setattr(attention, "why_no_flash", lambda query, dropout: None)
    assert attention.takes_groups()  # as flash_check.py does before anything is compiled
    attention.use_rows_attention(model)
    _for_training(model, TrainSpec(model="m", gradient_checkpointing=checkpointing))
    head = attach_loss_head(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    counted = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=counted))
    assert kernels.compile_layers(model) == 3
    frames = []
    for lengths in ((9, 3, 5), (12, 4, 7, 1), (31, 2), (40,), (3, 4, 5, 6, 7, 8)):
        rows = tuple(torch.zeros(length, dtype=torch.int64) for length in lengths)
        batch = MicroBatch(rows, tuple(torch.arange(length - 1) for length in lengths))
        target_loss(model, lay_out(batch, layout=Layout.ROWS, pad_id=0).to(meta), head=head).backward()
        frames.append(counted.frame_count)
    assert frames == [2] * 5, "the first layer, whose input is a leaf's, and the others"
    assert not torch._dynamo.utils.counters["graph_break"]
