"""Copying a run that is over to another store, whole and verified, so that it can be resumed from there.

What makes it a run, `job.json` and the index entry, is written last: half a copy is no run, and copying again goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.errors import AlreadyExists
from checkpoints.store import Store
from checkpoints.transfer import content_of, copy_run
from cluster.errors import RunActive
from cluster.runs.run_view import RunState, index_key, view_run

_ALONGSIDE = ("inputs/", "answers/", "ledger/", "reports/", "events/")


def copy_whole_run(source: Store, destination: Store, run_id: str, *, is_alive_here: bool | None) -> Iterator[str]:
    """Copy a run from one store's root to another's; yields what was copied, in words.

    Raises:
        RunActive: it is alive: two copies that go on would be two runs with one name.
        Damaged: a commit is not as it was committed; the copy does not become a run.
        AlreadyExists: the destination has another run of that name.
    """
    state = view_run(source, run_id, is_alive=is_alive_here).state
    if not state.is_over and state is not RunState.SILENT:
        raise RunActive(f"{run_id} is {state.value}. Stop it first with `alpaca-jobs cancel {run_id}`, then copy it.")
    here, there = source.child(run_id), destination.child(run_id)
    there.probe_put_once()
    for ref in copy_run(here, there, LAYOUT):
        yield str(ref)
    for folder in _ALONGSIDE:
        keys = here.list(folder)
        for key in keys:
            there.put(key, here.get(key))
        if keys:
            yield f"{len(keys)} objects of {folder}"
    _put_json(here, there, "job.json")
    _put_json(source, destination, index_key(run_id))


def _put_json(source: Store, destination: Store, key: str) -> None:
    content = content_of(json.loads(source.get(key)))
    try:
        destination.put_once(key, content)
    except AlreadyExists as exc:
        if exc.existing is None or content_of(exc.existing) != content:
            raise
