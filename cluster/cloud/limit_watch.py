"""Keeping a run's limits on the machine itself: it leaves, with its state committed, before a line is crossed.

On this machine a supervisor looks at the clock and the bill. On a cloud nobody does while a machine works (SkyPilot
asks our strategy between two machines only), so the node counts for itself: what the run had cost before, its own
machines since their boot, and the teacher. It is catalog price times time.

How long before the line depends on what there is to save: a window that the measured save fits (cluster/node/
leave_time.py), at least WINDOW_S. An attempt that is still there after its window is ended (cluster/node/hard_end.py),
and that is before the line as well.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from checkpoints.errors import CheckpointError
from cluster.cloud.run import CloudRun
from cluster.event_reading import EventReader
from cluster.exits import Notice
from cluster.node.hard_end import AFTER_WINDOW_S
from cluster.node.leave_time import LeaveTime, expected_save_s
from cluster.plan import LaunchPlan, Placement
from cluster.recovery import StopReason
from cluster.runs.spending import teacher_usd

logger = logging.getLogger(__name__)

WINDOW_S: Final = 60.0  # to save and leave before the line itself, where a save does not need more
AFTER_S: Final = 60.0  # of the machine after the node has left, which is billed as well: SkyPilot takes it down
_LOOK_EVERY_S: Final = 5.0
MARGIN_S: Final = AFTER_WINDOW_S + _LOOK_EVERY_S  # a notice may come a look late, and the hard end after the window


class LimitWatch:
    """Looks at the clock and the bill; gives notice once.

    Args:
        before_usd: what earlier attempts and their teacher's answers had cost.
        place: what runs now. started_at_s: since when it is billed, seconds since 1970.
        teacher_usd: dollars of the teacher over all attempts, as far as nodes told; None before the first word.
        give_notice: called once, from a thread.
        leave_s: seconds that leaving with everything committed takes, as of now.
    """

    def __init__(
        self,
        *,
        deadline_at_s: float | None,
        max_usd: float | None,
        before_usd: float,
        place: Placement,
        started_at_s: float,
        teacher_usd: Callable[[], float | None],
        give_notice: Callable[[Notice], None],
        leave_s: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._deadline_at_s, self._max_usd, self._before_usd = deadline_at_s, max_usd, before_usd
        self._place, self._started_at_s, self._clock = place, started_at_s, clock
        self._read_teacher, self._give_notice, self._leave_s = teacher_usd, give_notice, leave_s
        self._teacher_usd = 0.0
        self._stopping = threading.Event()

    def start(self) -> None:
        """Watch in a thread, until a notice was given or `stop`; where there is no limit, nothing is watched."""
        if self._deadline_at_s is not None or self._max_usd is not None:
            threading.Thread(target=self._watch, name="limit-watch", daemon=True).start()

    def stop(self) -> None:
        """End the watch."""
        self._stopping.set()

    def look(self) -> Notice | None:
        """The notice to give now, if a limit is near enough."""
        now, window_s = self._clock(), max(self._leave_s(), WINDOW_S)
        if self._deadline_at_s is not None and now >= self._deadline_at_s - window_s - MARGIN_S:
            return Notice(StopReason.DEADLINE, window_s)
        if self._max_usd is not None and self._expected_usd(now, window_s) >= self._max_usd:
            return Notice(StopReason.BUDGET, window_s)
        return None

    def _expected_usd(self, now: float, window_s: float) -> float:
        """What the run will have cost when its machine is gone, if the node begins to leave now."""
        try:
            told = self._read_teacher()
        except CheckpointError as exc:  # the newest total that is known holds; the lease watches the store itself
            logger.debug("the teacher's cost cannot be read now: %s", exc)
            told = None
        self._teacher_usd = self._teacher_usd if told is None else told
        seconds = max(now - self._started_at_s, 0.0) + window_s + MARGIN_S + AFTER_S
        return self._before_usd + self._teacher_usd + (self._place.usd_for(seconds) or 0.0)

    def _watch(self) -> None:
        while not self._stopping.is_set():
            if (notice := self.look()) is not None:
                logger.warning("the run's %s is near; leaving within %.0f s", notice.reason.value, notice.window_s)
                self._give_notice(notice)
                return
            self._stopping.wait(_LOOK_EVERY_S)


def watch_limits(
    run: CloudRun,
    place: Placement,
    started_at_s: float,
    before_usd: float,
    give_notice: Callable[[Notice], None],
    leave: LeaveTime,
) -> LimitWatch:
    """Start the watch of a run's limits on its machine; arguments as of LimitWatch."""
    policy, reader = run.session.policy, EventReader(run.store)
    watch = LimitWatch(
        deadline_at_s=policy.deadline_at_s, max_usd=policy.max_usd, before_usd=before_usd, place=place,
        started_at_s=started_at_s, teacher_usd=lambda: teacher_usd(reader.poll()), give_notice=give_notice,
        leave_s=lambda: leave.window_s,
    )  # fmt: skip
    watch.start()
    return watch


def leaving_s(plan: LaunchPlan) -> float:
    """Seconds of a machine that go into leaving before a limit, as far as that is known before anything is measured.

    A machine that would have to leave as soon as it came is not bought.
    """
    return max(LeaveTime(expected_save_s(plan.job, plan.num_parameters)).window_s, WINDOW_S) + MARGIN_S + AFTER_S
