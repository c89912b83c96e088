"""GroupExchange: ranks of a torch.distributed process group meet and exchange Python values.

It wants a gloo group of its own: the background thread of a save uses it while training uses the default one, and two
threads on one group end in each other's messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from checkpoints.barrier import Alone, Exchange, RanksParted


class GroupExchange:
    """An Exchange over `group`; values travel pickled between the ranks and never reach a store."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)

    def gather(self, value: Any) -> Sequence[Any]:
        gathered: list[Any] = [None] * self.world_size
        try:
            dist.all_gather_object(gathered, value, group=self._group)
        except RuntimeError as exc:  # gloo says so when a rank died or did not come in time
            raise RanksParted(
                f"rank {self.rank} of {self.world_size} lost the others ({exc}). A rank has died or is stuck; end the "
                "others and start again from the newest commit."
            ) from exc
        return gathered


def make_exchange(group: dist.ProcessGroup | None, *, timeout_s: float) -> tuple[Exchange, dist.ProcessGroup | None]:
    """An exchange for this process, and the group that was made for it, if one was (destroy it afterwards).

    Collective when `group` is None and torch.distributed runs with several ranks: every rank has to call it.
    """
    if group is not None:
        return GroupExchange(group), None
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Alone(), None
    made = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    return GroupExchange(made), made
