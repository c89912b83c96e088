"""A real node without Ray and torch: claims, renews its lease, commits steps and ends as it is told to.

python fake_node.py BEHAVIOUR --store URI --run ID --attempt N --placement JSON --scratch DIR

BEHAVIOUR is JSON: steps, step_s, save_every, and per attempt number what goes wrong: {"1": {"crash_at": 7}}.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.errors import AlreadyExists, CheckpointError
from checkpoints.fence import Fence, LeaseKeeper
from checkpoints.keys import CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.reader import list_commits
from checkpoints.store import Store
from checkpoints.writer import CommitWriter
from cluster.events import EventWriter, utc_now
from cluster.exits import NODE_EXITS, Notice, read_notice
from cluster.phase import Phase, PhaseMarker
from cluster.recovery import StopReason


class FakeNode:
    def __init__(self, behaviour: dict[str, Any], given: dict[str, str]) -> None:
        self.number = int(given["attempt"])
        self.how = {"steps": 12, "step_s": 0.05, "save_every": 4, **behaviour, **behaviour.get(given["attempt"], {})}
        self.scratch = Path(given["scratch"])
        self.placement = json.loads(given["placement"])
        self.store = Store.open(given["store"]).child(given["run"])
        self.log = AttemptLog(self.store, LAYOUT)
        self.notice: Notice | None = None
        self.saved = 0

    def run(self) -> StopReason:
        signal.signal(signal.SIGTERM, self.take_notice)
        if "leave_before_claim" in self.how:
            os._exit(self.how["leave_before_claim"])
        if self.how.get("child"):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        marker = PhaseMarker(self.scratch)
        try:
            if self.how.get("other_was_faster"):
                self.log.claim(self.number, {"placement": self.placement, "node": "other"})
            mark = os.environ["ALPACA_JOBS_NODE"]
            self.log.claim(self.number, {"placement": self.placement, "started_at": utc_now(), "node": mark})
        except AlreadyExists:
            return StopReason.SUPERSEDED
        lease = LeaseKeeper(self.log, self.number, interval_s=0.1, lease_s=5, on_lost=self.leave)
        lease.start()
        events = EventWriter(self.store, self.number, "node", flush_s=0.1)
        counting = counting_commits(self.log.records(), list_commits(self.store, LAYOUT), LAYOUT)
        base = counting[0] if counting else None
        self.log.put_base(self.number, base)
        marker.enter(Phase.STEP)
        self.saved = base.position if base else 0
        reason = self.work(base.position if base else 0, marker, events)
        end = {"stop_reason": reason.value, "ended_at": utc_now(), "by": "node", "seconds": 1.0}
        lease.stop()
        self.log.put_end(self.number, end | self.how.get("end", {}))
        events.close()
        return reason

    def work(self, step: int, marker: PhaseMarker, events: EventWriter) -> StopReason:
        while step < self.how["steps"]:
            if self.how.get("end"):
                return StopReason(self.how["end"]["stop_reason"])
            if self.notice is not None and not self.how.get("deaf"):
                self.save(step, marker, events)
                return self.notice.reason
            time.sleep(self.how["step_s"])
            step += 1
            marker.reached("train", step)
            events.emit(
                "step", step=step, loss=1 / step, tokens=100 * self.how["step_s"], seconds=self.how["step_s"],
                tokens_per_second=100.0, tokens_per_second_per_gpu=100.0, total_steps=self.how["steps"],
            )  # fmt: skip
            if step == self.how.get("crash_at"):
                os._exit(1)
            if step == self.how.get("freeze_at"):
                os.kill(os.getpid(), signal.SIGSTOP)
            if step % self.how["save_every"] == 0:
                self.save(step, marker, events)
        CommitWriter(self.store, LAYOUT, CommitRef("export", 0, self.number)).publish(meta={})
        return StopReason.DONE

    def save(self, step: int, marker: PhaseMarker, events: EventWriter) -> None:
        if step == self.saved:
            return
        self.saved = step
        marker.saving(step)
        writer = CommitWriter(
            self.store, LAYOUT, CommitRef("train", step, self.number), fence=Fence(self.log, self.number)
        )
        writer.put("state.bin", b"state")
        writer.publish(meta={})
        marker.saving(None)
        events.emit("save", position=step, stall_s=0.001, seconds=0.002, bytes=5, committed=True)

    def take_notice(self, *_: object) -> None:
        self.notice = read_notice(self.scratch)

    def leave(self, error: CheckpointError) -> None:
        os._exit(NODE_EXITS[StopReason.SUPERSEDED])


def main() -> int:
    behaviour = json.loads(sys.argv[1])
    names, values = sys.argv[2::2], sys.argv[3::2]
    given = {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}
    return NODE_EXITS[FakeNode(behaviour, given).run()]


if __name__ == "__main__":
    os._exit(main())
