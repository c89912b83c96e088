"""Our recovery strategy inside SkyPilot: a plugin of its API server that registers it for managed jobs.

A task that says `job_recovery: {strategy: alpaca_jobs}` is launched and recovered by `cluster.recovery.decide`, from
what the run's store knows (cluster/cloud/run.py): the region that was lost is tried last, every start gets an
attempt number of its own, budget and deadline are looked at before every launch. Other tasks are not touched.

`alpaca-jobs plugin install` makes SkyPilot load it (cluster/cloud/plugin_install.py). Written against SkyPilot 0.14.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sky import exceptions, global_user_state, sky_logging
from sky.jobs import recovery_strategy
from sky.utils import registry

from alpaca_jobs.spec_compute import OWN_INFRA
from checkpoints.errors import CheckpointError
from cluster.cloud.machine_records import keep_in_background
from cluster.cloud.places import is_there
from cluster.cloud.run import ATTEMPT_VARIABLE, PLACEMENT_VARIABLE, CloudRun
from cluster.errors import ClusterError
from cluster.exits import NODE_EXITS, NOTHING_FOLLOWS, SET_UP_FAILED
from cluster.plan import Placement, Pricing
from cluster.recovery import Action, Decision
from cluster.runs.attempt_watch import patiently

logger = sky_logging.init_logger(__name__)  # what it says stands in the job's controller log

STRATEGY = "alpaca_jobs"
T = TypeVar("T")
_STORE_PATIENCE_S = 300.0
_LOOK_EVERY_S = 15.0  # while waiting for capacity: whether somebody has cancelled the run
_SAID = frozenset({*NODE_EXITS.values(), NOTHING_FOLLOWS, SET_UP_FAILED} - {0})


class AlpacaJobsStrategy(recovery_strategy.EagerFailoverStrategyExecutor):  # type: ignore[misc]
    """Launches and recovers one task by the store's memory and our decision table."""

    _exit_code: int | None = None  # what the task that failed has ended with; None: it did not fail, or nobody knows
    _launched_at_s: float | None = None  # when the machines of the newest launch came, since 1970; None: none did

    def should_restart_on_failure(self, exit_codes: list[int] | None = None) -> bool:
        """What SkyPilot asks when a task failed, before `recover`: whether what follows is to be decided at all.

        It is not where a node has said with its code that nothing follows. A code that is no node's own (it was killed)
        and none (SkyPilot's driver on the machine died, or the machine went before it was asked) say nothing about the
        run; SkyPilot alone would end it.
        """
        codes = exit_codes or []
        self._exit_code = telling_code(codes)
        is_said = any(code in _SAID for code in codes)
        return bool(super().should_restart_on_failure(exit_codes=exit_codes)) or not is_said

    def _cleanup_cluster(self) -> None:
        """Take the machines down; SkyPilot's own `_launch` does so, too, where machines came but did not get ready."""
        self._note_machines()
        super()._cleanup_cluster()

    async def _wait_until_job_starts_on_cluster(self) -> float | None:
        """Wait until SkyPilot sees the task begin; machines that are lost meanwhile it forgets before it cleans up."""
        await asyncio.to_thread(self._note_machines)
        submitted: float | None = await super()._wait_until_job_starts_on_cluster()
        return submitted

    def _note_machines(self) -> None:
        self._launched_at_s = _launched_at_s(self.cluster_name) or self._launched_at_s

    async def launch(self) -> float:
        """Start the task; also what a restarted controller calls, so attempts may have been made before.

        Raises:
            ManagedJobReachedMaxRetriesError: it is given up; says why.
        """
        return await self._go_on(recovery=False)

    async def recover(self) -> float:
        """Start the task again elsewhere; raises as `launch` does."""
        return await self._go_on(recovery=True)

    async def _go_on(self, *, recovery: bool) -> float:
        try:
            return await self._launch_as_decided(recovery=recovery)
        except (ClusterError, CheckpointError) as exc:  # SkyPilot shows the words of its own errors only
            raise exceptions.ManagedJobReachedMaxRetriesError(
                f"The run's store does not allow to go on: {exc}"
            ) from exc

    async def _launch_as_decided(self, *, recovery: bool) -> float:
        run = await _ask(functools.partial(CloudRun.open, dict(self.dag.tasks[0].envs)))
        # First the machine, then the record: what is ended may not write any more.
        await asyncio.to_thread(self._cleanup_cluster)
        await _ask(functools.partial(run.end_lost, exit_code=self._exit_code))
        self._exit_code, self._launched_at_s = None, None
        keep_in_background(run.store, run.plan)  # AWS forgets the machine that was lost within the hour
        while True:
            decision = await _ask(run.decide)
            logger.info("%s: %s", decision.action, decision.words)
            match decision.action:
                case Action.RELAUNCH:
                    submitted = await self._try(run, decision, recovery=recovery)
                    if submitted is not None:
                        return submitted
                case Action.WAIT:
                    await _ask(functools.partial(run.tell, decision))
                    await asyncio.sleep(min(decision.wait_s, _LOOK_EVERY_S))
                case Action.FINISH | Action.GIVE_UP:
                    await _ask(functools.partial(run.tell, decision))
                    await _ask(functools.partial(run.close, decision))
                    raise exceptions.ManagedJobReachedMaxRetriesError(decision.words)

    async def _try(self, run: CloudRun, decision: Decision, *, recovery: bool) -> float | None:
        """Launch in the decision's first place; None if it has no machine now. The task is left as it was."""
        task, place = self.dag.tasks[0], decision.placements[0]
        number = await _ask(run.next_number)
        started = {
            "state": "started", "number": number, "place": place.name, "placement": place.to_json(),
            "on_demand": decision.on_demand,
        }  # fmt: skip
        await _ask(functools.partial(run.tell, decision, **started))
        everything = task.resources
        chosen = [one for one in everything if is_resource_of(one, place)]
        if not chosen:
            run.cannot(place, "it is not among the task's resources")
            return None
        task.update_envs({ATTEMPT_VARIABLE: str(number), PLACEMENT_VARIABLE: json.dumps(place.to_json())})
        task.set_resources(type(everything)(chosen))
        try:
            submitted: float | None = await self._launch(max_retry=1, raise_on_failure=True, recovery=recovery)
        except exceptions.ManagedJobReachedMaxRetriesError as exc:
            launched_at_s, self._launched_at_s = self._launched_at_s, None
            if launched_at_s is None:
                await _ask(functools.partial(run.refused, place, f"SkyPilot got no machine there ({exc})"))
            else:
                seconds = max(time.time() - launched_at_s, 0.0)
                await _ask(functools.partial(run.failed_launch, number, place, seconds=seconds))
            return None
        except exceptions.ProvisionPrechecksError as exc:
            run.cannot(place, "; ".join(str(reason) for reason in exc.reasons))
            return None
        finally:
            task.set_resources(everything)
        return submitted


def telling_code(exit_codes: Sequence[int]) -> int | None:
    """The exit code that says most about a failed task, of those of its machines: the first that a node gives itself.

    When one machine's task fails, SkyPilot kills the others'; those then say 137. Codes of 0 say nothing.
    """
    codes = [code for code in exit_codes if code]
    return next((code for code in codes if code in _SAID), codes[0] if codes else None)


def _launched_at_s(cluster_name: str | None) -> float | None:
    """Seconds since 1970 when SkyPilot began to get a cluster's machines; None where it has no such cluster.

    Where no machine was to be had, SkyPilot has forgotten the cluster by then; one that broke in its set-up (SSH,
    SkyPilot's own runtime) it still knows. Source: `CloudVmRayBackend._locked_provision` of 0.14.1.
    """
    record = global_user_state.get_cluster_from_name(cluster_name) if cluster_name else None
    return None if record is None else float(record["launched_at"] or time.time())


async def _ask(act: Callable[[], T]) -> T:
    """Do something with the store, in a thread, and patiently: a controller serves many jobs in one event loop."""
    return await asyncio.to_thread(patiently, act, _STORE_PATIENCE_S)


def is_resource_of(resource: Any, place: Placement) -> bool:
    """Whether an entry of the task's `ordered:` list is a place of the plan."""
    if not is_there(place, cloud=str(resource.cloud), region=resource.region):
        return False
    if place.infra in OWN_INFRA:  # what is asked for there is the same in all of the task's entries
        return True
    return bool(resource.instance_type == place.instance_type and resource.use_spot == (place.pricing is Pricing.SPOT))


def register() -> None:
    """Make the strategy known to SkyPilot in this process; again without harm.

    SkyPilot loads plugins more than once in one process, and registering a name twice would end its server.
    """
    known = registry.JOBS_RECOVERY_STRATEGY_REGISTRY
    if STRATEGY not in known:
        known.type_register(name=STRATEGY)(AlpacaJobsStrategy)
