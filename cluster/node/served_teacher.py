"""A teacher that the run serves itself: an OpenAI-compatible server on this machine, for as long as rows are written.

It listens on 127.0.0.1 only, wants a key that is made for each start, and ends with the stage, or with the node
(served_guard.py), whatever ends that. Any program with vLLM's command line will do.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from alpaca_jobs.errors import TeacherError, TeacherUnreachable
from alpaca_jobs.spec import TeacherSpec
from alpaca_jobs.spec_server import ServerSpec
from cluster.node.ports import free_port

logger = logging.getLogger(__name__)

KEY_VARIABLE: Final = "VLLM_API_KEY"
"""Where vLLM looks for the key that it shall want. Source: vLLM's documentation, environment variables."""
VLLM_FOLDER: Final = Path("~/alpaca-jobs-vllm/bin")
"""Where a cloud's machine has it (sky/run.yaml), apart from our own packages, whose torch is another."""
_POLL_S: Final = 0.5
_ASK_LIMIT_S: Final = 5.0
_STOP_LIMIT_S: Final = 20.0
_END_HEARD_WITHIN_S: Final = 3.0
_LAST_BYTES: Final = 1500
_SAY_EVERY_S: Final = 60.0


@contextmanager
def served_teacher(
    teacher: TeacherSpec, scratch: Path, *, num_gpus: int = 0, may_wait: Callable[[], bool] = lambda: True
) -> Iterator[TeacherSpec]:
    """Serve a job's own teacher; gives the endpoint to ask, its key in this process's environment meanwhile.

    Args:
        scratch: folder for what the server prints.
        num_gpus: of this machine; with several the model is spread over them.
        may_wait: asked while the server starts; once it says no, the endpoint is given although nobody answers there.

    Raises:
        TeacherError: no such program, or the server ended before it answered; with its last words.
        TeacherUnreachable: it did not answer in `server.start_s` seconds, or ended while it was asked.
    """
    assert teacher.serve is not None
    port, key = free_port(), secrets.token_urlsafe(32)
    address = f"http://127.0.0.1:{port}/v1"
    plain = {"base_url": address, "api_key_env": KEY_VARIABLE, "serve": None, "server": ServerSpec()}
    endpoint = teacher.model_copy(update=plain)
    log = scratch / "teacher-server.log"
    guard = subprocess.Popen(
        [
            sys.executable, "-P", "-m", "cluster.node.served_guard", "--parent-pid", str(os.getpid()),
            "--log", str(log), "--", *command_line(teacher, port=port, num_gpus=num_gpus),
        ],
        stdin=subprocess.DEVNULL,
        env={**_without_ray(), KEY_VARIABLE: key},
    )  # fmt: skip
    before = os.environ.get(KEY_VARIABLE)
    os.environ[KEY_VARIABLE] = key
    try:
        _wait(teacher, f"{address}/models", key, guard, log, may_wait)
        yield endpoint
    except TeacherUnreachable as exc:
        if (code := _code_of_one_that_ends(guard)) is None:
            raise
        raise TeacherUnreachable(
            f"{_what(teacher)} ended with exit code {code}. {_last_words(log)} What it answered is stored: resume "
            "goes on from there. If it ends again, start with other data.teacher.server.args or gpus."
        ) from exc
    finally:
        if before is None:
            os.environ.pop(KEY_VARIABLE, None)
        else:
            os.environ[KEY_VARIABLE] = before
        _stop(guard)


def command_line(teacher: TeacherSpec, *, port: int, num_gpus: int) -> list[str]:
    """What is run: the job's command, then vLLM's own arguments, then the job's."""
    server, model = teacher.server, teacher.serve
    assert model is not None
    program, *first = server.command
    spread = ["--tensor-parallel-size", str(num_gpus)] if num_gpus > 1 else []
    if "--tensor-parallel-size" in server.args:
        spread = []
    return [_found(program), *first, model, "--host", "127.0.0.1", "--port", str(port), *spread, *server.args]


def _found(program: str) -> str:
    """The program's path: as the shell finds it, beside our own Python, or where a cloud's set-up has put it."""
    folders = [os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent), str(VLLM_FOLDER.expanduser())]
    return shutil.which(program, path=os.pathsep.join(folders)) or program


def _wait(
    teacher: TeacherSpec, url: str, key: str, guard: subprocess.Popen[bytes], log: Path, may_wait: Callable[[], bool]
) -> None:
    began = said = time.monotonic()
    while may_wait():
        if (code := guard.poll()) is not None:
            raise TeacherError(
                f"{_what(teacher)} ended before it answered (exit code {code}). {_last_words(log)} Check "
                "data.teacher.server: command, args, gpus."
            )
        if _answers(url, key):
            logger.info("%s answers after %.0f s", _what(teacher), time.monotonic() - began)
            return
        now = time.monotonic()
        if now - began > teacher.server.start_s:
            raise TeacherUnreachable(
                f"{_what(teacher)} did not answer within {teacher.server.start_s:g} s. {_last_words(log)} Raise "
                "data.teacher.server.start_s, or take a smaller model."
            )
        if now - said > _SAY_EVERY_S:
            said = now
            logger.info("%s does not answer yet, after %.0f s. %s", _what(teacher), now - began, _last_words(log))
        time.sleep(_POLL_S)


def _answers(url: str, key: str) -> bool:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine
    try:
        with opener.open(request, timeout=_ASK_LIMIT_S) as reply:
            return bool(reply.status == 200)
    except (OSError, ValueError):
        return False


def _what(teacher: TeacherSpec) -> str:
    return f"The server of {teacher.serve} ({' '.join(teacher.server.command)})"


def _last_words(log: Path) -> str:
    try:
        text = log.read_bytes()[-_LAST_BYTES:].decode(errors="replace")
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"Its last words: {' / '.join(lines[-3:])}." if lines else "It said nothing."


def _code_of_one_that_ends(guard: subprocess.Popen[bytes]) -> int | None:
    """The server's exit code; None if it lives. A lost connection is heard of before the end that it comes from."""
    try:
        return guard.wait(_END_HEARD_WITHIN_S)
    except subprocess.TimeoutExpired:
        return None


def _stop(guard: subprocess.Popen[bytes]) -> None:
    guard.terminate()
    try:
        guard.wait(_STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()


def _without_ray() -> dict[str, str]:
    """The server may use Ray itself, but never ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
