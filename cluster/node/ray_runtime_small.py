"""Ray's own processes, as few as the work needs: its registry (gcs_server), one raylet a machine, and the workers.

`ray.init` starts six Python programs beside them, which together cost more processor time than training's imports and
which two of its waits are for: a dashboard that serves nothing, the autoscaler's monitor, the log monitor, and the
raylet's two agents, one of which imports every module of Ray's dashboard, Serve and Train. Nothing here asks any of
them. So a node of ours does not start the first three, and the raylet, which insists on two agents, is given idle
processes in their place, whose ports are on record as "not in use" (-1), as Ray's own minimal installation has it.

Imported once the environment is as Ray is to have it (`private_environment`): some of it is read while Ray is imported.
Measured with Ray 2.60.0: 2.2 s of processor time with two workers, 8.9 s as Ray starts by itself. A Ray whose inner
parts go by other names starts as it always does.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray._private.node
import ray._private.services
import ray._raylet

from cluster.node.idle import without_agents

logger = logging.getLogger(__name__)

_PORTS = (
    "METRICS_AGENT_PORT_NAME", "METRICS_EXPORT_PORT_NAME", "DASHBOARD_AGENT_LISTEN_PORT_NAME",
    "RUNTIME_ENV_AGENT_PORT_NAME",
)  # fmt: skip
_NOT_IN_USE = -1
_OPTIONAL = "ray.dashboard.optional_deps"


class SmallNode(ray._private.node.Node):  # type: ignore[misc]
    """A machine's Ray with nothing beside what was said above. Used as Ray uses its own class."""

    def start_api_server(self, **_: Any) -> None:
        """No dashboard."""

    def start_monitor(self) -> None:
        """No autoscaler: machines are what SkyPilot gives."""

    def start_log_monitor(self) -> None:
        """Nobody reads workers' logs through Ray."""

    def start_raylet(self, *args: Any, **kwargs: Any) -> None:
        """As Ray does, with idle processes for agents."""
        with _as_minimal(), _starting(self._quiet):
            super().start_raylet(*args, **kwargs)

    def _quiet(self, command: Sequence[str]) -> list[str]:
        """The raylet's command line without real agents; as it was where it does not look as expected."""
        names = [getattr(ray._raylet, name, None) for name in _PORTS]
        persist = getattr(ray._raylet, "persist_port", None)
        quiet = without_agents(list(command))
        if quiet is None or persist is None or None in names:
            logger.info("this version of Ray starts its agents; its start takes some seconds longer")
            return list(command)
        for name in names:
            persist(self._session_dir, self._node_id, name, _NOT_IN_USE)
        return quiet


@contextmanager
def small_nodes() -> Iterator[None]:
    """Within it, `ray.init` makes nodes of ours: it has no parameter for which processes are started."""
    before = ray._private.node.Node
    ray._private.node.Node = SmallNode
    try:
        yield
    finally:
        ray._private.node.Node = before


@contextmanager
def _as_minimal() -> Iterator[None]:
    """Within it, Ray takes itself for its minimal installation, so that it does not try out here whether everything
    can be imported that its dashboard needs: a second of processor time.
    """
    before = sys.modules.get(_OPTIONAL)
    sys.modules[_OPTIONAL] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
    try:
        yield
    finally:
        del sys.modules[_OPTIONAL]
        if before is not None:
            sys.modules[_OPTIONAL] = before


@contextmanager
def _starting(change: Callable[[Sequence[str]], list[str]]) -> Iterator[None]:
    """Within it, the command lines of the processes that Ray starts are changed."""
    before = ray._private.services.start_ray_process

    def start(command: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        return before(change(command), *args, **kwargs)

    ray._private.services.start_ray_process = start
    try:
        yield
    finally:
        ray._private.services.start_ray_process = before
