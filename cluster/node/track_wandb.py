"""Weights & Biases: one run there for one run here, over all its attempts.

With WANDB_API_KEY in the node's environment (`secrets: [WANDB_API_KEY]`) points go to the server, which knows the last
step it has; only newer ones are sent, so none is there twice. Without a key nothing leaves the machine: each attempt
writes the whole run into a folder of its own, in the run's store, and the folders of earlier attempts are dropped:

    tracking/wandb/attempt-000002/...          wandb sync <a copy of that folder>

Of the machine (its name, its user, its command line) nothing is recorded, and of the environment neither.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.store import Store
from cluster.node.tracking import Point

logger = logging.getLogger(__name__)

FOLDER = "tracking/wandb"
KEY = "WANDB_API_KEY"
STORE_EVERY_S = 60.0
"""An offline run's files are put whole, so not at every flush."""


class WandbTracker:
    """The protocol's docstrings (tracking.py) hold.

    Args:
        name: of the job; the project there.
        settings: what the run is about, shown beside its curves; must hold no secret.
        folder: on this machine; gone with it.
    """

    def __init__(
        self, store: Store, attempt: int, *, run_id: str, name: str, settings: Mapping[str, Any], folder: Path
    ) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._store, self._attempt, self._folder = store, attempt, folder
        self._is_online = bool(os.environ.get(KEY))
        self._run: Any = wandb.init(
            project=name, id=run_id, name=run_id, dir=str(folder), config=dict(settings),
            resume="allow" if self._is_online else None, mode="online" if self._is_online else "offline",
            settings=wandb.Settings(
                console="off", silent=True, quiet=True, disable_git=True, disable_code=True, save_code=False,
                disable_job_creation=True, x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
                x_save_requirements=False, program="alpaca-jobs", host="node",
            ),
        )  # fmt: skip
        self._first = int(self._run.step) if self._is_online else 0  # the server has everything below
        self._step, self._put_at = 0, time.monotonic()

    def add(self, point: Point) -> None:
        """As the protocol says. A save is told some steps later; it is shown where the curves are by then."""
        self._step = max(self._step, point.step)
        if self._step >= self._first:
            self._run.log(dict(point.values), step=self._step)

    def flush(self) -> None:
        """As the protocol says; online the library sends by itself."""
        if not self._is_online and time.monotonic() - self._put_at >= STORE_EVERY_S:
            self._put_folder()

    def close(self) -> None:
        """As the protocol says."""
        import wandb

        self._run.finish()
        wandb.teardown()  # its process ends with the attempt's training, not with the node
        if not self._is_online:
            self._put_folder()

    def _put_folder(self) -> None:
        mine = f"{FOLDER}/attempt-{self._attempt:06d}/"
        for path in sorted((self._folder / "wandb").glob("offline-run-*/**/*")):
            if path.is_file() and not path.is_symlink() and "logs" not in path.parts:
                self._store.put(mine + path.relative_to(self._folder / "wandb").as_posix(), path.read_bytes())
        self._store.delete([key for key in self._store.list(f"{FOLDER}/") if key < mine])
        self._put_at = time.monotonic()
