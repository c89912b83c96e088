"""Before a snapshot: a state is taken apart and looked at on every rank, and planned where its structure is new."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints.barrier import Exchange
from checkpoints.errors import CheckpointError, StateMismatch
from checkpoints.torch_plan import SaveLayout, plan_global, plan_local
from checkpoints.torch_snapshot import Snapshot
from checkpoints.torch_state import FlatState, flatten_state


@dataclass(frozen=True)
class Prepared:
    """A state that can be saved: in parts, where they go, the buffer they are copied to; and rank 0's `meta`."""

    flat: FlatState
    layout: SaveLayout
    snapshot: Snapshot
    meta: Mapping[str, Any]


class Preparation:
    """Keeps the plan and the buffer of a structure for as long as states have it. All ranks call it together."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._structure: tuple[Any, ...] | None = None
        self._planned: tuple[SaveLayout, Snapshot] | None = None

    def prepare(
        self,
        position: int,
        state: Mapping[str, Any],
        meta: Mapping[str, Any],
        *,
        after: int,
        over: CheckpointError | None,
    ) -> Prepared:
        """What is wrong on one rank is raised on all.

        Args:
            after: the position saved or loaded before.
            over: why this rank may save no more.

        Raises:
            StateMismatch, ValueError, `over`: as Checkpointer.save says.
        """
        flat, written = FlatState({}, {}), dict[str, Any]()
        problem: Exception | None = over
        try:
            if position <= after:
                raise ValueError(
                    f"position {position} cannot be saved: {after} was saved (or loaded) before, and paths are never "
                    "used twice"
                )
            flat = flatten_state(state)
            written = as_json(meta) if self._exchange.rank == 0 else {}
        except (StateMismatch, ValueError) as exc:
            problem = problem or exc
        structure = flat.structure()
        answers = self._exchange.gather((problem, structure != self._structure, position))
        for raised, _, _ in answers:
            if raised is not None:
                raise raised
        if len({at for _, _, at in answers}) > 1:
            raise ValueError(
                f"the ranks save different positions, {[at for _, _, at in answers]} by rank: one commit is of one "
                "position. Count steps alike on all ranks."
            )
        if self._planned is None or any(changed for _, changed, _ in answers):
            self._planned = None  # the old buffer goes before there is a new one
            self._planned = self._plan(flat)
            self._structure = structure
        return Prepared(flat, *self._planned, written)

    def _plan(self, flat: FlatState) -> tuple[SaveLayout, Snapshot]:
        local = plan_local(flat, is_coordinator=self._exchange.rank == 0)
        layout = plan_global(self._exchange.gather(local), self._exchange.rank)
        return layout, Snapshot(layout, pinned=any(tensor.is_cuda for tensor in flat.tensors.values()))


def as_json(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`meta` as readers will see it, and out of reach of whoever changes it later.

    Raises:
        StateMismatch: it is no JSON.
    """
    try:
        written: dict[str, Any] = json.loads(json.dumps(dict(meta)))
    except (TypeError, ValueError) as exc:
        raise StateMismatch(
            f"meta is no JSON ({exc}): it holds numbers, strings, lists and dicts, for readers without torch. Write "
            "loss.item() for a tensor, float(loss) for a number of numpy's."
        ) from exc
    return written
