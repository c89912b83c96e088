"""The cloud's own records of a run's machines, kept in the run's store before the cloud forgets them.

    machines/<instance>.json      a machine that is gone, by the cloud's record; put once, by whoever reads it first

AWS shows a machine for about an hour after its end. So they are kept after every loss, by our strategy in SkyPilot's
controller, and by `receipt`; what nobody has kept in time is counted by the run's own records.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Final

from checkpoints.errors import AlreadyExists, CheckpointError
from checkpoints.store import Store
from cluster.cloud.aws_account import AwsAccount
from cluster.cloud.aws_machines import machines_of_run
from cluster.errors import ClusterError
from cluster.plan import LaunchPlan
from cluster.runs.machines import CloudMachine

logger = logging.getLogger(__name__)

_MACHINES: Final = "machines/"


def aws_regions(plan: LaunchPlan) -> list[str]:
    """Where on AWS a plan's machines may have been."""
    places = [place for part in plan.parts for place in part.candidates]
    return [place.region for place in places if place.infra == "aws"]


def kept_machines(store: Store) -> dict[str, CloudMachine]:
    """What was kept in a run's folder of the store, by the machine's name; what is damaged is said and left out."""
    kept: dict[str, CloudMachine] = {}
    for key in store.list(_MACHINES):
        body = store.get_record_if_whole(key, advice="The machine counts by the run's own records.")
        if body is not None:
            machine = CloudMachine.from_json(body)
            kept[machine.instance_id] = machine
    return kept


def keep_gone(store: Store, machines: Iterable[CloudMachine]) -> None:
    """Keep the records of machines whose end the cloud names; those that are kept already stay as they are."""
    kept = kept_machines(store)
    for one in machines:
        if one.ended_at_s is None or one.instance_id in kept:
            continue
        try:
            store.put_once(f"{_MACHINES}{one.instance_id}.json", one.to_json())
        except AlreadyExists:
            logger.debug("%s is kept already", one.instance_id)


def keep_in_background(store: Store, plan: LaunchPlan, account: AwsAccount | None = None) -> threading.Thread:
    """Read and keep what AWS says of a plan's machines; nobody waits for it, and what cannot be read is left out."""

    def keep() -> None:
        try:
            keep_gone(store, machines_of_run(account or AwsAccount(), plan.run_id, regions))
        except (ClusterError, CheckpointError, OSError) as exc:
            logger.warning("the cloud's records of %s's machines were not kept now: %s", plan.run_id, exc)

    regions = aws_regions(plan)
    thread = threading.Thread(target=keep if regions else lambda: None, name="machine-records", daemon=True)
    thread.start()
    return thread
