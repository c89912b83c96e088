"""One rank's part of what benchmarks/checkpoint.py measures: a small real training, and the ways to save its state."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

WORLD = 2
TENSORS = 48
WIDTH = 1024
TOKENS = 128
"""Rows of a step's batch: fewer than one sequence of an instruction, so steps here are short beside real ones."""
MIB = 2**20
KEPT = 2  # older saves that stay, by default

Found = dict[str, list[float]]


class Bench:
    """A model of TENSORS / 3 matrices with AdamW's moments, sharded as FSDP2 shards them, and a store to save it to."""

    def __init__(self, uri: str, options: dict[str, str], megabytes: int) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Shard

        from checkpoints.store import Store
        from checkpoints.torch_job import SAVE_THREADS
        from checkpoints.torch_load import LOAD_THREADS
        from checkpoints.torch_optimizer import make_moments

        self.torch, self.dist = torch, dist
        self.rank = dist.get_rank()
        self.uri, self.options, self.threads = uri, options, (SAVE_THREADS, LOAD_THREADS)
        self.store = Store.open(uri, storage_options=options)
        self.is_file = uri.startswith("/")
        mesh = init_device_mesh("cpu", (WORLD,))
        rows = megabytes * MIB // (TENSORS * WIDTH * 4)
        torch.manual_seed(self.rank)
        self.weights = [torch.nn.Parameter(torch.randn(rows, WIDTH) / 32) for _ in range(TENSORS // 3)]
        self.batch = torch.randn(TOKENS, WIDTH)
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4)
        make_moments(self.optimizer)
        self.update_began = 0.0
        self.optimizer.register_step_pre_hook(self._note_update)  # torch runs it after the hooks of all optimizers
        kinds: dict[str, Callable[[Any], Any]] = {
            "weight": lambda weight: weight.detach(),
            "exp_avg": lambda weight: self.optimizer.state[weight]["exp_avg"],
            "exp_avg_sq": lambda weight: self.optimizer.state[weight]["exp_avg_sq"],
        }
        self.state = {
            f"{kind}.{number}": DTensor.from_local(part(weight), mesh, [Shard(0)])
            for kind, part in kinds.items()
            for number, weight in enumerate(self.weights)
        }
        self.bytes = sum(tensor.to_local().nbytes for tensor in self.state.values())
        self.group = dist.new_group(backend="gloo")
        self.train()  # gradients have their memory from here on, and are no copy of the state

    def _note_update(self, *_: Any) -> None:
        self.update_began = time.perf_counter()

    def train(self) -> tuple[float, float]:
        """A step, which changes every tensor: forward, backward, update. How long it took without waiting before the
        update, and how long it waited there; seconds, of the slower rank each."""
        self.dist.barrier()
        started = time.perf_counter()
        hidden = self.batch
        for weight in self.weights:
            hidden = self.torch.tanh(hidden @ weight.t() @ weight)
        hidden.square().mean().backward()
        reached = time.perf_counter()
        self.optimizer.step()
        waited_s = self.update_began - reached
        self.optimizer.zero_grad(set_to_none=False)
        return self.slowest(time.perf_counter() - started - waited_s), self.slowest(waited_s)

    def slowest(self, seconds: float) -> float:
        mine = self.torch.tensor([seconds], dtype=self.torch.float64)
        self.dist.all_reduce(mine, op=self.dist.ReduceOp.MAX)
        return float(mine)

    def timed(self, act: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds until the slower rank is through, and the value."""
        self.dist.barrier()
        started = time.perf_counter()
        value = act()
        return self.slowest(time.perf_counter() - started), value

    def ours(self, repeats: int, raw: RawObjects) -> Found:
        """Saves with nothing beside them, for how fast they store; then saves beside a step, for how long it stands
        still: in `save` and before the update; then restores. Raw puts and gets take turns with what they are compared
        with: who comes later finds a server with warmer memory."""
        from checkpoints.attempts import AttemptLog
        from checkpoints.fence import Fence
        from checkpoints.keys import TRAIN_ONLY, CommitRef
        from checkpoints.torch_bridge import Checkpointer

        store = self.store.child("ours")
        log = AttemptLog(store, TRAIN_ONLY)
        if self.rank == 0:
            log.claim(1, {})
            log.put_base(1, None)
        self.dist.barrier()
        self.store.put("warm", b"")  # the client is imported and connected, and not counted as a copy of the state
        self.store.get("warm")
        before = resident()
        checkpointer = Checkpointer(store, TRAIN_ONLY, stage="train", attempt=1, fence=Fence(log, 1))
        found: Found = {name: [] for name in ("stall", "save", "restore", "alone", "beside")}
        position = -1

        def save() -> float:
            nonlocal position
            position += 1
            return self.timed(
                lambda: checkpointer.save(position, self.state, meta={}, fingerprint="", optimizers=[self.optimizer])
            )[0]

        for _ in range(repeats + 1):
            self.train()
            save()
            found["save"].append(checkpointer.wait()[0].seconds)  # deleting old commits is not counted
            raw.put()
        for _ in range(repeats):
            found["alone"].append(self.train()[0])
            blocked_s = save()
            step_s, waited_s = self.train()
            found["stall"].append(blocked_s + waited_s)
            found["beside"].append(step_s)
            checkpointer.wait()
        found["memory"] = [(peak() - before) / self.bytes]
        for _ in range(repeats):
            self.cool("ours")
            seconds, _ = self.timed(lambda: checkpointer.load(CommitRef("train", position, 1), self.state))
            found["restore"].append(seconds)
            raw.get()
        checkpointer.close()
        self.clean("ours")
        raw.close()
        return {**found, "save": found["save"][1:]}

    def dcp(self, repeats: int, *, background: bool) -> Found:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

        name = "dcp-async" if background else "dcp-sync"
        root = f"file://{self.uri}" if self.is_file else self.uri
        found: Found = {"stall": [], "save": [], "restore": [], "alone": [], "beside": []}
        path = ""
        for number in range(repeats + 1):
            found["alone"].append(self.train()[0])
            path = f"{root}/{name}/{number}"
            writer = FsspecWriter(path, sync_files=self.is_file, thread_count=self.threads[0], **self.options)
            state = self.state if number else dict(list(self.state.items())[:1])

            def save(writer: Any = writer, state: dict[str, Any] = state) -> Any:
                if background:
                    # To keep its staging buffers between saves it wants pinned memory, which needs a GPU.
                    return dcp.async_save(state, storage_writer=writer, process_group=self.group)
                return dcp.save(state, storage_writer=writer)

            stall, handle = self.timed(save)
            rest = 0.0
            if background:
                step_s, _ = self.train()
                found["beside"].append(step_s)
                rest = step_s + self.timed(handle.result)[0]
            found["stall"].append(stall)
            found["save"].append(stall + rest)
            if number < repeats:
                self.clean(f"{name}/{number}")
        for _ in range(repeats if self.is_file and not background else 0):  # on S3 it takes minutes, and no aim asks
            self.cool(name)
            reader = FsspecReader(path, **self.options)
            seconds, _ = self.timed(lambda reader=reader: dcp.load(self.state, storage_reader=reader))
            found["restore"].append(seconds)
        self.clean(name)
        return {key: values[1:] if key != "restore" else values for key, values in found.items()}

    def hf_trainer(self, repeats: int) -> Found:
        """Gather the full state on rank 0 and torch.save it, as the Trainer does with FULL_STATE_DICT."""
        import fsspec

        root = f"file://{self.uri}" if self.is_file else self.uri
        stalls = []
        for number in range(repeats + 1):
            self.train()
            state = self.state if number else dict(list(self.state.items())[:1])

            def save(number: int = number, state: dict[str, Any] = state) -> None:
                full = {}
                for name, tensor in state.items():
                    whole = tensor.full_tensor()
                    if self.rank == 0:
                        full[name] = whole
                if self.rank == 0:
                    with fsspec.open(f"{root}/hf/{number}.pt", "wb", auto_mkdir=self.is_file, **self.options) as file:
                        self.torch.save(full, file)
                        if self.is_file:
                            os.fsync(file.fileno())

            stalls.append(self.timed(save)[0])
            self.clean("hf")
        return {"stall": stalls[1:], "save": stalls[1:]}

    def copy(self, repeats: int) -> Found:
        """What a snapshot is made of: reading and writing every byte once, on all ranks together."""
        kept = [tensor.to_local().clone() for tensor in self.state.values()]

        def copy_all() -> None:
            for target, tensor in zip(kept, self.state.values(), strict=True):
                target.copy_(tensor.to_local())

        seconds = []
        for _ in range(repeats):
            self.train()
            seconds.append(self.timed(copy_all)[0])
        return {"stall": seconds}

    def cool(self, below: str) -> None:
        """Drop the page cache of what is to be read."""
        if self.is_file and self.rank == 0:
            for path in Path(self.uri, below).rglob("*"):
                if path.is_file():
                    with open(path, "rb") as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.dist.barrier()

    def clean(self, below: str) -> None:
        self.dist.barrier()
        if self.rank == 0:
            if self.is_file:
                shutil.rmtree(Path(self.uri, below), ignore_errors=True)
            else:
                self.store.delete(self.store.list(below))
        self.dist.barrier()


class RawObjects:
    """The same bytes in objects of the same sizes, by the same client with as many threads; no digests, no manifest, no
    planning. What the client checks and signs by default it does here too. `found` is what its turns took; one that is
    not asked for takes none."""

    def __init__(self, bench: Bench, *, asked: bool) -> None:
        self.found: Found = {"save": [], "restore": []}
        self._bench, self._asked, self._turn = bench, asked, -1
        if not asked:
            return
        from checkpoints.torch_plan import lay_out, plan_local
        from checkpoints.torch_state import flatten_state

        plan = plan_local(flatten_state(bench.state), is_coordinator=True)
        sizes = [planned.size for planned in lay_out(plan.items, bench.rank)]
        whole = bench.torch.cat([tensor.to_local().reshape(-1) for tensor in bench.state.values()])
        self._data = memoryview(whole.numpy()).cast("B")
        ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
        self._spans = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        assert ends[-1] == len(self._data), "the same bytes"

    def put(self) -> None:
        """Put all objects; what was put KEPT turns ago goes, as ours does it. The first turn is to warm up."""
        if not self._asked:
            return
        self._turn += 1
        seconds, _ = self._bench.timed(lambda: self._each(self._bench.threads[0], self._put, self._spans))
        if self._turn:
            self.found["save"].append(seconds)
        if self._turn >= KEPT:
            self._bench.clean(f"raw/{self._turn - KEPT}")

    def get(self) -> None:
        """Get all bytes of the last turn, a range of at most 16 MiB at a time."""
        if not self._asked:
            return
        ranges = [
            (start, first, min(first + 16 * MIB, end))
            for start, end in self._spans
            for first in range(start, end, 16 * MIB)
        ]
        self._bench.cool("raw")
        seconds, _ = self._bench.timed(lambda: self._each(self._bench.threads[1], self._get, ranges))
        self.found["restore"].append(seconds)

    def close(self) -> None:
        if self._asked:
            self._bench.clean("raw")
            del self._data

    def _each(self, threads: int, act: Callable[[Any], None], jobs: list[Any]) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(act, jobs):
                pass

    def _put(self, span: tuple[int, int]) -> None:
        self._bench.store.put(self._key(span[0]), self._data[span[0] : span[1]])

    def _get(self, part: tuple[int, int, int]) -> None:
        start, first, end = part
        self._bench.store.get_range(self._key(start), first - start, end - first)  # let go of; a restore keeps them

    def _key(self, start: int) -> str:
        return f"raw/{self._turn}/rank-{self._bench.rank}-{start}"


def resident() -> int:
    """Resident memory now, bytes; and the peak starts anew from here (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """Peak resident memory since `resident`, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def run_rank(rank: int, job: dict[str, Any]) -> None:
    """Measure the ways that `job` names; rank 0 prints what was found, as JSON."""
    import torch
    import torch.distributed as dist

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"]), RANK=str(rank), WORLD_SIZE=str(WORLD))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    bench = Bench(job["uri"], job["options"], job["megabytes"])
    repeats = job["repeats"]
    found: dict[str, Any] = {"bytes_per_rank": bench.bytes}
    raw = RawObjects(bench, asked="raw" in job["ways"])
    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: bench.ours(repeats, raw),
        "raw": lambda: raw.found,
        "copy": lambda: bench.copy(repeats),
        "dcp sync": lambda: bench.dcp(repeats, background=False),
        "dcp async": lambda: bench.dcp(repeats, background=True),
        "hf trainer": lambda: bench.hf_trainer(repeats),
    }
    for name, measure_it in ways.items():
        if name not in job["ways"]:
            continue
        started = time.monotonic()
        found[name] = measure_it()
        if rank == 0:
            print(f"{job['uri']}: {name}, {time.monotonic() - started:.0f} s", file=sys.stderr)
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()
