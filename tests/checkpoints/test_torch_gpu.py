"""What a save asks of torch where there is a GPU: its copies, its streams, its pinned memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoints.torch_overlap import LateCopy, Move
from checkpoints.torch_plan import plan_global, plan_local
from checkpoints.torch_snapshot import Snapshot, pack
from checkpoints.torch_state import flatten_state

MIB = 2**20


class _Cuda:
    """Where a thread stands, as torch 2.13 keeps it: `stream` is StreamContext, `device` leaves as MaybeExchangeDevice.

    To stand at a GPU opens a context on it (cudaSetDevice since CUDA 12); to be back at one without a context is only
    noted.
    """

    def __init__(self, *, trains_on: int) -> None:
        self.at, self.contexts = 0, {trains_on}
        self.streams: list[Any] = [None]

    def set_device(self, index: int) -> None:
        self.at = index
        self.contexts.add(index)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before = self.at
        self.set_device(device.index)
        yield
        self.at = before

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before = self.at
        self.set_device(stream.device.index)
        self.streams.append(stream)
        yield
        self.streams.pop()
        self.set_device(before)

    def make_stream(self, device: torch.device) -> Any:
        waits: list[str] = []
        return SimpleNamespace(
            device=device, waits=waits, wait_event=waits.append, synchronize=lambda: waits.append("end")
        )


def test_the_thread_behind_a_save_opens_no_context_on_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, device, copied_on = _Cuda(trains_on=3), torch.device("cuda:3"), list[Any]()
    monkeypatch.setattr(torch.cuda, "Stream", cuda.make_stream)
    monkeypatch.setattr(torch.cuda, "stream", cuda.stream)
    monkeypatch.setattr(torch.cuda, "device", cuda.device)
    move: Any = SimpleNamespace(
        name="w",
        source=SimpleNamespace(is_cuda=True, device=device),
        make=lambda: copied_on.append(cuda.streams[-1]),
        version=lambda: (0, 0),
    )
    event: Any = "begun"
    LateCopy([move], {device: event}).run()
    (side,) = copied_on
    assert (side.device, side.waits) == (device, ["begun", "end"])
    assert cuda.contexts == {3}


_ON_THE_SECOND_GPU = """
import torch
from checkpoints.keys import TRAIN_ONLY
from checkpoints.store import Store
from checkpoints.torch_bridge import Checkpointer

torch.cuda.set_device(1)
model = torch.nn.Linear(8, 8, device="cuda")
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(1, 8, device="cuda")).sum().backward()
optimizer.step()
made = Checkpointer(Store.open("memory://gpu"), TRAIN_ONLY, stage="train", attempt=1, fence=None)
state = {"model": model.state_dict(), "optim": optimizer.state_dict()}
made.save(1, state, meta={}, fingerprint="", optimizers=[optimizer])
made.wait()
assert torch._C._cuda_hasPrimaryContext(1) and not torch._C._cuda_hasPrimaryContext(0)
"""


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
def test_a_rank_on_the_second_gpu_takes_no_memory_of_the_first() -> None:
    subprocess.run([sys.executable, "-c", _ON_THE_SECOND_GPU], check=True, timeout=300)


def test_only_copies_from_cuda_are_left_to_end_by_themselves() -> None:
    """Of another device's (the CPU stands for MPS and XPU) no event says when it has ended."""
    begun: list[bool] = []

    class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.copy_.default:
                begun.append(bool(args[2]) if len(args) > 2 else (kwargs or {}).get("non_blocking", False))
            return func(*args, **(kwargs or {}))

    source, target = torch.ones(4), torch.zeros(4)
    with Copies():  # type: ignore[no-untyped-call]
        Move("w", source, source, target).make()
    assert begun == [False]
    assert torch.equal(source, target)


def test_pinned_memory_takes_little_more_than_the_state() -> None:
    asked: list[int] = []

    class Pinned(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            more = dict(kwargs or {})
            if func is torch.zeros and more.pop("pin_memory"):
                asked.append(args[0])
            return func(*args, **more)

    state = {str(number): torch.empty(15 * MIB // 4) for number in range(5)}  # 75 MiB: in one piece torch takes 128
    layout = plan_global([plan_local(flatten_state(state), is_coordinator=True)], 0)
    with Pinned():
        Snapshot(layout, pinned=True)
    assert sum(asked) == layout.size_bytes == 75 * MIB
    assert sum(1 << (size - 1).bit_length() for size in asked) <= 1.1 * layout.size_bytes


def test_objects_are_packed_into_pieces_that_fill_powers_of_two() -> None:
    sizes = {f"{number}": size * MIB for number, size in enumerate([16] * 500 + [43] * 30 + [500, 3, 1, 16, 7])}
    pieces = pack(sizes)
    assert sorted(name for piece in pieces for name in piece) == sorted(sizes)
    taken = [sum(sizes[name] for name in piece) for piece in pieces]
    assert sum(1 << (size - 1).bit_length() for size in taken) < 1.03 * sum(sizes.values())
    assert pack({}) == []
