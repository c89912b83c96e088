"""What a checkpoint costs: `python benchmarks/checkpoint.py [--megabytes 400] [--repeats 5] [--stores file,s3]`.

`--stores s3` runs that half alone (about seven minutes); with `--ways ours,raw` it is two, for bandwidth and memory.

One run on one state: two gloo ranks, each training a model whose weights and two moments are `--megabytes` of sharded
tensors (as FSDP2 and AdamW keep them), 128 rows of a batch at a time. Median of the repeats, after one save to warm up
(of one tensor, where nothing is kept from save to save), for
  copy     the same tensors copied into memory that is there already: how long a snapshot takes, whoever waits for it
  stall    how long training stands still: ours (in save(), and before the next update, which waits for the copy), DCP
           sync, DCP async, and the Hugging Face Trainer's way (the full state gathered and saved by rank 0)
  step     the step beside a save against one with none, without the waiting that counts as stall: ours and DCP async
  save     from the call to the commit, nothing beside it, and restore, against raw put and get of the same bytes in
           objects of the same sizes by the same client with the same threads, without digests and manifest (files
           fsynced, page cache dropped before reads); the two take turns
  memory   peak resident memory beyond the state itself
S3 is a moto server in a process of its own. Prints a table, then each aim with `aim met: yes/no`; exits 1 on a no. An
aim that needs what was left out is printed as not asked.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from checkpoint_ways import MIB, WORLD, run_rank

WAYS = ("ours", "dcp sync", "dcp async", "hf trainer", "raw", "copy")


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


def report(kind: str, found: dict[str, Any]) -> list[tuple[str, bool | None]]:
    """Print the table of one store; returns its aims, with None for one that needs a way which was left out."""
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
    for way in ("ours", "dcp async"):
        if way in found and (alone := seconds(way, "alone")) and (beside := seconds(way, "beside")):
            print(f"  {way}: the step beside a save took {beside:.3f} s, one alone {alone:.3f} s")

    aims: list[tuple[str, bool | None]] = []
    for other, share, words in (("dcp sync", 1 / 20, "<= 1/20 of DCP sync"), ("dcp async", 1, "not above DCP async")):
        if "ours" in found and other in found:
            ours, theirs = seconds("ours", "stall") or 0.0, seconds(other, "stall") or 0.0
            aims.append((f"stall {ours:.3f} s {words} ({theirs:.3f} s)", ours <= theirs * share))
        else:
            aims.append((f"stall {words}", None))
    memory = copies <= memory_limit(found) if "ours" in found else None
    aims.append((f"at most one extra copy of the state, and 128 MiB to send it ({copies:.2f})", memory))
    for what in ("save", "restore") if kind == "s3" else ():
        if "ours" in found and "raw" in found:
            of_raw = (seconds("raw", what) or 0.0) / (seconds("ours", what) or 1.0)
            aims.append((f"{what} at {of_raw:.0%} of raw (>= 90%)", of_raw >= 0.9))
        else:
            aims.append((f"{what} at 90% of raw", None))
    return [(f"{kind}: {words}", met) for words, met in aims]


def memory_limit(found: dict[str, Any]) -> float:
    return 1 + 128 * MIB / float(found["bytes_per_rank"]) + 0.02


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="state per rank, MiB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stores", default="file,s3")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS), help=f"of {', '.join(WAYS)}")
    parser.add_argument("--folder", help="where the local store goes; default: a temporary folder")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if "raw" in arguments.ways and "ours" not in arguments.ways:
        parser.error("--ways raw takes turns with ours: name both")
    if arguments.job:
        run_rank(arguments.rank, json.loads(arguments.job))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.platform()}")
    began = time.monotonic()
    aims: list[tuple[str, bool | None]] = []
    if "file" in arguments.stores:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            aims += report("file", measure(folder, {}, arguments))
    if "s3" in arguments.stores:
        with moto_server() as options:
            aims += report("s3", measure("s3://bucket/bench", options, arguments))
    print(f"\n{time.monotonic() - began:.0f} s, load at the end {os.getloadavg()[0]:.1f}")
    for words, met in aims:
        print(f"{words}  " + ("not asked: left out" if met is None else f"aim met: {'yes' if met else 'no'}"))
    return 1 if any(met is False for _, met in aims) else 0


if __name__ == "__main__":
    sys.exit(main())
