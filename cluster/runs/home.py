"""What this machine remembers about runs: $ALPACA_JOBS_HOME (default ~/.alpaca-jobs).

    capacity.json                how many nodes each pretend region has; missing means as many as you like
    stores.json                  stores that runs were started in, newest first
    runs/<run_id>/session.json   what the supervisor was told: plan, limits, node command
    runs/<run_id>/supervisor.pid, .lock, .log, start.lock
    runs/<run_id>/end.json       how its newest session ended
    runs/<run_id>/node-000001.json, node-000001.log, scratch-000001/

Nothing here is state of the run: with all of it gone, `resume` goes on from the store.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from cluster.errors import RunActive, WrongInput
from cluster.process_tree import HOME_VARIABLE, MarkedNode, find_nodes, is_alive
from cluster.runs.run_ids import check_run_id


@dataclass(frozen=True)
class Home:
    """The folder of this user's state; nothing is made before something is written."""

    root: Path

    @classmethod
    def default(cls, environ: Mapping[str, str] = os.environ) -> Home:
        """The folder named by ALPACA_JOBS_HOME, or ~/.alpaca-jobs."""
        named = environ.get(HOME_VARIABLE)
        return cls(Path(named).expanduser().absolute() if named else Path.home() / ".alpaca-jobs")

    def run(self, run_id: str) -> RunFolder:
        """The folder of one run, whether it exists or not.

        Raises:
            WrongInput: no run can be called that.
        """
        return RunFolder(self.root / "runs" / check_run_id(run_id))

    def runs(self) -> list[RunFolder]:
        """The runs that were started or resumed from here, the newest start first."""
        folders = [path for path in (self.root / "runs").glob("*") if path.is_dir()]
        return [RunFolder(path) for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)]

    def stores(self) -> list[str]:
        """Stores that runs were started in, newest first."""
        known = read_json(self.root / "stores.json")
        return [str(uri) for uri in known["stores"]] if known else []

    def remember_store(self, uri: str) -> None:
        """Put a store at the top of `stores()`."""
        write_json(self.root / "stores.json", {"stores": [uri, *(one for one in self.stores() if one != uri)]})

    def forget_store(self, uri: str) -> None:
        """Take a store out of `stores()`; again without harm."""
        if uri in (known := self.stores()):
            write_json(self.root / "stores.json", {"stores": [one for one in known if one != uri]})

    def capacity(self, place: str) -> int | None:
        """How many nodes a pretend region such as `local/a` has right now; None for no limit.

        Raises:
            WrongInput: capacity.json is not an object of counts.
        """
        path = self.root / "capacity.json"
        counts = read_json(path)
        if counts is None or place not in counts:
            return None
        count = counts[place]
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise WrongInput(f'{path}: {place} is {count!r}, but a count of nodes is wanted, such as {{"{place}": 0}}')
        return count

    def nodes(self) -> list[MarkedNode]:
        """Nodes that were started from here and have live processes."""
        return [node for node in find_nodes() if node.home == str(self.root)]

    def leftovers(self) -> list[MarkedNode]:
        """Nodes started from here that no supervisor watches any more: theirs was killed."""
        return [node for node in self.nodes() if self.run(node.run_id).supervisor_pid() is None]


@dataclass(frozen=True)
class RunFolder:
    """One run's files on this machine."""

    path: Path

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.path.name

    @property
    def session(self) -> Path:
        """What the supervisor is told."""
        return self.path / "session.json"

    @property
    def last_word(self) -> Path:
        """How the newest session ended; the store has it too, unless the store was what failed."""
        return self.path / "end.json"

    @property
    def supervisor_log(self) -> Path:
        """What the supervisor says."""
        return self.path / "supervisor.log"

    @property
    def supervisor_pid_file(self) -> Path:
        """Who the last supervisor was: pid and start time."""
        return self.path / "supervisor.pid"

    def node_log(self, attempt: int) -> Path:
        """What the attempt's node says."""
        return self.path / f"node-{attempt:06d}.log"

    def node_record(self, attempt: int) -> Path:
        """Who the attempt's node is: mark, pid, place."""
        return self.path / f"node-{attempt:06d}.json"

    def scratch(self, attempt: int) -> Path:
        """The attempt's own disk; gone with the node."""
        return self.path / f"scratch-{attempt:06d}"

    def node_attempts(self) -> list[int]:
        """Attempts whose node was started here, oldest first."""
        return sorted(int(path.stem.removeprefix("node-")) for path in self.path.glob("node-??????.json"))

    def make(self) -> None:
        """Make the folder, readable by this user only."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def supervisor_pid(self) -> int | None:
        """Pid of the supervisor that watches this run from this machine, None if there is none."""
        body = read_json(self.supervisor_pid_file)
        if body and is_alive(body["pid"], body["created_at_s"]):
            return int(body["pid"])
        return None

    def last_supervisor(self) -> int | None:
        """Pid of the supervisor that took the run last, alive or not; None if there never was one."""
        body = read_json(self.supervisor_pid_file)
        return int(body["pid"]) if body else None

    @contextmanager
    def starting(self) -> Iterator[None]:
        """While it is held, no other command on this machine starts a supervisor for this run.

        Raises:
            RunActive: another command is at it.
        """
        self.make()
        with (self.path / "start.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunActive(
                    f"{self.run_id} is being started by another command on this machine right now. Watch it with "
                    f"`alpaca-jobs logs {self.run_id} -f`."
                ) from None
            yield

    def lock(self, *, timeout_s: float = 2.0) -> SupervisorLock:
        """Become the one supervisor of this run on this machine.

        Raises:
            RunActive: another one is.
        """
        return SupervisorLock(self, timeout_s)


class SupervisorLock:
    """Held by a supervisor as long as it lives; the kernel gives it back even after SIGKILL."""

    def __init__(self, folder: RunFolder, timeout_s: float) -> None:
        folder.make()
        # Python opens files non-inheritable, so the nodes do not hold the lock after their supervisor is gone.
        self._file = (folder.path / "supervisor.lock").open("a")
        give_up_at = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    self._file.close()
                    raise RunActive(
                        f"{folder.run_id} already has a supervisor on this machine (pid {folder.supervisor_pid()}). "
                        f"Watch it with `alpaca-jobs logs {folder.run_id} -f`, or stop it with `alpaca-jobs cancel "
                        f"{folder.run_id}`."
                    ) from None
                time.sleep(0.05)
        me = psutil.Process()
        write_json(folder.supervisor_pid_file, {"pid": me.pid, "created_at_s": me.create_time()})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()  # the pid file stays: it says that a supervisor was here, and is_alive that it is not now


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a file of ours; None if it is not there.

    Raises:
        WrongInput: it does not hold a JSON object.
    """
    try:
        body = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as exc:
        raise WrongInput(f"{path}, line {exc.lineno}: not JSON ({exc.msg}). Repair the file, or delete it.") from exc
    if not isinstance(body, dict):
        raise WrongInput(f"{path} holds {type(body).__name__}, but a JSON object is wanted. Repair it, or delete it.")
    return body


def write_json(path: Path, body: Mapping[str, Any]) -> None:
    """Replace a file of ours as a whole, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(body, indent=1))
    temporary.replace(path)
