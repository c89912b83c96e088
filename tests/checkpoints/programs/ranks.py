"""Four ranks on gloo, one start of torch for all checks: `python ranks.py RANK MEET FOLDER`; rank 0 prints JSON.

Groups of 1 to 4 of these ranks play jobs of that world size. test_torch_ranks.py starts this and looks at the answers.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from slow_copies import slow_copies
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from checkpoints.attempts import AttemptLog
from checkpoints.errors import CheckpointError
from checkpoints.fence import Fence
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.reader import list_commits
from checkpoints.store import Store
from checkpoints.torch_bridge import Checkpointer

WORLD = 4
RANK = int(sys.argv[1])
Meshes = dict[int, DeviceMesh]


class Job:
    """Ranks 0 to n - 1 as a job of their own: a mesh, a gloo group, an attempt."""

    def __init__(
        self, store: Store, meshes: dict[int, DeviceMesh], groups: dict[int, Any], n: int, attempt: int
    ) -> None:
        self.n, self.mesh, self.store = n, meshes[n], store
        self.log = AttemptLog(store, TRAIN_ONLY)
        if RANK == 0:
            self.log.claim(attempt, {})
            self.log.put_base(attempt, CommitRef("train", 3, 1) if attempt > 1 else None)
        dist.barrier(groups[n])
        self.checkpointer = Checkpointer(
            store, TRAIN_ONLY, stage="train", attempt=attempt, fence=Fence(self.log, attempt), process_group=groups[n]
        )

    def model(self, seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        # Sizes that no world size divides, and one row fewer than there are ranks.
        model = torch.nn.Sequential(torch.nn.Linear(33, 65), torch.nn.LayerNorm(65), torch.nn.Linear(65, 3))
        for layer in model:
            fully_shard(layer, mesh=self.mesh)
        fully_shard(model, mesh=self.mesh)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    def state(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> dict[str, Any]:
        weights, moments = get_state_dict(model, optimizer)
        generator = torch.Generator().manual_seed(seed)
        columns = torch.randn(7, 10, generator=generator)
        extra = {
            "columns": distribute_tensor(columns, self.mesh, [Shard(1)]),
            "everywhere": distribute_tensor(columns * 2, self.mesh, [Replicate()]),
            "rng": torch.randint(0, 255, (16,), dtype=torch.uint8, generator=generator),
            "scalar": torch.tensor(seed, dtype=torch.bfloat16),
            "transposed": torch.randn(4, 6, generator=generator).t(),
            "empty": torch.empty(0, 3),
            "values": {"step": seed, "lr": 0.1 * seed, "betas": (0.9, 0.5), "name": f"é{seed}", "none": None},
            "list": [torch.ones(2) * seed, {"deep": torch.zeros(1, dtype=torch.int64) + seed}],
        }
        return {"model": weights, "optim": moments, "extra": extra}


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    model(torch.randn(8, 33)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def digests(value: Any, prefix: str = "") -> dict[str, str]:
    """Name -> digest of the full tensor, or the value itself; collective, the same on every rank."""
    if isinstance(value, dict):
        return {k: v for key, entry in value.items() for k, v in digests(entry, f"{prefix}.{key}").items()}
    if isinstance(value, list):
        return {k: v for key, entry in enumerate(value) for k, v in digests(entry, f"{prefix}.{key}").items()}
    if isinstance(value, torch.Tensor):
        full = value.full_tensor() if isinstance(value, DTensor) else value
        data = full.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return {prefix: f"{full.dtype} {tuple(full.shape)} {hashlib.sha256(data).hexdigest()}"}
    return {prefix: repr(value)}


def outcome(act: Callable[[], Any]) -> str:
    try:
        act()
    except CheckpointError as exc:
        return f"{type(exc).__name__}: {exc}"
    return "fine"


def save_on_two(job: Job) -> dict[str, Any]:
    model, optimizer = job.model(seed=0)
    events: list[int | None] = []
    job.checkpointer.on_saving = events.append
    results, state, saved = [], {}, {}
    copied: set[str] = set()
    with slow_copies(lambda name, is_late: copied.add(name) if is_late else None, begin_within_s=10, each_s=0.005):
        for position in (1, 2, 3):
            train(model, optimizer, position)
            state = job.state(model, optimizer, position)
            saved = digests(state)
            job.checkpointer.save(position, state, meta={"position": position}, fingerprint="f", optimizers=[optimizer])
            train(model, optimizer, 10 + position)  # its update waits until the sharded weights and moments are copied
            results += job.checkpointer.wait()
    answer = {
        "saved": saved,
        "copied late": sorted({name.split(".")[0] for name in copied}),
        "stalls": [result.stall_s for result in results],
        "committed": [(result.position, result.committed) for result in results],
        "bytes": [result.bytes for result in results],
        "events": events,
        "again": "ValueError"
        if raises(ValueError, lambda: job.checkpointer.save(3, state, meta={}, fingerprint=""))
        else "",
    }
    job.checkpointer.close()
    return answer


def raises(kind: type[Exception], act: Callable[[], Any]) -> bool:
    try:
        act()
    except kind:
        return True
    return False


def load_on(job: Job) -> dict[str, Any]:
    model, optimizer = job.model(seed=9)
    state = job.state(model, optimizer, 9)
    manifest = job.checkpointer.load(CommitRef("train", 3, 1), state)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    again = job.state(model, optimizer, 3)
    return {"loaded": digests(state), "applied": digests(again), "meta": dict(manifest.meta)}


def damage_and_fall_back(job: Job) -> dict[str, Any]:
    key = "checkpoints/step-00000003/attempt-000001/rank-00001-0000.bin"
    good = job.store.get(key)
    dist.barrier(job.checkpointer._exchange._group)
    if RANK == 0:
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 1
        job.store.put(key, bytes(bad))
    dist.barrier(job.checkpointer._exchange._group)
    model, optimizer = job.model(seed=9)
    state = job.state(model, optimizer, 9)
    words = outcome(lambda: job.checkpointer.load(CommitRef("train", 3, 1), state))
    loaded = job.checkpointer.load_newest(list_commits(job.store, TRAIN_ONLY), state)
    assert loaded is not None
    dist.barrier(job.checkpointer._exchange._group)
    if RANK == 0:
        job.store.put(key, good)
    return {
        "everywhere": gathered(job, words),
        "fell_back_to": loaded.ref.position,
        "fallbacks": len(loaded.fallbacks),
        "step": state["extra"]["values"]["step"],
    }


def gathered(job: Job, value: Any) -> list[Any]:
    return list(job.checkpointer._exchange.gather(value))


def fail_on_one_rank(job: Job) -> dict[str, Any]:
    state = {"w": distribute_tensor(torch.arange(10.0), job.mesh, [Shard(0)])}
    driver = job.store._driver
    write = driver.write
    if RANK == 1:
        driver.write = broken  # type: ignore[method-assign]
    job.checkpointer.save(50, state, meta={}, fingerprint="")
    failed = outcome(job.checkpointer.wait)
    driver.write = write  # type: ignore[method-assign]
    job.checkpointer.save(51, state, meta={}, fingerprint="")
    recovered = outcome(job.checkpointer.wait)
    bad = {**state, "bad": object()} if RANK == 1 else state
    mismatch = outcome(lambda: job.checkpointer.save(52, bad, meta={}, fingerprint=""))
    if RANK == 0:
        job.log.claim(99, {})
    job.checkpointer.save(53, state, meta={}, fingerprint="")
    superseded = outcome(job.checkpointer.wait)
    answers = gathered(job, [failed, recovered, mismatch, superseded])
    return {"everywhere": answers, "commits": [ref.position for ref in list_commits(job.store, TRAIN_ONLY)]}


def broken(key: str, data: bytes | memoryview) -> None:
    raise OSError(28, "No space left on device")


def skip_when_busy(store: Store, groups: dict[int, Any], meshes: Meshes) -> dict[str, Any]:
    """All four ranks; one rank's store is slow, so only that rank knows that the save before is under way."""
    log = AttemptLog(store, TRAIN_ONLY)
    checkpointer = Checkpointer(
        store, TRAIN_ONLY, stage="train", attempt=1, fence=None, process_group=groups[4], when_busy="skip"
    )
    release = threading.Event()
    write = store._driver.write
    if RANK == 3:

        def slow(key: str, data: bytes | memoryview, **more: Any) -> None:
            release.wait(20)
            write(key, data, **more)

        store._driver.write = slow  # type: ignore[method-assign]
    state = {"w": distribute_tensor(torch.arange(40.0), meshes[4], [Shard(0)])}
    checkpointer.save(1, state, meta={}, fingerprint="")
    checkpointer.save(2, state, meta={}, fingerprint="")
    release.set()
    checkpointer.wait()
    checkpointer.save(3, state, meta={}, fingerprint="")
    checkpointer.wait()
    checkpointer.close()
    assert log.newest() == 0
    return {"commits": [ref.position for ref in list_commits(store, TRAIN_ONLY)]}


def main() -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    started = time.monotonic()
    dist.init_process_group(
        "gloo", init_method=sys.argv[2], rank=RANK, world_size=WORLD, timeout=timedelta(seconds=60)
    )  # fmt: skip
    groups = {n: dist.new_group(list(range(n)), backend="gloo") for n in range(1, WORLD + 1)}
    meshes = {n: DeviceMesh("cpu", list(range(n))) for n in range(1, WORLD + 1)}
    store = Store.open(sys.argv[3]).child("run")
    answers: dict[str, Any] = {}
    if RANK < 2:
        answers["save"] = save_on_two(Job(store, meshes, groups, 2, 1))
    dist.barrier()
    for n in range(1, WORLD + 1):
        if n > RANK:
            answers[f"load {n}"] = load_on(Job(store, meshes, groups, n, 1 + n))
        dist.barrier()
    if RANK < 3:
        answers["damage"] = damage_and_fall_back(Job(store, meshes, groups, 3, 6))
    if RANK < 2:
        answers["failures"] = fail_on_one_rank(Job(store, meshes, groups, 2, 7))
    dist.barrier()
    answers["skip"] = skip_when_busy(Store.open(sys.argv[3]).child("other"), groups, meshes)
    answers["seconds"] = time.monotonic() - started
    if RANK == 0:
        sys.stdout.write(json.dumps(answers))
    dist.barrier()
    dist.destroy_process_group()


main()
