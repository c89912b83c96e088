"""Nodes as real processes on this machine, in pretend regions whose capacity can be refused.

A node is one marked tree of processes in a session of its own: it outlives its launcher, gets SIGTERM as a notice, and
dies as a whole. A job of several machines (`num_nodes`) has as many such trees under one mark, each with its number;
they meet on loopback. The same code serves a user without a cloud account and the tests.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from cluster.backend import NODE_COMMAND, Handle, NodeStatus
from cluster.errors import LaunchFailed, NoCapacity
from cluster.exits import Notice, write_notice
from cluster.local.node_environ import node_environ
from cluster.node.node_group import LOOPBACK, free_port
from cluster.node.ray_runtime import ray_folder
from cluster.phase import Marks, read_marks
from cluster.plan import LaunchPlan, Placement
from cluster.process_tree import (
    ATTEMPT_MARK,
    HOME_VARIABLE,
    NODE_MARK,
    RANK_MARK,
    REGION_MARK,
    RUN_MARK,
    find_marked,
    is_alive,
    kill_marked,
    new_nonce,
)
from cluster.runs.home import Home, read_json, write_json

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.05


class LocalBackend:
    """Implements `cluster.backend.Backend`.

    Args:
        home: where records, logs and scratch folders lie, and `capacity.json`.
        command: what a node runs, before `--store URI --run ID --attempt N --placement JSON --scratch DIR`.
        environ: what nodes may inherit from (see `node_environ`).
    """

    def __init__(
        self, home: Home, *, command: Sequence[str] = NODE_COMMAND, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._home, self._command, self._environ = home, tuple(command), environ
        self._children: dict[str, list[subprocess.Popen[bytes]]] = {}

    def launch(self, plan: LaunchPlan, placement: Placement, attempt: int) -> Handle:
        """Start a node, as the protocol says."""
        place = placement.name
        self._refuse_if_full(place)
        handle = Handle(plan.run_id, attempt, placement, new_nonce())
        folder = self._home.run(plan.run_id)
        scratch = folder.scratch(attempt)
        scratch.mkdir(parents=True, exist_ok=True)
        # The mark is on record before the process exists, so a launcher that dies in between loses nothing.
        record = {"run_id": plan.run_id, "attempt": attempt, "nonce": handle.nonce, "placement": placement.to_json()}
        write_json(folder.node_record(attempt), record)
        environ = node_environ(self._environ, store_uri=plan.store_uri, secrets=plan.job.secrets)
        environ |= {
            HOME_VARIABLE: str(self._home.root),
            NODE_MARK: handle.nonce,
            RUN_MARK: plan.run_id,
            ATTEMPT_MARK: str(attempt),
            REGION_MARK: place,
        }
        group = _group(placement.num_nodes)
        if len(group) > 1:
            environ["RAY_AUTH_TOKEN"] = secrets.token_hex(24)
        children = self._children[handle.nonce] = []
        try:
            with folder.node_log(attempt).open("ab") as log:
                for rank, arguments in enumerate(group):
                    own = scratch if rank == 0 else scratch / f"machine-{rank}"
                    argv = [*self._command, *_node_arguments(plan, placement, attempt, own), *arguments]
                    children.append(
                        subprocess.Popen(
                            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                            env={**environ, RANK_MARK: str(rank)}, start_new_session=True,
                        )
                    )  # fmt: skip
        except OSError as exc:
            kill_marked(handle.nonce)
            raise LaunchFailed(
                f"{place}: {self._command[0]} could not be started ({exc}). Nothing is running; check the installation."
            ) from exc
        head = children[0].pid
        write_json(folder.node_record(attempt), {**record, "pid": head, "created_at_s": _created_at_s(head)})
        return handle

    def status(self, handle: Handle) -> NodeStatus:
        """Look at the node's main process (the head's); its exit code is known to the process that launched it."""
        children = self._children.get(handle.nonce)
        if children:
            code = children[0].poll()
            return NodeStatus(is_running=code is None, exit_code=code)
        record = self._record(handle)
        return NodeStatus(is_running=record is not None and is_alive(record["pid"], record["created_at_s"]))

    def logs(self, handle: Handle, *, offset: int = 0) -> bytes:
        """What the node said, from a byte on."""
        try:
            with self._home.run(handle.run_id).node_log(handle.attempt).open("rb") as log:
                log.seek(offset)
                return log.read()
        except FileNotFoundError:
            return b""

    def marks(self, handle: Handle) -> Marks | None:
        """What the node last marked; after its disk is gone, what it held then."""
        scratch = self._home.run(handle.run_id).scratch(handle.attempt)
        record = self._record(handle)
        if record is not None and "marks" in record:
            return Marks.from_json(record["marks"])
        return read_marks(scratch) if scratch.is_dir() else None

    def notice(self, handle: Handle, notice: Notice) -> None:
        """Leave the reason in the node's scratch folder and send SIGTERM to its main process, the head's."""
        record = self._record(handle)
        if record is None or not is_alive(record["pid"], record["created_at_s"]):
            return
        write_notice(self._home.run(handle.run_id).scratch(handle.attempt), notice)
        try:
            psutil.Process(record["pid"]).send_signal(signal.SIGTERM)
        except psutil.NoSuchProcess:
            logger.debug("attempt %d ended before its notice", handle.attempt)

    def cancel(self, handle: Handle, notice: Notice) -> None:
        """Give notice, wait, kill what is left."""
        self.notice(handle, notice)
        give_up_at = time.monotonic() + notice.window_s
        while self.status(handle).is_running and time.monotonic() < give_up_at:
            time.sleep(_LOOK_EVERY_S)
        self.kill(handle)

    def kill(self, handle: Handle) -> None:
        """SIGKILL the whole tree until nothing of it is left, reap it, delete its scratch folders."""
        kill_marked(handle.nonce)
        shutil.rmtree(ray_folder(handle.nonce), ignore_errors=True)
        for child in self._children.get(handle.nonce, ()):
            child.wait(timeout=30)
        marks = self.marks(handle)
        if marks is not None and (record := self._record(handle)) is not None:
            folder = self._home.run(handle.run_id)
            write_json(folder.node_record(handle.attempt), {**record, "marks": marks.to_json()})
            shutil.rmtree(folder.scratch(handle.attempt), ignore_errors=True)

    def find(self, run_id: str) -> list[Handle]:
        """Nodes of the run with live processes that this home started, oldest attempt first."""
        folder = self._home.run(run_id)
        found = []
        for attempt in folder.node_attempts():
            record = read_json(folder.node_record(attempt))
            if record and find_marked(record["nonce"]):
                found.append(Handle(run_id, attempt, Placement.from_json(record["placement"]), record["nonce"]))
        return found

    def _record(self, handle: Handle) -> dict[str, Any] | None:
        record = read_json(self._home.run(handle.run_id).node_record(handle.attempt))
        return record if record and record["nonce"] == handle.nonce and "pid" in record else None

    def _refuse_if_full(self, place: str) -> None:
        limit = self._home.capacity(place)
        if limit is None:
            return
        running = sum(node.region == place for node in self._home.nodes())
        if running >= limit:
            raise NoCapacity(
                f"{place} has {limit} node(s) ({self._home.root / 'capacity.json'}), and {running} are running. Raise "
                "the number there, or go to another region."
            )


def _group(num_nodes: int) -> list[list[str]]:
    """What each machine is told of the others, by number."""
    if num_nodes == 1:
        return [[]]
    together = ["--node-addresses", ",".join([LOOPBACK] * num_nodes), "--ray-port", str(free_port())]
    return [[*together, "--node-rank", str(rank)] for rank in range(num_nodes)]


def _created_at_s(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:  # it has died already, and was reaped by nobody but psutil's own look
        return 0.0


def _node_arguments(plan: LaunchPlan, placement: Placement, attempt: int, scratch: Path) -> list[str]:
    return [
        "--store", plan.store_uri, "--run", plan.run_id, "--attempt", str(attempt),
        "--placement", json.dumps(placement.to_json()), "--scratch", str(scratch),
    ]  # fmt: skip
