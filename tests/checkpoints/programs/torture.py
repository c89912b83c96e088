"""Kill real writers at random moments and look at what they left: `python torture.py URI KILLS SEED [OPTIONS_JSON]`.

A warmed parent without torch forks a writer (claim, base, commits with references, retention) and SIGKILLs it after a
random time; or the kernel kills it (SIGXFSZ) at a random byte offset of whatever file it is writing. After each kill
the parent checks, and the next writer continues. Prints JSON: kills by the operation they hit.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import resource
import select
import signal
import sys
import time
from typing import Any

from checkpoints.attempts import AttemptLog
from checkpoints.errors import Damaged
from checkpoints.fence import Fence
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.reader import CommitReader, list_commits
from checkpoints.retention import Retention, known_blocks
from checkpoints.store import Store
from checkpoints.writer import CommitWriter

ATTEMPTS_PER_RUN = 40
FROZEN = random.Random(0).randbytes(70 * 2**10)
PHASES = ("claim", "read", "base", "store", "publish", "tidy")


def changing(position: int) -> bytes:
    return random.Random(position).randbytes(40 * 2**10)


class Run:
    """One run: its store, and what its writers have been told is committed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.log = AttemptLog(store, TRAIN_ONLY)
        self.acknowledged: list[CommitRef] = []
        self.attempt = 0

    def counting(self) -> list[CommitRef]:
        return counting_commits(self.log.records(), list_commits(self.store, TRAIN_ONLY), TRAIN_ONLY)

    def write(self, number: int, tell: Any) -> None:
        """A writer's life: it goes on until it is killed."""
        tell("claim")
        self.log.claim(number, {})
        tell("read")
        newest = next(iter(self.counting()), None)
        reader = CommitReader.open(self.store, TRAIN_ONLY, newest) if newest else None
        if reader:
            reader.verify()
        tell("base")
        self.log.put_base(number, newest)
        fence = Fence(self.log, number)
        retention = Retention(self.store, TRAIN_ONLY, stage="train", fence=fence, keep=2)
        manifest = reader.manifest if reader else None
        position = newest.position if newest else 0
        while True:
            position += 1
            tell("store")
            known = known_blocks(manifest, TRAIN_ONLY) if manifest else {}
            writer = CommitWriter(
                self.store, TRAIN_ONLY, CommitRef("train", position, number), fence=fence, known=known
            )
            writer.put("frozen", FROZEN)
            writer.put("changing", changing(position))
            tell("publish")
            manifest = writer.publish(meta={"position": position})
            tell(f"committed {position}")
            tell("tidy")
            retention.after_commit(manifest)

    def check(self) -> None:
        """Every commit that counts is whole, and the last one that was acknowledged, or a later one, is there."""
        counting = self.counting()
        for ref in counting:
            reader = CommitReader.open(self.store, TRAIN_ONLY, ref)
            if reader.read("frozen") != FROZEN or reader.read("changing") != changing(ref.position):
                raise Damaged(str(ref), "other bytes than were saved")
            assert reader.manifest.meta == {"position": ref.position}
        if self.acknowledged:
            assert counting, "every commit is lost"
            assert counting[0].position >= self.acknowledged[-1].position, "the newest commit is lost"
            assert set(self.acknowledged[-2:]) <= set(counting), "one of the newest two is lost"


def kill_one(run: Run, rng: random.Random, life_s: float, by_offset: bool) -> str:
    """Fork a writer, have it killed, and return the operation it was in."""
    run.attempt += 1
    read_end, write_end = os.pipe()
    limit = rng.choice([rng.randrange(1, 900), rng.randrange(1, len(FROZEN))])
    skip = rng.randrange(0, 10)
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        live(run, write_end, limit if by_offset else None, skip)
    os.close(write_end)
    said = listen(read_end, rng.uniform(0, life_s) if not by_offset else 10 * life_s, pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"the writer ended by itself with status {status}, last said {said[-1:]}"
    committed = [int(line.split()[1]) for line in said if line.startswith("committed")]
    run.acknowledged += [CommitRef("train", position, run.attempt) for position in committed]
    return next((line for line in reversed(said) if line in PHASES), "start")


def live(run: Run, pipe: int, limit: int | None, skip: int) -> None:
    told = 0

    def tell(what: str) -> None:
        nonlocal told
        os.write(pipe, what.encode() + b"\n")
        told += 1
        if limit is not None and told == skip + 1:
            # From now on the kernel kills this process at byte `limit` of any file it writes.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    try:
        run.write(run.attempt, tell)
    except BaseException as exc:  # noqa: BLE001 - the child must not run on into the parent's code
        os.write(2, f"{type(exc).__name__}: {exc}\n".encode())
    os._exit(3)


def listen(read_end: int, for_s: float, pid: int) -> list[str]:
    """What the writer says until its time is up or it is dead; kills it when the time is up, then reads the rest."""
    deadline, data, killed = time.monotonic() + for_s, b"", False
    while True:
        left = deadline - time.monotonic()
        if left <= 0 and not killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed = True
        if killed or select.select([read_end], [], [], max(left, 0))[0]:
            chunk = os.read(read_end, 65536)
            if not chunk:
                os.close(read_end)
                return data.decode().splitlines()
            data += chunk


def main() -> None:
    uri, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    options = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    root, rng = Store.open(uri, storage_options=options), random.Random(seed)
    on_files = uri.partition("://")[0] in ("file", uri)
    life_s = 0.02 if on_files else 1.0
    hits: collections.Counter[str] = collections.Counter()
    run = Run(root)
    for number in range(kills):
        if number % ATTEMPTS_PER_RUN == 0:
            run = Run(root.child(f"run-{seed}-{number:06d}"))
        hits[kill_one(run, rng, life_s, by_offset=on_files and number % 2 == 1)] += 1
        run.check()
    assert "torch" not in sys.modules
    sys.stdout.write(json.dumps({"kills": kills, "hits": hits}))


main()
