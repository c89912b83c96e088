"""Managed jobs of SkyPilot: submit a rendered task, see how its job stands, cancel it. The client's side of SkyPilot.

One run may have several managed jobs, one after the other: `resume` submits the next one, under the same name, which is
the run's id. With cluster/cloud/sky_plugin.py the only file that imports sky; import this one late, it takes seconds.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from cluster.errors import ClusterError, LaunchFailed, WrongInput

logger = logging.getLogger(__name__)

_PLUGIN_NAME = "alpaca-jobs"


@dataclass(frozen=True)
class JobStatus:
    """How a run's newest managed job stands.

    Attributes:
        job_id: SkyPilot's number, as `sky jobs logs` takes it.
        status: SkyPilot's word: PENDING, STARTING, RUNNING, RECOVERING, SUCCEEDED, FAILED...
        is_over: whether SkyPilot does nothing for it any more.
        reason: why it failed, in SkyPilot's words; empty if it did not.
    """

    job_id: int
    status: str
    is_over: bool
    reason: str


class SkyJobs:
    """SkyPilot's managed jobs, through whichever API server this machine uses; a local one is started if need be.

    Raises:
        WrongInput: SkyPilot is not installed here (our own folder sky/ is not it).
    """

    def __init__(self) -> None:
        try:
            self.version = metadata.version("skypilot")
        except metadata.PackageNotFoundError as exc:
            raise WrongInput("SkyPilot is not installed, and this needs it: pip install 'alpaca-jobs[sky]'") from exc

    def has_plugin(self) -> bool:
        """Whether our recovery strategy is where SkyPilot recovers jobs; starts a local API server if need be.

        Where that is a controller machine of its own, the wheel that it installs is brought up to date.

        Raises:
            ClusterError: the server cannot be reached.
        """
        with _talk_on_stderr():
            from sky.server import common as server_common

            try:
                server_common.check_server_healthy_or_start_fn()
                answer = server_common.make_authenticated_request("GET", "/api/plugins", timeout=30)
                answer.raise_for_status()
                loaded = answer.json()["plugins"]
            except Exception as exc:  # requests' and SkyPilot's own trees; whatever it is, the server is no help
                raise ClusterError(
                    f"SkyPilot's API server does not answer: {exc}. Look with: alpaca-jobs doctor"
                ) from exc
            is_loaded = any(one.get("name") == _PLUGIN_NAME for one in loaded)
            return is_loaded and (_recovers_in_its_server() or _reaches_controllers())

    def submit(self, task_yaml: str, *, name: str, secrets: Mapping[str, str]) -> int:
        """Submit a task, or a chain of tasks, as a managed job; returns its number.

        Args:
            secrets: values for the names the YAML holds; they go to SkyPilot's server and to no file of ours.

        Raises:
            LaunchFailed: SkyPilot refused it; nothing was started.
        """
        with _talk_on_stderr():
            import sky
            from sky import jobs
            from sky.utils import dag_utils

            from cluster.cloud.sky_plugin import register

            register()  # this process checks the task, too, and would not know the strategy's name
            try:
                dag = dag_utils.load_chain_dag_from_yaml_str(task_yaml, secrets_overrides=list(secrets.items()) or None)
                request = jobs.launch(dag, name=name)
                try:
                    job_ids, _ = sky.get(request)
                except KeyboardInterrupt:
                    # It takes the job all the same; only one that has a number can be cancelled.
                    logger.warning(
                        "SkyPilot is taking the job; it is cancelled as soon as it has a number (Ctrl-C again leaves "
                        "it: sky jobs queue)"
                    )
                    sky.get(request)
                    raise
            except Exception as exc:  # SkyPilot raises dozens of types; none of them has started anything
                raise LaunchFailed(f"SkyPilot did not take the job: {_words(exc)}") from exc
        if not job_ids:
            raise LaunchFailed("SkyPilot took the job but gave it no number. Look with: sky jobs queue")
        return int(job_ids[0])

    def status(self, name: str) -> JobStatus | None:
        """The newest managed job of that name; None if SkyPilot knows none.

        Raises:
            ClusterError: the server does not answer.
        """
        with _talk_on_stderr():
            import sky
            from sky import exceptions, jobs

            try:
                records, *_ = sky.get(jobs.queue_v2(refresh=True, name_match=name))
            except exceptions.ClusterDoesNotExist:  # its controller, a machine of its own: never started, or taken down
                return None
            except Exception as exc:  # as above
                raise ClusterError(f"SkyPilot does not say how {name} stands: {_words(exc)}") from exc
        own = [one for one in records if _field(one, "job_name") == name]
        if not own:
            return None
        newest = max(int(_field(one, "job_id")) for one in own)
        tasks = sorted((one for one in own if int(_field(one, "job_id")) == newest), key=_task_number)
        # A chain stands where its first task stands that is not done.
        undone = [one for one in tasks if _status_word(one) != "SUCCEEDED"]
        current = undone[0] if undone else tasks[-1]
        return JobStatus(
            job_id=newest,
            status=_status_word(current),
            is_over=all(_field(one, "status").is_terminal() for one in tasks),
            reason=str(_field(current, "failure_reason") or ""),
        )

    def cancel(self, name: str) -> JobStatus | None:
        """Cancel the newest managed job of that name, and take its machines down; none, or one that is over, is fine.

        Returns:
            How it stood before; None if SkyPilot knows no such job.

        Raises:
            ClusterError: the server does not answer, so that machines may go on costing money.
        """
        status = self.status(name)
        if status is None or status.is_over:
            return status
        with _talk_on_stderr():
            import sky
            from sky import jobs

            try:
                sky.get(jobs.cancel(job_ids=[status.job_id]))
            except Exception as exc:  # as above
                raise ClusterError(
                    f"SkyPilot did not cancel {name}: {_words(exc)}. Its machine may still run: sky jobs cancel "
                    f"{status.job_id}"
                ) from exc
        return status


def _recovers_in_its_server() -> bool:
    """Whether jobs are recovered by the API server itself; of another computer's server its list of plugins is all.

    Source: sky/utils/controller_utils.py of 0.14.1. The server writes down at its start what it does.
    """
    from sky.server import common as server_common
    from sky.utils import controller_utils

    return not server_common.is_api_server_local() or controller_utils.is_jobs_consolidation_mode()


def _reaches_controllers() -> bool:
    from cluster.cloud.plugin_controller import controller_plugin, refresh_wheel
    from cluster.cloud.plugin_install import settings_path

    found = controller_plugin(settings_path())
    if found.is_installed:
        refresh_wheel(found)
    else:
        logger.warning(
            "SkyPilot's controller is a machine of its own, and %s does not send our plugin there", found.remote
        )
    return found.is_installed


@contextmanager
def _talk_on_stderr() -> Iterator[None]:
    """SkyPilot talks on stdout, which is for results; it takes hold of it when it is first imported."""
    with redirect_stdout(sys.stderr):
        yield


def _field(record: Any, name: str) -> Any:
    return record.get(name) if isinstance(record, Mapping) else getattr(record, name, None)


def _task_number(record: Any) -> int:
    return int(_field(record, "task_id") or 0)


def _status_word(record: Any) -> str:
    status = _field(record, "status")
    return str(getattr(status, "value", status))


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
