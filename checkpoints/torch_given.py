"""GivenCheckpointer: RunCheckpointer's methods for a program that a run started: the attempt is given, not taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from checkpoints.attempts import AttemptLog
from checkpoints.best import Metric
from checkpoints.fence import Fence
from checkpoints.given import GivenAttempt, Progress
from checkpoints.keys import CommitRef
from checkpoints.store import Store
from checkpoints.torch_attempt import AttemptCheckpointer
from checkpoints.torch_bridge import Checkpointer, SaveResult


class GivenCheckpointer(AttemptCheckpointer):
    """Saves and loads within an attempt that somebody else claimed and keeps alive. All ranks make it and call its
    methods in the same order. What it does is told to the run by `progress`; the attempt's end is its run's to record.
    """

    def __init__(
        self,
        given: GivenAttempt,
        *,
        progress: Progress | None = None,
        best_by: Metric | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        super().__init__(timeout_s=timeout_s)
        self._given = given
        self.progress = progress or Progress()
        self.attempt = given.attempt
        store = Store.open(given.store_uri).child(given.run_id)
        self._log = AttemptLog(store, given.layout)
        self._checkpointer = Checkpointer(
            store, given.layout, stage=given.stage, attempt=given.attempt, fence=Fence(self._log, given.attempt),
            process_group=self._group, keep=given.keep, keep_every=given.keep_every, best_by=best_by,
            when_busy=given.when_busy, timeout_s=timeout_s,
        )  # fmt: skip
        self._checkpointer.on_saving = lambda position: self.progress.tell("saving", position=position)

    def _candidates(self) -> Sequence[CommitRef]:
        return self._given.candidates

    def _record_base(self, ref: CommitRef | None) -> None:
        if self._given.base_is_open:
            self._log.put_base(self.attempt, ref)
        self.progress.tell("loaded", position=None if ref is None else ref.position)

    def _told(self, results: list[SaveResult]) -> list[SaveResult]:
        if self._exchange.rank == 0:
            for result in results:
                self.progress.tell("save", **asdict(result))
        return results
