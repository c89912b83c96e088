"""Starting a run's supervisor, detached from the terminal and from whoever starts it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping

import psutil

from cluster.errors import LaunchFailed
from cluster.local.backend import LocalBackend
from cluster.process_tree import NODE_MARK, is_alive, kill_marked
from cluster.runs.home import Home, RunFolder, write_json
from cluster.runs.session import Session

_SUPERVISOR_START_S = 60.0
# Forks once more and leads a session of its own, so that the supervisor is nobody's child and no terminal's.
_DETACH = """
import os, sys
if pid := os.fork():
    print(pid)
    sys.stdout.flush()
    os._exit(0)
os.dup2(2, 1)
os.setsid()
os.execv(sys.argv[1], sys.argv[1:])
"""


def start_supervisor(folder: RunFolder, session: Session, home: Home, environ: Mapping[str, str]) -> None:
    """Start the supervisor, detached, and wait until it has taken the run; nothing of it is left if it does not.

    Raises:
        LaunchFailed: it did not; what it said is kept in this home's logs, as the run's own folder may go.
    """
    folder.make()
    write_json(folder.session, session.to_json())
    said_before = folder.supervisor_log.stat().st_size if folder.supervisor_log.exists() else 0
    pid = None
    try:
        pid = _detach_supervisor(folder, home, environ)
        give_up_at = time.monotonic() + _SUPERVISOR_START_S
        while pid is None or folder.last_supervisor() != pid:
            if pid is None or not _lives(pid) or time.monotonic() > give_up_at:
                why = "its process could not be made" if pid is None else "its process ended at once"
                if pid is not None and _lives(pid):
                    why = f"after {_SUPERVISOR_START_S:.0f} s it had not begun"
                said = folder.supervisor_log.read_bytes()[said_before:].decode(errors="replace")
                raise LaunchFailed(_failure_words(folder.run_id, why, said, home))
            time.sleep(0.02)
    except BaseException:
        if pid is not None and _lives(pid):
            psutil.Process(pid).kill()
        for handle in LocalBackend(home).find(folder.run_id):
            kill_marked(handle.nonce)
        raise


def _failure_words(run_id: str, why: str, said: str, home: Home) -> str:
    """What a user is told about a supervisor that did not start; all it said goes into a file that stays."""
    text = f"The supervisor of {run_id}, which keeps a run going, did not start: {why}. Nothing is left running."
    last = last_meaningful_line(said)
    if last is None:
        return f"{text} It said nothing; see whether this machine has memory and processes to spare, and try again."
    log = home.root / "logs" / f"supervisor-{run_id}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(said, encoding="utf-8")
    return f"{text} Mend what it says, and try again.\n  it said last: {last}\n  all it said:  {log}"


def last_meaningful_line(said: str) -> str | None:
    """The last line that says something: no heading, and nothing that belongs to one; None if there is no text."""
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if not line[0].isspace() and not line.endswith(":")]
    return next(reversed(telling or lines), None)


def _detach_supervisor(folder: RunFolder, home: Home, environ: Mapping[str, str]) -> int | None:
    """Start the supervisor's process; returns its pid, None if not even that could be."""
    argv = [sys.executable, "-S", "-c", _DETACH, sys.executable, "-P", "-m", "cluster.local.supervisor"]
    argv += ["--home", str(home.root), "--run", folder.run_id]
    inherited = {name: value for name, value in environ.items() if name != NODE_MARK}
    with folder.supervisor_log.open("ab") as log:
        detached = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=inherited, check=False
        )
    return int(detached.stdout) if detached.stdout.strip().isdigit() else None


def _lives(pid: int) -> bool:
    try:
        return is_alive(pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return False
