"""Which run is meant: a run's id or its beginning, in the stores that were used from here or in one that is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli import render
from cli.exits import Refused

if TYPE_CHECKING:
    from checkpoints.store import Store
    from cluster.runs.home import Home

MAX_NAMED = 8


@dataclass(frozen=True)
class FoundRun:
    """A run, the store it lives in, and what this machine knows of its supervisor (None: it never had one here)."""

    root: Store
    run_id: str
    home: Home

    @property
    def is_alive_here(self) -> bool | None:
        """Whether the supervisor works on this machine; None if the run was never started from here."""
        folder = self.home.run(self.run_id)
        return folder.supervisor_pid() is not None if folder.session.exists() else None


def find_run(run: str | None, store: str | None) -> FoundRun:
    """Find a run.

    Args:
        run: its id, the beginning of it, or None for the one that was launched last.
        store: where to look; None for every store that was used from here.

    Raises:
        RunNotFound: there is none.
        WrongInput: several begin like this.
        CheckpointError: the store that was named cannot be read.
    """
    from cluster.errors import RunNotFound, WrongInput
    from cluster.runs.home import Home

    home = Home.default()
    found = [(root, run_id) for root in open_stores(home, store) for run_id in _matching(root, run)]
    if not found:
        where = store or ", ".join(home.stores()) or "any store used from here"
        if run is None:
            raise RunNotFound(
                f"There is no run yet in {where}. Start one: alpaca-jobs launch JOB; or name a store: --store URI"
            )
        raise RunNotFound(f"There is no run {run} in {where}. See: alpaca-jobs runs, or name a store: --store URI")
    if run is None:
        root, run_id = max(found, key=lambda one: (launched_at(*one), one[1]))
    elif len({run_id for _, run_id in found}) > 1:
        names = [run_id for _, run_id in found]
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        raise WrongInput(f"Several runs begin with {run}: {', '.join(names[:MAX_NAMED])}{more}. Write more of the id.")
    else:
        root, run_id = found[0]
    return FoundRun(root, run_id, home)


def open_stores(home: Home, store: str | None) -> list[Store]:
    """The named store, or all that were used from here; one of many that cannot be read is said and left out."""
    from checkpoints.errors import CheckpointError
    from checkpoints.store import Store

    if store is not None:
        return [open_named(store)]
    opened = []
    for uri in home.stores():
        try:
            root = Store.open(uri)
            root.list("index/")
        except CheckpointError as exc:
            render.say(f"{uri} cannot be read and is left out: {exc}")
        else:
            opened.append(root)
    return opened


def open_named(uri: str) -> Store:
    """The store at an address that the user wrote; nothing is asked there yet.

    Raises:
        Refused: no store can be called that.
    """
    from checkpoints.errors import StoreError
    from checkpoints.store import Store

    try:
        return Store.open(uri)
    except StoreError as exc:
        raise Refused(str(exc)) from exc


def launched_at(root: Store, run_id: str) -> str:
    """When a run was launched, ISO time; empty if its entry is gone."""
    from checkpoints.errors import ObjectMissing
    from cluster.runs.run_view import index_key

    try:
        return str((root.get_json(index_key(run_id)) or {}).get("launched_at", ""))
    except ObjectMissing:  # the run is being removed at this moment
        return ""


def _matching(root: Store, run: str | None) -> list[str]:
    from cluster.runs.run_view import list_runs

    runs = list_runs(root)
    if run is None:
        return runs
    return [run] if run in runs else [run_id for run_id in runs if run_id.startswith(run)]
