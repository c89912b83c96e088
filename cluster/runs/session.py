"""What one supervisor is told when it starts; written to the run's folder by `launch` and `resume`, read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.backend import NODE_COMMAND
from cluster.plan import LaunchPlan
from cluster.recovery import RecoveryPolicy


@dataclass(frozen=True)
class Timing:
    """How patiently a supervisor watches. Seconds.

    Attributes:
        poll_s: between two looks at the node's process.
        store_poll_s: between two looks at the store (lease, cancel, newer attempts).
        lease_s: a lease that stood still for this long means that the node is lost.
        lease_interval_s: how often a node renews it.
        claim_s: time a node has from its start to its first lease.
        notice_s: time a node has to leave when it is asked to.
        store_patience_s: how long the supervisor itself tries a store that does not answer.
        restart_s: from a launch to the first new work; a relaunch is refused where less is left.
        first_backoff_s: first wait when no region has capacity; it doubles from round to round.
    """

    poll_s: float = 0.2
    store_poll_s: float = 1.0
    lease_s: float = 20.0
    lease_interval_s: float = 1.0
    claim_s: float = 180.0
    notice_s: float = 30.0
    store_patience_s: float = 120.0
    restart_s: float = 10.0
    first_backoff_s: float = 1.0

    @property
    def sample_s(self) -> float:
        """How long one has to look at a lease to see whether it moves."""
        return 2.5 * self.lease_interval_s


DEFAULT_TIMING = Timing()


@dataclass(frozen=True)
class Session:
    """One supervisor's orders. `policy.deadline_at_s` is in seconds since 1970."""

    plan: LaunchPlan
    policy: RecoveryPolicy
    timing: Timing = field(default_factory=Timing)
    node_command: tuple[str, ...] = NODE_COMMAND

    def to_json(self) -> dict[str, Any]:
        """As session.json holds it; no secret is in it."""
        return {
            "plan": self.plan.to_json(),
            "policy": dataclasses.asdict(self.policy),
            "timing": dataclasses.asdict(self.timing),
            "node_command": list(self.node_command),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Session:
        """Read session.json back."""
        return cls(
            plan=LaunchPlan.from_json(body["plan"]),
            policy=RecoveryPolicy(**body["policy"]),
            timing=Timing(**body["timing"]),
            node_command=tuple(body["node_command"]),
        )
