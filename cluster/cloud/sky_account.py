"""What SkyPilot on this machine says of itself: clouds it may use, jobs it works on. For `setup` and `doctor`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from cluster.errors import ClusterError


@dataclass(frozen=True)
class SkyJob:
    """A managed job that is not over."""

    job_id: int
    name: str
    status: str


def sky_version() -> str | None:
    """SkyPilot's version, None where it is not installed; imports nothing of it."""
    try:
        return metadata.version("skypilot")
    except metadata.PackageNotFoundError:
        return None


def is_server_running() -> bool:
    """Whether SkyPilot's API server answers; one that does not run is not started."""
    with redirect_stdout(sys.stderr):
        from sky.server import common

        try:
            status = common.get_api_server_status().status
        except Exception:  # noqa: BLE001 - whatever keeps it from answering, it does not answer
            return False
    return bool(status == common.ApiServerStatus.HEALTHY)


def active_jobs() -> list[SkyJob]:
    """Managed jobs that SkyPilot works on, of everybody who uses its server.

    Raises:
        ClusterError: the server does not answer.
    """
    with redirect_stdout(sys.stderr):
        import sky
        from sky import ClusterStatus, exceptions, jobs

        try:
            records, *_ = sky.get(jobs.queue_v2(refresh=False, skip_finished=True))
        except Exception as exc:  # SkyPilot raises dozens of types; whichever other it is, nothing was learned
            if isinstance(exc, exceptions.ClusterNotUpError) and exc.cluster_status in (None, ClusterStatus.STOPPED):
                return []  # its controller, a machine of its own, is not there, or has stopped because nothing was left
            raise ClusterError(f"SkyPilot does not list its jobs: {' '.join(str(exc).split())[:300]}") from exc
    return [_job(one) for one in records]


def check_clouds(clouds: Sequence[str]) -> tuple[str, ...]:
    """Let SkyPilot try the credentials of some clouds; starts its API server where none runs.

    Returns:
        The clouds on which it may start machines, by their small names.

    Raises:
        ClusterError: the server does not answer.
    """
    with redirect_stdout(sys.stderr):
        import sky

        try:
            sky.get(sky.check(tuple(clouds), verbose=False))
            enabled = sky.get(sky.enabled_clouds())
        except Exception as exc:  # as above
            raise ClusterError(f"SkyPilot does not check its clouds: {' '.join(str(exc).split())[:300]}") from exc
    return tuple(sorted(str(one).lower() for one in enabled))


def _job(record: Any) -> SkyJob:
    def read(name: str) -> Any:
        return record.get(name) if isinstance(record, dict) else getattr(record, name, None)

    status = read("status")
    return SkyJob(int(read("job_id")), str(read("job_name")), str(getattr(status, "value", status)))
