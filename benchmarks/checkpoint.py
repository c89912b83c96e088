"""What a checkpoint costs: `python benchmarks/checkpoint.py [--megabytes 400] [--repeats 5] [--stores file,s3]`.

One run on one state: two gloo ranks, each with `--megabytes` of sharded tensors (weights and two moments, as FSDP2 and
AdamW keep them). Median of the repeats, after one save to warm up (of one tensor, where nothing is kept from save to
save), for
  copy     the same tensors copied into memory that is there already: no stall on the CPU can be shorter
  stall    how long training stands still: ours, DCP sync, DCP async, and the Hugging Face Trainer's way (the full state
           gathered and saved by rank 0)
  save     from the call to the commit, and restore, against raw put and get of the same bytes by the same client with
           the same threads, without digests and manifest (files fsynced, page cache dropped before reads)
  memory   peak resident memory beyond the state itself
S3 is a moto server in a process of its own. Prints a table, then each aim with `aim met: yes/no`; exits 1 on a no.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WORLD = 2
TENSORS = 48
MIB = 2**20
KEPT = 2  # older saves that stay, by default
WAYS = ("ours", "dcp sync", "dcp async", "hf trainer", "raw", "copy")


# --- the ranks ------------------------------------------------------------------------------------------------------


class Bench:
    """One rank's part of the measurements on one store."""

    def __init__(self, uri: str, options: dict[str, str], megabytes: int) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Shard

        from checkpoints.store import Store
        from checkpoints.torch_bridge import SAVE_THREADS
        from checkpoints.torch_load import LOAD_THREADS

        self.torch, self.dist = torch, dist
        self.rank = dist.get_rank()
        self.uri, self.options, self.threads = uri, options, (SAVE_THREADS, LOAD_THREADS)
        self.store = Store.open(uri, storage_options=options)
        self.is_file = uri.startswith("/")
        mesh = init_device_mesh("cpu", (WORLD,))
        rows = megabytes * MIB // (TENSORS * 1024 * 4)
        self.state = {
            f"{kind}.{number}": DTensor.from_local(torch.rand(rows, 1024), mesh, [Shard(0)])
            for kind in ("weight", "exp_avg", "exp_avg_sq")
            for number in range(TENSORS // 3)
        }
        self.bytes = sum(tensor.to_local().nbytes for tensor in self.state.values())
        self.group = dist.new_group(backend="gloo")

    def train(self) -> None:
        """A step that changes every tensor, so that nothing can be referenced."""
        for tensor in self.state.values():
            tensor.to_local().add_(1e-3)
        self.dist.barrier()

    def timed(self, act: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds until the slower rank is through, and the value."""
        self.dist.barrier()
        started = time.perf_counter()
        value = act()
        mine = self.torch.tensor([time.perf_counter() - started], dtype=self.torch.float64)
        self.dist.all_reduce(mine, op=self.dist.ReduceOp.MAX)
        return float(mine), value

    def ours(self, repeats: int) -> dict[str, list[float]]:
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
        found: dict[str, list[float]] = {"stall": [], "save": [], "restore": []}
        for position in range(repeats + 1):
            self.train()
            stall, _ = self.timed(
                lambda position=position: checkpointer.save(position, self.state, meta={}, fingerprint="")
            )
            results = checkpointer.wait()  # deleting old commits comes after the commit and is not counted
            found["stall"].append(stall)
            found["save"].append(results[0].seconds)
        found["memory"] = [(peak() - before) / self.bytes]
        for _ in range(repeats):
            self.cool("ours")
            seconds, _ = self.timed(lambda: checkpointer.load(CommitRef("train", repeats, 1), self.state))
            found["restore"].append(seconds)
        checkpointer.close()
        self.clean("ours")
        return {name: values[1:] if name in ("stall", "save") else values for name, values in found.items()}

    def raw(self, repeats: int) -> dict[str, list[float]]:
        """The same bytes, object sizes, client and threads; no digests, no manifest, no planning."""
        from checkpoints.torch_plan import OBJECT_BYTES

        data = memoryview(self.torch.cat([t.to_local().reshape(-1) for t in self.state.values()]).numpy()).cast("B")
        spans = [(start, min(start + OBJECT_BYTES, len(data))) for start in range(0, len(data), OBJECT_BYTES)]
        found: dict[str, list[float]] = {"save": [], "restore": []}
        for number in range(repeats + 1):
            keys = [f"raw/{number}/rank-{self.rank}-{start}" for start, _ in spans]

            def put(keys: list[str] = keys) -> None:
                with ThreadPoolExecutor(self.threads[0]) as pool:
                    jobs = [
                        pool.submit(self.store.put, key, data[start:end])
                        for key, (start, end) in zip(keys, spans, strict=True)
                    ]
                    for job in jobs:
                        job.result()

            seconds, _ = self.timed(put)
            found["save"].append(seconds)
            if number >= KEPT:  # as ours does: what is written takes the place of what was there three saves ago
                self.clean(f"raw/{number - KEPT}")
        last = [f"raw/{repeats}/rank-{self.rank}-{start}" for start, _ in spans]
        ranges = [
            (key, first - start, min(16 * MIB, end - first))
            for key, (start, end) in zip(last, spans, strict=True)
            for first in range(start, end, 16 * MIB)
        ]

        def get() -> None:
            def fetch(job: tuple[str, int, int]) -> None:
                self.store.get_range(*job)  # raw bytes are let go of; a restore has to put them into the tensors

            with ThreadPoolExecutor(self.threads[1]) as pool:
                for _ in pool.map(fetch, ranges):
                    pass

        for _ in range(repeats):
            self.cool("raw")
            seconds, _ = self.timed(get)
            found["restore"].append(seconds)
        self.clean("raw")
        return {"save": found["save"][1:], "restore": found["restore"]}

    def dcp(self, repeats: int, *, background: bool) -> dict[str, list[float]]:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

        name = "dcp-async" if background else "dcp-sync"
        root = f"file://{self.uri}" if self.is_file else self.uri
        found: dict[str, list[float]] = {"stall": [], "save": [], "restore": []}
        path = ""
        for number in range(repeats + 1):
            self.train()
            path = f"{root}/{name}/{number}"
            writer = FsspecWriter(path, sync_files=self.is_file, thread_count=self.threads[0], **self.options)
            state = self.state if number else dict(list(self.state.items())[:1])

            def save(writer: Any = writer, state: dict[str, Any] = state) -> Any:
                if background:
                    # To keep its staging buffers between saves it wants pinned memory, which needs a GPU.
                    return dcp.async_save(state, storage_writer=writer, process_group=self.group)
                return dcp.save(state, storage_writer=writer)

            stall, handle = self.timed(save)
            rest, _ = self.timed(handle.result) if background else (0.0, None)
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

    def hf_trainer(self, repeats: int) -> dict[str, list[float]]:
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

    def copy(self, repeats: int) -> dict[str, list[float]]:
        """What a stall is made of: reading and writing every byte once, on all ranks together."""
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
    import torch
    import torch.distributed as dist

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"]), RANK=str(rank), WORLD_SIZE=str(WORLD))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    bench = Bench(job["uri"], job["options"], job["megabytes"])
    repeats = job["repeats"]
    found: dict[str, Any] = {"bytes_per_rank": bench.bytes}
    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: bench.ours(repeats),
        "raw": lambda: bench.raw(repeats),
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


# --- the parent -----------------------------------------------------------------------------------------------------


@contextmanager
def moto_server() -> Iterator[dict[str, str]]:
    """storage options of a moto server in a process of its own, with the bucket `bucket`."""
    import boto3

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said) as server,
    ):
        try:
            options = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "test", "secret": "test"}
            client = boto3.client(
                "s3",
                endpoint_url=options["endpoint_url"],
                aws_access_key_id="test",
                aws_secret_access_key="test",
                region_name="us-east-1",
            )
            wait_for_port(port)
            client.create_bucket(Bucket="bucket")
            yield options
        except SystemExit:
            said.seek(0)
            errors = [line for line in said if " - - [" not in line]  # without its log of requests
            print("".join(errors[-20:]), file=sys.stderr)
            raise
        finally:
            server.terminate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("moto did not start within 60 s: is moto[server] installed?")


def measure(uri: str, options: dict[str, str], arguments: argparse.Namespace) -> dict[str, Any]:
    job = json.dumps(
        {
            "uri": uri,
            "options": options,
            "port": free_port(),
            "megabytes": arguments.megabytes,
            "repeats": arguments.repeats,
            "ways": arguments.ways,
        }
    )
    command = [sys.executable, __file__, "--job", job, "--rank"]
    with tempfile.TemporaryFile("w+") as said:
        ranks = [
            subprocess.Popen([*command, str(rank)], stdout=said if rank == 0 else subprocess.DEVNULL)
            for rank in range(WORLD)
        ]
        try:
            while None in (codes := [rank.poll() for rank in ranks]) and not any(codes):
                time.sleep(0.2)  # a rank that fails leaves the other one waiting for it
        finally:
            for rank in ranks:
                rank.kill()  # of a rank that has ended this does nothing
        if any(codes):
            raise SystemExit(f"a rank failed: {codes}")
        said.seek(0)
        found: dict[str, Any] = {**json.load(said), "ways": arguments.ways}
    return found


def report(kind: str, found: dict[str, Any]) -> list[tuple[str, bool]]:
    """Print the table of one store; returns its aims."""
    total = found["bytes_per_rank"] * WORLD

    def seconds(way: str, what: str) -> float | None:
        values = found[way].get(what)
        return statistics.median(values) if values else None

    def speed(way: str, what: str) -> str:
        value = seconds(way, what)
        return "-" if value is None else f"{total / value / 1e6:7.0f} MB/s"

    print(f"\n{kind}: {found['bytes_per_rank'] / 1e6:.0f} MB on each of {WORLD} ranks")
    print(f"  {'':12}{'stall s':>9}{'save s':>9}{'save':>14}{'restore':>14}")
    for way in found["ways"]:
        stall, save = seconds(way, "stall"), seconds(way, "save")
        cells = [f"{value:9.3f}" if value is not None else f"{'-':>9}" for value in (stall, save)]
        print(f"  {way:12}{''.join(cells)}{speed(way, 'save'):>14}{speed(way, 'restore'):>14}")
    copies = found["ours"]["memory"][0] if "ours" in found else 0.0
    print(f"  ours: {copies:.2f} copies of the state in extra memory at the peak")
    if set(found["ways"]) != set(WAYS):
        return []

    ours, sync, background = (seconds(way, "stall") or 0.0 for way in ("ours", "dcp sync", "dcp async"))
    aims = [
        (f"stall {ours:.3f} s <= 1/20 of DCP sync ({sync:.3f} s)", ours <= sync / 20),
        (f"stall {ours:.3f} s not above DCP async ({background:.3f} s)", ours <= background),
        (f"at most one extra copy of the state, and 128 MiB to send it ({copies:.2f})", copies <= memory_limit(found)),
    ]
    if kind == "s3":
        for what in ("save", "restore"):
            share = (seconds("raw", what) or 0.0) / (seconds("ours", what) or 1.0)
            aims.append((f"{what} at {share:.0%} of raw (>= 90%)", share >= 0.9))
    return [(f"{kind}: {words}", met) for words, met in aims]


def memory_limit(found: dict[str, Any]) -> float:
    return 1 + 128 * MIB / float(found["bytes_per_rank"]) + 0.02


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="state per rank, MiB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stores", default="file,s3")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS), help="without all, no aims")
    parser.add_argument("--folder", help="where the local store goes; default: a temporary folder")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        run_rank(arguments.rank, json.loads(arguments.job))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.platform()}")
    began = time.monotonic()
    aims: list[tuple[str, bool]] = []
    if "file" in arguments.stores:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            aims += report("file", measure(folder, {}, arguments))
    if "s3" in arguments.stores:
        with moto_server() as options:
            aims += report("s3", measure("s3://bucket/bench", options, arguments))
    print(f"\n{time.monotonic() - began:.0f} s, load at the end {os.getloadavg()[0]:.1f}")
    for words, met in aims:
        print(f"{words}  aim met: {'yes' if met else 'no'}")
    return 0 if all(met for _, met in aims) else 1


if __name__ == "__main__":
    sys.exit(main())
