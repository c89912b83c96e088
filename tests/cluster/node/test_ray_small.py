"""Ray runs with the processes that the work needs: no dashboard, monitor or agent, which every start would pay for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cluster.node.idle import AGENT_FLAGS, without_agents

PROGRAM = """
import json, os, psutil, string
from cluster.node.ray_runtime import RayRuntime

runtime = RayRuntime(num_cpus=2, name=f"sm{os.getpid()}", env={})
runtime.start()
[actor] = runtime.actors(string.Formatter, 1, concurrency=1)
[answer] = runtime.results([runtime.call(actor, "format", "{}-{}", 4, 2)])
started = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
pids = [child.pid for child in psutil.Process().children(recursive=True)]
runtime.end_actors([actor])
runtime.stop()
_, left = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)
print(json.dumps({"answer": answer, "started": started, "left": [str(one) for one in left]}))
"""


@pytest.mark.process
def test_ray_is_its_registry_a_raylet_and_workers() -> None:
    environ = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["answer"] == "4-2"
    assert found["left"] == []
    names = ("gcs_server", "raylet", "idle.py", "ray::")
    programs = [command.split(" --")[0] for command in found["started"]]
    kinds = [next((name for name in names if name in program), program) for program in programs]
    assert {kind: kinds.count(kind) for kind in set(kinds) - {"ray::"}} == {"gcs_server": 1, "raylet": 1, "idle.py": 2}


def test_a_raylet_gets_idle_agents_only_where_its_command_line_is_the_known_one() -> None:
    known = ["raylet", "--node=1", *(f"{flag}python agent.py --port=1" for flag in AGENT_FLAGS)]
    quiet = without_agents(known)
    assert quiet is not None
    assert quiet[:2] == known[:2]
    assert [part.partition("=")[0] + "=" for part in quiet[2:]] == list(AGENT_FLAGS)
    assert all(part.endswith("idle.py") for part in quiet[2:])
    assert without_agents(known[:-1]) is None
    assert without_agents(["gcs_server"]) is None
