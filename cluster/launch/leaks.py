"""What costs money and nobody wants: machines, jobs and buckets of runs that are over or dead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.errors import CheckpointError
from checkpoints.store import Store
from cluster.cloud.aws_account import AwsAccount
from cluster.cloud.aws_bucket import buckets_of_ours
from cluster.cloud.aws_machines import machines_of_ours, terminate
from cluster.cloud.sky_account import SkyJob
from cluster.errors import ClusterError
from cluster.launch.findings import Finding, Level
from cluster.node.power import AFTER_END_MIN
from cluster.plan import Pricing
from cluster.runs.home import Home
from cluster.runs.machines import CloudMachine
from cluster.runs.run_view import RunState, is_lease_moving, list_runs, read_plan, view_run

YOUNG_S: Final = 60.0 * AFTER_END_MIN  # a machine that has just started has not begun, and one just over goes by itself


def machines_that_bill(
    home: Home, account: AwsAccount, jobs: Sequence[SkyJob] | None, *, now: Callable[[], float] = time.time
) -> list[Finding]:
    """Every machine of a run, and SkyPilot's controllers, with what they are there for.

    Args:
        jobs: SkyPilot's open jobs; None where they are not known.

    Raises:
        CloudError: AWS refused or did not answer.
    """
    machines = machines_of_ours(account)
    if not machines:
        return [Finding(Level.OK, "machines of AWS", "none of ours runs, in any region")]
    return [_judge(one, home, jobs, now(), newer=_newer(one, machines)) for one in machines]


def _newer(machine: CloudMachine, machines: Sequence[CloudMachine]) -> list[CloudMachine]:
    """Machines of the same run that were started after this one and are billed, too."""
    return [
        one
        for one in machines
        if one.run_id == machine.run_id and one.is_billed and one.started_at_s > machine.started_at_s
    ]


def _judge(
    machine: CloudMachine, home: Home, jobs: Sequence[SkyJob] | None, now: float, *, newer: Sequence[CloudMachine]
) -> Finding:
    where = f"{machine.instance_id} ({machine.instance_type}, {machine.pricing.value}) in aws/{machine.region}"
    hours = machine.seconds(now) / 3600
    target = f"{machine.region}/{machine.instance_id}"
    if not machine.run_id:
        return _controller(machine, where, jobs)
    level, why = _wanted(machine, home, jobs, now, newer)
    if not machine.is_billed:
        words = f"{where} of {machine.run_id} is stopped: its disk is billed. {why}"
        return Finding(
            Level.BILLING if level is Level.BILLING else Level.NOTE, "machine", words, repair="machine", target=target
        )
    words = f"{where} has run for {hours:.1f} h for {machine.run_id}. {why}"
    if level is not Level.BILLING:
        return Finding(level, "machine", words)
    command = f"aws ec2 terminate-instances --region {machine.region} --instance-ids {machine.instance_id}"
    return Finding(level, "machine", words, command, "machine", target)


def _wanted(
    machine: CloudMachine, home: Home, jobs: Sequence[SkyJob] | None, now: float, newer: Sequence[CloudMachine]
) -> tuple[Level, str]:
    """Whether anybody wants a run's machine, by the run's store and SkyPilot's jobs."""
    root = find_root(home, machine.run_id)
    if root is None:
        if any(job.name == machine.run_id for job in jobs or ()):
            return Level.OK, "SkyPilot works on it."
        words = "The run is in no store that was used from here: another machine of yours may have started it."
        return Level.NOTE, f"{words} See: alpaca-jobs status {machine.run_id} --store URI"
    needed = read_plan(root, machine.run_id)[0].num_nodes
    if len(newer) >= needed and all(now - one.started_at_s >= YOUNG_S for one in newer[:needed]):
        return Level.BILLING, "The run works on newer machines, and nobody takes this one down."
    if any(job.name == machine.run_id for job in jobs or ()):
        return Level.OK, "SkyPilot works on it."
    if is_lease_moving(AttemptLog(root.child(machine.run_id), LAYOUT)):
        return Level.OK, "Its node works."
    if now - machine.started_at_s < YOUNG_S:
        return Level.NOTE, f"It is younger than {AFTER_END_MIN} minutes: look again then."
    state = view_run(root, machine.run_id).state
    if state.is_over:
        return Level.BILLING, f"The run is over ({state.value}), and nobody takes the machine down."
    words = "Its node is dead, and nobody recovers it" if state is RunState.SILENT else "Its node shows no sign of life"
    unsure = "" if jobs is not None else " (SkyPilot could not be asked)"
    return Level.BILLING, f"{words}{unsure}. `alpaca-jobs resume {machine.run_id}` goes on with the run."


def _controller(machine: CloudMachine, where: str, jobs: Sequence[SkyJob] | None) -> Finding:
    what = "job controller"
    if machine.pricing is Pricing.ON_DEMAND and not machine.is_billed:
        words = f"{where} is stopped: only its disk is billed. It starts again with the next job."
        return Finding(Level.NOTE, what, words, f"sky down {machine.cluster}")
    if jobs:
        return Finding(Level.OK, what, f"{where} serves {len(jobs)} open jobs")
    words = f"{where} runs, and no open job is known here. SkyPilot stops it when it is idle for ten minutes."
    return Finding(Level.NOTE, what, words, f"sky down {machine.cluster}")


def find_root(home: Home, run_id: str) -> Store | None:
    """The store, of those used from here, that holds a run; None if none does, or none of them can be read."""
    for uri in home.stores():
        try:
            root = Store.open(uri)
            if run_id in list_runs(root):
                return root
        except CheckpointError:  # an unreadable store is a finding of its own
            continue
    return None


def repair_machine(target: str, account: AwsAccount) -> str:
    """Terminate the machine `region/id`; returns what was done.

    Raises:
        ClusterError: it is no machine of ours any more.
        CloudError: AWS refused.
    """
    region, _, instance_id = target.partition("/")
    found = [one for one in machines_of_ours(account, [region]) if one.instance_id == instance_id]
    if not found:
        raise ClusterError(f"There is no machine of ours {instance_id} in {region}; it may be gone by now.")
    terminate(account, found)
    return f"AWS was told to terminate {instance_id} in {region}."


def unwanted_jobs(home: Home, jobs: Sequence[SkyJob]) -> Iterator[Finding]:
    """Jobs that SkyPilot works on although their run is over."""
    for job in jobs:
        root = find_root(home, job.name)
        if root is None:
            continue
        state = view_run(root, job.name).state
        if state.is_over:
            words = f"SkyPilot still works on job {job.job_id} ({job.status}), and {job.name} is over ({state.value})."
            yield Finding(Level.BILLING, "managed job", words, f"sky jobs cancel {job.job_id}", "job", job.name)
        else:
            yield Finding(Level.OK, "managed job", f"{job.job_id} ({job.status}) is {job.name}, {state.value}")


def empty_buckets(home: Home, account: AwsAccount) -> list[Finding]:
    """Buckets that `store: auto` has made, and what is in them.

    Raises:
        CloudError: AWS refused or did not answer.
    """
    findings = []
    for bucket in buckets_of_ours(account):
        try:
            runs = list_runs(Store.open(bucket.uri))
        except CheckpointError as exc:
            findings.append(Finding(Level.BROKEN, "bucket", f"{bucket.uri} cannot be read: {exc}"))
            continue
        told = ", ".join(runs[:5]) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
        words = f"{bucket.uri} holds {told or 'no run'}; what is stored is billed"
        command = f"alpaca-jobs runs --store {bucket.uri}" if runs else f"aws s3 rb s3://{bucket.name}"
        findings.append(Finding(Level.NOTE, "bucket", words, command))
    return findings


def local_leftovers(home: Home) -> Iterator[Finding]:
    """Nodes of this machine that no supervisor watches any more."""
    for node in home.leftovers():
        words = f"{node.run_id} works here without a supervisor: nobody recovers it"
        yield Finding(Level.BROKEN, "node", words, f"alpaca-jobs resume {node.run_id}")
