"""Every number of an estimate that is neither in the job nor in a price list, with its source; measured ones first."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster import egress
from cluster.course import AWAY_PRIOR_S, SAVE_INTERVAL_PRIOR_S
from cluster.hazard import Hazard, spot_hazard
from cluster.price.teacher_cost import TeacherAssumptions
from cluster.price.throughput import MFU_PRIOR, MFU_SPREAD

PRIOR = "prior"


@dataclass(frozen=True)
class MeasuredSpeed:
    """Training speed that earlier runs had on one kind of GPU.

    Attributes:
        mfu: of real tokens; the geometric mean over the runs.
        spread: standard deviation of ln(mfu).
        source: which runs.
    """

    gpu: str
    mfu: float
    spread: float
    source: str


@dataclass(frozen=True)
class MeasuredSteps:
    """What earlier runs of such a job took on machines of one kind without GPUs, this one or a cloud's.

    Attributes:
        instance_type: of the machine.
        step_s: one training step; spread: standard deviation of its logarithm.
        rest_s: of an attempt, all that is neither a step nor a teacher's answer: start, saves, what lies between the
            stages, export.
    """

    instance_type: str
    step_s: float
    spread: float
    rest_s: float
    source: str


@dataclass(frozen=True)
class Assumptions:
    """All priors; a measured number replaces the prior where there is one (cluster/price/experience.py).

    Attributes:
        mfu, mfu_spread: cluster/price/throughput.py; for GPUs that are not in `measured`.
        measured: speeds of earlier runs, by GPU.
        steps: how long such jobs took without GPUs, by machine; `process` is this one.
        hazard: preemptions of a spot machine; cluster/hazard.py.
        teacher: cluster/price/teacher_cost.py.
        boot_s: from a machine's boot to everything installed on it.
        transfer_bytes_per_s: of one node, from and to the store.
        away_s: from a loss to the next machine's boot: noticing it, and capacity.
        save_interval_s: work between two saves where the job leaves it to `auto`.
        egress_usd_per_gb: state that goes from one region to another; cluster/egress.py.
        storage_usd_per_gb_month: checkpoints kept. Source: S3 Standard, us-east-1, 2024.
        write_usd, read_usd: one request to the store. Source: S3 Standard, us-east-1, 2024 (5 and 0.4 USD a million).
        request_bytes: that one of them moves; a block of a checkpoint (16 MiB).
        idle_writes_per_s: of a node that does nothing but live: its lease, its events, the look for a cancel, each
            second; listings are billed like writes.
    """

    mfu: float = MFU_PRIOR
    mfu_spread: float = MFU_SPREAD
    measured: tuple[MeasuredSpeed, ...] = ()
    steps: tuple[MeasuredSteps, ...] = ()
    hazard: Hazard = field(default_factory=spot_hazard)
    teacher: TeacherAssumptions = field(default_factory=TeacherAssumptions)
    boot_s: float = 300.0
    transfer_bytes_per_s: float = 500e6
    away_s: float = AWAY_PRIOR_S
    save_interval_s: float = SAVE_INTERVAL_PRIOR_S
    egress_usd_per_gb: float = egress.USD_PER_GB
    storage_usd_per_gb_month: float = 0.023
    write_usd: float = 5e-6
    read_usd: float = 0.4e-6
    request_bytes: float = 16 * 2**20
    idle_writes_per_s: float = 3.0

    def speed_on(self, gpu: str) -> MeasuredSpeed:
        """The speed to count with on a kind of GPU: measured, or the prior, which says so in its source."""
        prior = MeasuredSpeed(gpu, self.mfu, self.mfu_spread, f"{PRIOR}: published runs that were tuned")
        return next((one for one in self.measured if one.gpu == gpu), prior)

    def steps_on(self, instance_type: str) -> MeasuredSteps | None:
        """What was measured on a kind of machine without GPUs; None before the first run on one."""
        return next((one for one in self.steps if one.instance_type == instance_type), None)
