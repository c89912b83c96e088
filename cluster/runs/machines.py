"""A machine as the cloud's own records have it: what is billed, from when to when. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from cluster.plan import Pricing

RUN_LABEL = "alpaca-jobs-run"
"""Label of every machine of a run (sky/*.yaml); AWS calls it a tag."""


@dataclass(frozen=True)
class CloudMachine:
    """One machine that was, or is, in somebody's account.

    Attributes:
        run_id: of the run it was started for; empty for a machine that serves many (SkyPilot's controller).
        cluster: SkyPilot's name of the cluster it belongs to.
        state: the cloud's word (running, stopped, terminated...).
        started_at_s, ended_at_s: seconds since 1970, by the cloud's clock; `ended_at_s` None while it is billed, or
            where the cloud does not say.
    """

    infra: str
    region: str
    instance_id: str
    instance_type: str
    pricing: Pricing
    run_id: str
    cluster: str
    state: str
    started_at_s: float
    ended_at_s: float | None

    @property
    def is_billed(self) -> bool:
        """Whether its hours cost money now. What is only stopped costs its disk."""
        return self.state in ("pending", "running", "stopping")

    def seconds(self, now: float) -> float:
        """How long it has been billed."""
        return max((now if self.ended_at_s is None else self.ended_at_s) - self.started_at_s, 0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` makes an equal machine."""
        return {**asdict(self), "pricing": self.pricing.value}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> CloudMachine:
        """Read what `to_json` wrote; what else is there is left out (a store adds a nonce)."""
        own = {field.name: body[field.name] for field in fields(cls)}
        return cls(**{**own, "pricing": Pricing(own["pricing"])})
