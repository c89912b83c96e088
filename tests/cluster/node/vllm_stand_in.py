"""A stand-in for `vllm serve`: the offline demo teacher under vLLM's command line, with vLLM's key. A test helper.

    python tests/cluster/node/vllm_stand_in.py serve MODEL --host 127.0.0.1 --port N [--wait S] [--leave]

It forks a child, as vLLM's engine is one, and writes down both pids (--starts), so that tests see who outlives whom.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from alpaca_jobs.generation import offline_teacher
from alpaca_jobs.generation.offline_teacher import OfflineTeacher


class _Handler(offline_teacher._Handler):
    server: ServedTeacher

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.headers.get("authorization") == f"Bearer {self.server.key}":
            return True
        self.send_error(401)
        return False


class ServedTeacher(OfflineTeacher):
    """Wants the key; knows one model by its name; may die in the middle of its work."""

    def __init__(self, model: str, die_after: int | None, **options: Any) -> None:
        super().__init__(refuses_some=False, **options)
        self.RequestHandlerClass = _Handler
        self.key = os.environ["VLLM_API_KEY"]
        self.model, self.left = model, die_after

    def answer(self, body: dict[str, Any], *, is_chat: bool) -> tuple[int, dict[str, Any], dict[str, str]]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                sys.stderr.write("engine core died: out of memory\n")
                os._exit(3)
        if body["model"] != self.model:
            return 404, {"error": {"message": f"The model {body['model']} does not exist."}}, {}
        return super().answer({**body, "model": "offline-demo"}, is_chat=is_chat)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--wait", type=float, default=0.0)
    parser.add_argument("--leave", action="store_true")
    parser.add_argument("--die-after", type=int)
    parser.add_argument("--starts", type=Path)
    given = parser.parse_args()
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if given.starts:
        told = {"pids": [os.getpid(), engine.pid], "key": os.environ["VLLM_API_KEY"], "port": given.port,
                "host": given.host, "tensor_parallel": given.tensor_parallel_size}  # fmt: skip
        with given.starts.open("a") as file:
            file.write(json.dumps(told) + "\n")
    time.sleep(given.wait)
    if given.leave:
        sys.stderr.write("ValueError: the model does not fit into the GPU's memory\n")
        sys.exit(1)
    ServedTeacher(given.model, given.die_after, host=given.host, port=given.port).serve_forever(0.05)


if __name__ == "__main__":
    main()
