"""Copying a state while training goes on: what may be copied later, who waits for it, and what watches over it.

Between two updates an optimizer's parameters and moments stay as they are, so they can be copied beside the next
forward and backward pass; only the next update has to wait for the copy. Source of the idea: J. Mohan, A. Phanishayee
and V. Chidambaram, "CheckFreq: Frequent, Fine-Grained DNN Checkpointing", FAST '21: snapshot and persist apart, the
snapshot beside the next iteration up to its weight update.

    later = owned_by([optimizer])             # memory that only this optimizer's step changes
    copy = LateCopy([move, ...])              # what lies there; everything else was copied already
    gate.hold(copy)                           # from here on every optimizer's step waits
    copy.run()                                # in another thread

Nothing has to be called by the training loop: the waiting is a hook that torch runs before each step of any optimizer.
"""

from __future__ import annotations

import threading
import time
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from checkpoints.errors import StateChanged
from checkpoints.torch_optimizer import unwrapped


class MemoryRanges:
    """The memory that some tensors lie in."""

    def __init__(self, tensors: Iterable[torch.Tensor] = ()) -> None:
        self._ranges = sorted(found for tensor in tensors if (found := _range_of(tensor)) is not None)
        self._starts = [start for start, _ in self._ranges]

    def hold(self, tensor: torch.Tensor) -> bool:
        """Whether all of a plain tensor lies inside one of them; False for one without elements."""
        found = _range_of(tensor)
        if found is None:
            return False
        place = bisect_right(self._starts, found[0]) - 1
        return place >= 0 and found[1] <= self._ranges[place][1]


def owned_by(optimizers: Iterable[torch.optim.Optimizer]) -> MemoryRanges:
    """Where the parameters and moments of `optimizers` lie: what nothing but their steps changes.

    One whose step runs no hooks of torch's, or that swaps its parameters between steps (`optimizer.eval()`, as
    schedule-free ones do), owns nothing here: what it has is copied at once. Wrapped ones (accelerate's) are fine.
    """
    return MemoryRanges(
        local
        for optimizer in optimizers
        if _can_be_held(optimizer)
        for tensor in _tensors_of(optimizer)
        if (local := _local(tensor)) is not None
    )


@dataclass(frozen=True)
class Move:
    """One tensor of a state on its way into a snapshot's buffer.

    `held` is the tensor as the state has it (a DTensor, say), `source` this rank's plain part of it.
    """

    name: str
    held: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor

    def make(self) -> None:
        """Copy; a copy from CUDA is only begun, on the current stream: LateCopy sees to its end. Nobody would see to
        that of one from elsewhere (MPS, XPU), so it is made as a whole.
        """
        with torch.no_grad():
            self.target.copy_(self.source, non_blocking=self.source.is_cuda)

    def version(self) -> tuple[int, int]:
        """Grows with every change in place that torch knows of."""
        return self.held._version, self.source._version


class LateCopy:
    """What of a snapshot is copied while training goes on. One thread calls `run`, others `wait`.

    Args:
        moves: what is still to be copied.
        begun: events behind copies that were only begun, by the GPU they run on; they end before `run` does.
    """

    def __init__(
        self, moves: Sequence[Move] = (), begun: Mapping[torch.device, torch.cuda.Event] | None = None
    ) -> None:
        self._moves: Sequence[tuple[Move, tuple[int, int]]] = [(move, move.version()) for move in moves]
        self._begun = dict(begun or {})
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._waiting_since: float | None = None
        self.waited_s = 0.0
        """How long training stood still for this copy; final when `run` has ended."""

    def run(self) -> None:
        """Copy; whoever waits goes on afterwards, whatever happened.

        Raises:
            StateChanged: what was being copied was changed by something else than an optimizer's step.
        """
        try:
            self._copy()
            changed = [move.name for move, version in self._moves if move.version() != version]
            if changed:
                raise StateChanged(changed)
        finally:
            with self._lock:
                if self._waiting_since is not None:
                    self.waited_s = time.monotonic() - self._waiting_since
                self._moves, self._begun = (), {}
                self._over.set()

    def wait(self) -> None:
        """Return when the copy has been made, or has failed."""
        with self._lock:
            if not self._over.is_set() and self._waiting_since is None:
                self._waiting_since = time.monotonic()
        self._over.wait()

    def _copy(self) -> None:
        on_gpu: dict[torch.device, list[Move]] = {device: [] for device in self._begun}
        for move, _ in self._moves:
            if move.source.is_cuda:
                on_gpu[move.source.device].append(move)
            else:
                move.make()
        for device, moves in on_gpu.items():
            # A new thread stands at the first GPU. Leaving a stream of another one goes back there and opens a context
            # on it, half a GiB of its memory for every rank of the machine (torch 2.13, cuda.StreamContext;
            # cudaSetDevice since CUDA 12). Leaving `device` opens none.
            with torch.cuda.device(device):
                side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
                side.wait_event(self._begun[device])  # behind all that was queued when the snapshot was begun
                with torch.cuda.stream(side):
                    for move in moves:
                        move.make()
                side.synchronize()


class StepGate:
    """Has every step of every torch optimizer of this process wait for the copy that is under way.

    For all of them and not for those alone whose memory is copied: two may own the same parameters.
    """

    def __init__(self) -> None:
        self._copy: LateCopy | None = None
        self._hook: Any = None

    def hold(self, copy: LateCopy) -> None:
        """Make steps wait for `copy`, which is running or has run."""
        self._copy = copy
        if self._hook is None:
            mine = weakref.ref(self)

            def wait(*_: Any) -> None:
                gate = mine()
                if gate is not None:
                    gate.wait()

            self._hook = register_optimizer_step_pre_hook(wait)

    def wait(self) -> None:
        """Return when the copy under way, if there is one, has been made."""
        if self._copy is not None:
            self._copy.wait()
            self._copy = None

    def close(self) -> None:
        """Wait, and let steps pass unasked from now on."""
        self.wait()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _can_be_held(optimizer: torch.optim.Optimizer) -> bool:
    real = unwrapped(optimizer)
    # torch marks the class of an optimizer that it has made to run hooks (Optimizer._patch_step_function).
    is_hooked = isinstance(real, torch.optim.Optimizer) and getattr(type(real).step, "hooked", False)
    return is_hooked and not callable(getattr(real, "eval", None))


def _tensors_of(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    for group in optimizer.param_groups:
        yield from group["params"]
    for kept in optimizer.state.values():
        yield from kept.values()


def _local(tensor: Any) -> torch.Tensor | None:
    """The plain tensor of this rank; None for what is none, or of a kind whose memory is nobody's to know."""
    with torch.no_grad():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local if type(local) in (torch.Tensor, torch.nn.Parameter) and not local.is_inference() else None


def _range_of(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Addresses of its first byte and behind its last; None for one without elements."""
    if not tensor.numel():
        return None
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()
