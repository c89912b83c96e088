"""Copying a run that is over to another store, whole and verified, so that it can be resumed from there.

What makes it a run, `job.json` and the index entry, is written last: half a copy is no run, and copying again goes on.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, Final

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.errors import AlreadyExists, Damaged
from checkpoints.mapped import map_file
from checkpoints.store import UNREADABLE, Store
from checkpoints.transfer import content_of, copy_run
from cluster.errors import RunActive
from cluster.job_record import JOB_KEY
from cluster.runs.run_view import SAMPLE_S, RunState, index_key, view_run

logger = logging.getLogger(__name__)

_RECORDS: Final = ("answers/", "ledger/", "control/review.json", "control/limits-", "control/machines-")
"""What the run goes on from, each JSON with its own digest: one that is damaged stops the copy."""
_TOLD: Final = ("reports/", "events/", "estimate.json", "machines/", "tracking/")
"""What tells about it: one that is damaged is named and copied as it is, so that its digest still says so."""
_FILES: Final = ("inputs/",)
_PIECE_BYTES: Final = 16 * 2**20


def copy_whole_run(source: Store, destination: Store, run_id: str, *, is_alive_here: bool | None) -> Iterator[str]:
    """Copy a run from one store's root to another's; yields what was copied, in words.

    Raises:
        RunActive: it is alive: two copies that go on would be two runs with one name.
        Damaged: a commit or a record is not as it was put; the copy does not become a run.
        AlreadyExists: the destination has another run of that name, or this one and it went on there.
    """
    state = view_run(source, run_id, is_alive=is_alive_here).state
    if not state.is_over and state is not RunState.SILENT:
        raise RunActive(f"{run_id} is {state.value}. Stop it first with `alpaca-jobs cancel {run_id}`, then copy it.")
    here, there = source.child(run_id), destination.child(run_id)
    there.probe_put_once()
    for ref in copy_run(here, there, LAYOUT, sample_s=SAMPLE_S):
        yield str(ref)
    for prefix in (*_FILES, *_RECORDS, *_TOLD):
        keys = here.list(prefix)
        for key in keys:
            if key.endswith(".json") and prefix not in _FILES and here.get_json(key) is None:
                problem = Damaged(key, UNREADABLE, here.uri, advice="It is copied as it is.")
                if prefix in _RECORDS:
                    raise Damaged(key, UNREADABLE, here.uri, advice="Put back a whole one; nothing was made a run.")
                logger.warning("%s", problem)
            _copy_object(here, there, key)
        if keys:
            counted = "1 object" if len(keys) == 1 else f"{len(keys)} objects"
            yield f"{counted} of {prefix}" if prefix.endswith("/") else ", ".join(keys)
    _put_json(here, there, JOB_KEY)
    _put_json(source, destination, index_key(run_id))


def _copy_object(source: Store, destination: Store, key: str) -> None:
    """Copy one object, which may be larger than memory, and read it again where it went."""
    with tempfile.TemporaryFile() as file:
        digest = _read_whole(source, key, file)
        file.flush()
        destination.put(key, map_file(file))
    if _read_whole(destination, key, None) != digest:
        problem = f"what was read at {source.uri} is not what lies here now"
        raise Damaged(
            key, problem, destination.uri, advice="Copy again; if it stays so, a store or this machine fails."
        )


def _read_whole(store: Store, key: str, file: BinaryIO | None) -> tuple[int, str]:
    """Read an object piece by piece, into a file if there is one; its size and SHA-256."""
    size, done, digest = store.size(key) or 0, 0, hashlib.sha256()
    while done < size and (piece := store.get_range(key, done, min(_PIECE_BYTES, size - done))):
        digest.update(piece)
        done += len(piece)
        if file is not None:
            file.write(piece)
    return done, digest.hexdigest()


def _put_json(source: Store, destination: Store, key: str) -> None:
    body = source.get_record(key, advice="Put back a whole one; the copy was not made a run.")
    try:
        destination.put_once(key, content_of(body))
    except AlreadyExists as exc:
        if exc.existing is None or content_of(exc.existing) != content_of(body):
            raise
