"""Joining another machine's Ray: this machine's part of a Ray that the head started."""

from __future__ import annotations

import os
import time
from typing import Any

from cluster.errors import RayFailure
from cluster.node.node_group import NodeGroup
from cluster.node.ray_runtime import OBJECT_STORE_BYTES, node_resource, private_environment


class RayMember:
    """What `ray start --address=... --block` does, in this process: that command refuses to meet on loopback.

    Args:
        num_cpus, num_gpus: what Ray may hand out of this machine.
    """

    def __init__(self, *, num_cpus: int, num_gpus: int = 0, group: NodeGroup) -> None:
        self._num_cpus, self._num_gpus, self._group = num_cpus, num_gpus, group
        self._node: Any = None

    def join(self) -> float:
        """Start this machine's Ray processes and connect them to the head; returns the seconds that took.

        Raises:
            RayFailure: the head refused, or something did not come up.
        """
        began = time.monotonic()
        os.environ.update(private_environment(self._group))
        import ray  # noqa: F401 - waits for the thread of `import_ray`: a submodule would be imported beside it, and fail
        from ray._private.parameter import RayParams

        from cluster.node.ray_runtime_small import SmallNode

        try:
            params = RayParams(
                gcs_address=self._group.meeting_point,
                node_ip_address=self._group.address,
                num_cpus=self._num_cpus,
                num_gpus=self._num_gpus,
                resources=node_resource(self._group.rank),
                object_store_memory=OBJECT_STORE_BYTES,
                include_log_monitor=False,
            )
            self._node = SmallNode(params, head=False, shutdown_at_exit=False, spawn_reaper=True)
        except Exception as exc:  # Ray raises a dozen unrelated types here
            raise RayFailure(f"This machine could not join Ray at {self._group.meeting_point}: {exc}.") from exc
        return time.monotonic() - began

    @property
    def is_up(self) -> bool:
        """Whether all of its processes live; they end by themselves some time after the head's."""
        return self._node is not None and not self._node.dead_processes()

    def leave(self) -> None:
        """End this machine's Ray processes. Idempotent."""
        if self._node is not None:
            self._node.kill_all_processes(check_alive=False, allow_graceful=False)
            self._node = None
