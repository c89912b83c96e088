"""GivenAttempt: what a program of the user's own is told by the run that started it, in its environment.

    ALPACA_JOBS_CHECKPOINTS   this value as JSON: which run, which attempt, what it continues, how often to save
    ALPACA_JOBS_PROGRESS      a file that the program may append to: one JSON object per line, for example
                              {"kind": "step", "step": 12, "total_steps": 60, "loss": 1.25}

Whoever started the program holds the attempt's claim and its lease, and records its end; the program saves and loads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from checkpoints.keys import CommitRef, Layout, Stage

GIVEN_VARIABLE: Final = "ALPACA_JOBS_CHECKPOINTS"
PROGRESS_VARIABLE: Final = "ALPACA_JOBS_PROGRESS"


class NotGiven(RuntimeError):
    """The program was not started by a run, so nobody said where its checkpoints belong."""


@dataclass(frozen=True)
class GivenAttempt:
    """One attempt, as its program sees it.

    Attributes:
        store_uri: the store's root; the run lies below its id.
        stage: the stage of `layout` whose commits these are.
        candidates: commits of that stage that count, newest first; the program loads the first that is whole.
        base_is_open: whether this attempt's base is still to be recorded, once that is loaded.
        every_steps: steps between saves; None where the job leaves it to the program.
        when_busy: what a save does while the one before is under way; see Checkpointer.
    """

    store_uri: str
    run_id: str
    attempt: int
    layout: Layout
    stage: str
    candidates: tuple[CommitRef, ...]
    base_is_open: bool
    every_steps: int | None
    keep: int
    keep_every: int | None
    when_busy: Literal["wait", "skip"] = "wait"

    def to_json(self) -> str:
        """The variable's text."""
        stages = [[one.name, one.folder, one.item, one.digits] for one in self.layout.stages]
        return json.dumps(
            {
                "store": self.store_uri, "run": self.run_id, "attempt": self.attempt, "stages": stages,
                "stage": self.stage, "candidates": [ref.to_json() for ref in self.candidates],
                "base_is_open": self.base_is_open, "every_steps": self.every_steps, "keep": self.keep,
                "keep_every": self.keep_every, "when_busy": self.when_busy,
            }
        )  # fmt: skip

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> GivenAttempt:
        """Read what the run said.

        Raises:
            NotGiven: this program was not started by a run.
        """
        text = environ.get(GIVEN_VARIABLE)
        if not text:
            raise NotGiven(
                f"{GIVEN_VARIABLE} is not set, so this program was not started by a run (train.method: command). To "
                "try it by itself, say where its checkpoints go: StoreCallback('./trial', every_steps=100)."
            )
        body = json.loads(text)
        return cls(
            store_uri=body["store"], run_id=body["run"], attempt=body["attempt"],
            layout=Layout(tuple(Stage(*stage) for stage in body["stages"])), stage=body["stage"],
            candidates=tuple(map(CommitRef.from_json, body["candidates"])), base_is_open=body["base_is_open"],
            every_steps=body["every_steps"], keep=body["keep"], keep_every=body["keep_every"],
            when_busy=body.get("when_busy", "wait"),
        )  # fmt: skip


class Progress:
    """Appends facts to the file that the run reads; without a file they go nowhere."""

    def __init__(self, path: str | None = None) -> None:
        given = os.environ.get(PROGRESS_VARIABLE) if path is None else path
        self._path = Path(given) if given else None

    def tell(self, kind: str, **fields: Any) -> None:
        """Append one fact; a line is written at once and whole. Losing one harms nothing, so no error leaves here."""
        if self._path is None:
            return
        line = json.dumps({"kind": kind, **fields}) + "\n"
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(line.encode())
        except OSError:
            self._path = None
