"""Ray on a node: started privately, stopped completely; actors for teacher requests, workers for training.

With ray_runtime_member.py (a machine that joins) and ray_runtime_small.py (which of Ray's processes there are) the one
file that imports ray. Ray runs on its own ports, with a token minted for this attempt and handed over by environment
alone, so neither a stranger on the network nor another user of the machine can submit work to it. Ray never restarts
anything of ours: every start of the training workers is a new attempt (DESIGN.md), because Ray's own registry of
checkpoints lags behind what was committed.

The training workers are plain actors in a placement group, not Ray Train: benchmarks/ray_workers.py measures both
from the kill of a worker to the next first step, and docs/BENCHMARKS.md holds the figures.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cluster.errors import RayFailure
from cluster.node.memory_kills import memory_kills
from cluster.node.node_group import NodeGroup, interface_of
from cluster.node.ray_deaths import death_words

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 256 * 2**20  # rows and token ids are tens of MB; Ray's own default takes 30 % of the memory
_START_TIMEOUT_S = 120.0
_MEET_TIMEOUT_S = 300.0
_WORKER_CALLS: Final = 4  # that one worker answers at once: its training, and what the driver asks meanwhile
_TOKEN = "RAY_AUTH_TOKEN"


class RayRuntime:
    """One Ray, owned by this process, for the length of one attempt.

    Args:
        num_cpus: logical CPUs Ray may hand out; actors here reserve one each, whatever they really use.
        num_gpus: GPUs on this node.
        name: short and unique on this machine; names the folder of Ray's sockets and logs.
        env: environment of every Ray process, secrets included, never logged.
        group: the machines of the attempt, this one being the head.
    """

    def __init__(
        self, *, num_cpus: int, num_gpus: int = 0, name: str, env: Mapping[str, str], group: NodeGroup | None = None
    ) -> None:
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self._env = dict(env)
        self._group_of_nodes = group or NodeGroup()
        self.folder = ray_folder(name)
        self._group: Any = None
        self._memory_kills = memory_kills()

    def start(self) -> float:
        """Start Ray and connect to it, on loopback if this machine is alone; returns the seconds that took.

        Raises:
            RayFailure: Ray did not come up, or a machine of the group did not join.
        """
        began = time.monotonic()
        group = self._group_of_nodes
        os.environ.update(private_environment(group), **self._env)
        if group.ray_port:
            os.environ["RAY_GCS_SERVER_PORT"] = str(group.ray_port)
        import ray

        from cluster.node.ray_runtime_small import small_nodes

        self.folder.mkdir(parents=True, exist_ok=True)
        on_notice = signal.getsignal(signal.SIGTERM)
        try:
            with small_nodes():
                ray.init(
                    num_cpus=self._num_cpus,
                    num_gpus=self._num_gpus,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    resources=node_resource(group.rank),
                    _node_ip_address=group.address if group.size > 1 else None,
                    _temp_dir=str(self.folder),
                    configure_logging=False,
                    log_to_driver=False,
                )
        except Exception as exc:  # Ray raises a dozen unrelated types here
            raise RayFailure(f"Ray did not start in {self.folder}: {exc}. Its logs are there.") from exc
        signal.signal(signal.SIGTERM, on_notice)  # Ray's own handler would end this process at the notice
        self._wait_for_members()
        return time.monotonic() - began

    def member_ports(self) -> list[tuple[str, int]]:
        """Host and port of every other machine's Ray, by rank from 1."""
        import ray

        ports = {}
        for node in ray.nodes():
            ranks = [rank for rank in range(1, self._group_of_nodes.size) if _resource_name(rank) in node["Resources"]]
            if node["Alive"] and ranks:
                ports[ranks[0]] = (str(node["NodeManagerAddress"]), int(node["NodeManagerPort"]))
        return [ports[rank] for rank in sorted(ports)]

    def _wait_for_members(self) -> None:
        wanted, give_up_at = self._group_of_nodes.size - 1, time.monotonic() + _MEET_TIMEOUT_S
        while (found := len(self.member_ports()) if wanted else 0) < wanted:
            if time.monotonic() > give_up_at:
                raise RayFailure(
                    f"{found} of the {wanted} other machines joined {self._group_of_nodes.meeting_point} within "
                    f"{_MEET_TIMEOUT_S:.0f} s. Their logs say why; the port has to be open between them."
                )
            time.sleep(0.1)

    def actors(
        self, factory: type, count: int, *args: Any, concurrency: int, cpus: int = 1, **kwargs: Any
    ) -> list[Any]:
        """Start `count` independent actors of a class; each runs up to `concurrency` calls at once."""
        import ray

        remote = ray.remote(factory)
        return [
            remote.options(num_cpus=cpus, max_restarts=0, max_task_retries=0, max_concurrency=concurrency).remote(
                *args, **kwargs
            )
            for _ in range(count)
        ]

    def call(self, actor: Any, method: str, *args: Any) -> Any:
        """Start one call of an actor's method; `wait` and `result` take what this returns."""
        return getattr(actor, method).remote(*args)

    def peer(self, actor: Any) -> RayPeer:
        """An actor as other actors may be handed it."""
        return RayPeer(actor)

    def worker_group(self, factory: type, count: int, *, gpus_each: int = 0) -> list[Any]:
        """Start `count` workers together or not at all (a placement group), in rank order, the same number on every
        machine: the first ranks on the head, the next on machine 1, and so on.
        """
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        each = -(-count // self._group_of_nodes.size)
        needs: dict[str, float] = {"CPU": 1.0, **({"GPU": float(gpus_each)} if gpus_each else {})}
        bundles = [{**needs, _resource_name(rank // each): 1.0} for rank in range(count)]
        self._group = placement_group(bundles, strategy="PACK")
        if not self._group.wait(_START_TIMEOUT_S):  # not `ready()`, which is a task and takes a process
            raise RayFailure(f"Ray could not place {count} workers of {needs} within {_START_TIMEOUT_S:.0f} s.")
        remote = ray.remote(factory)
        return [
            remote.options(
                num_cpus=1,
                num_gpus=gpus_each,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=_WORKER_CALLS,
                name=f"rank {rank}",  # which Ray names where it dies
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank),
            ).remote(rank)
            for rank in range(count)
        ]

    def share(self, value: object) -> Any:
        """Put a value into Ray's object store once, to be read by many workers without copies."""
        import ray

        return ray.put(value)

    def wait(self, calls: Sequence[Any], *, timeout_s: float) -> tuple[list[Any], list[Any]]:
        """The calls that are finished, and the rest; returns as soon as one is finished or the time is up."""
        import ray

        if not calls:
            time.sleep(timeout_s)
            return [], []
        done, rest = ray.wait(list(calls), num_returns=1, timeout=timeout_s)
        if done and rest:
            more, rest = ray.wait(rest, num_returns=len(rest), timeout=0)
            done = [*done, *more]
        return done, rest

    def result(self, call: Any) -> Any:
        """The value of one call.

        Raises:
            RayFailure: the process behind it died. An error raised inside the call is raised as itself.
            MemoryError: it died because the machine's memory was full.
        """
        import ray

        try:
            return ray.get(call)
        except ray.exceptions.RayTaskError as exc:
            cause = exc.cause
            if isinstance(cause, BaseException):
                raise cause from exc
            raise
        except ray.exceptions.OutOfMemoryError as exc:
            raise MemoryError(f"Ray ended a process for this machine's memory: {_first_line(exc)}") from exc
        except ray.exceptions.RayError as exc:
            words = death_words(str(exc), self.folder)
            if memory_kills() > self._memory_kills:
                raise MemoryError(f"{words} The system has killed a process here for memory.") from exc
            raise RayFailure(words) from exc

    def results(self, calls: Iterable[Any]) -> list[Any]:
        """The values of several calls, in order; the first failure is raised, whichever call it is."""
        pending = list(calls)
        order = list(pending)
        while pending:
            done, pending = self.wait(pending, timeout_s=1.0)
            for call in done:
                self.result(call)
        return [self.result(call) for call in order]

    def end_actors(self, actors: Iterable[Any]) -> None:
        """Kill actors at once; used when their stage is over."""
        import ray

        for actor in actors:
            ray.kill(actor)
        if self._group is not None:
            ray.util.remove_placement_group(self._group)
            self._group = None

    def stop(self) -> None:
        """End every process of this Ray and remove its folder. Idempotent."""
        import ray

        if ray.is_initialized():
            ray.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


class RayPeer:
    """An actor as another actor calls it."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def ask(self, method: str, *args: Any) -> Any:
        """Await one of its methods."""
        return await getattr(self._handle, method).remote(*args)


def import_ray(group: NodeGroup) -> None:
    """Begin to import Ray, in a thread: what asks the store meanwhile is mostly waiting. `start` goes on from there."""
    with suppress(RayFailure):  # which `start` raises again, where it can be told as the attempt's end
        os.environ.update(private_environment(group))  # some of it is read by the import
    threading.Thread(target=importlib.import_module, args=("ray",), name="import-ray", daemon=True).start()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def ray_folder(name: str) -> Path:
    """Where a node's Ray keeps its sockets and logs: short, because a socket's path may have 107 bytes at most."""
    return Path(tempfile.gettempdir()) / f"aj-ray-{name[:12]}"


def node_resource(rank: int) -> dict[str, float]:
    """A resource that only machine `rank` has, so that ranks can be placed by machine."""
    return {_resource_name(rank): 100_000.0}


def _resource_name(rank: int) -> str:
    return f"machine_{rank}"


def private_environment(group: NodeGroup) -> dict[str, str]:
    """What makes Ray refuse callers without our token, report to nobody, and listen on loopback only where it can.

    With the "cluster" switch off, Ray takes 127.0.0.1 as the node's address and binds every server to it; with it on,
    even `_node_ip_address="127.0.0.1"` is replaced by the machine's outward address (ray/_private/services.py,
    2.60.0). The switch's name speaks of other systems; its effect on Linux was measured with `ss -ltnp`. Machines that
    are really apart have to leave it on; the token is then what keeps others out.

    Raises:
        RayFailure: several machines, and no token that all of them know.
    """
    token = os.environ.get(_TOKEN)
    if token is None and group.size > 1:
        raise RayFailure(f"{group.size} machines have to know one token, but {_TOKEN} is not set on this one.")
    environ = {
        "RAY_AUTH_MODE": "token",
        _TOKEN: token or secrets.token_hex(24),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers run this very environment, however this process was started
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if group.is_loopback:
        return {**environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GLOO_SOCKET_IFNAME": "lo"}
    # A machine's own name may mean 127.0.1.1 (Debian), where gloo would then wait for the others in vain.
    name = interface_of(group.address)
    return environ | ({"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name} if name else {})
