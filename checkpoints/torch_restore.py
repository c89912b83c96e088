"""Loading a commit into a state dict, by all ranks together: what one of them finds wrong, all of them raise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoints.agreed import on_every_rank, on_rank_0
from checkpoints.barrier import Exchange
from checkpoints.errors import Damaged, StateMismatch
from checkpoints.keys import CommitRef, Layout
from checkpoints.manifest import Manifest
from checkpoints.reader import CommitReader
from checkpoints.store import Store
from checkpoints.torch_load import load_tensors
from checkpoints.torch_state import (
    STATE_OBJECT,
    FlatState,
    Partial,
    check_fits,
    check_whole,
    flatten_state,
    parse_state,
    set_values,
)


def load_together(
    exchange: Exchange, store: Store, layout: Layout, ref: CommitRef, state: Mapping[str, Any], *, partial: Partial
) -> Manifest:
    """Overwrite `state` in place with what was committed as `ref`; see Checkpointer.load. Collective."""
    manifest, record = on_rank_0(exchange, lambda: _read_record(store, layout, ref))
    flat = FlatState({}, {})

    def ask() -> list[str]:
        nonlocal flat
        flat = flatten_state(state)
        return [*flat.tensors, *flat.values]

    asked = {name for names in on_every_rank(exchange, ask) for name in names}

    def fill() -> None:
        stored = parse_state(record)
        check_fits(flat, stored)
        check_whole(asked, stored, partial)
        load_tensors(CommitReader(store, layout, manifest), stored, flat)
        set_values(flat, stored)

    on_every_rank(exchange, fill)
    return manifest


def verify_together(exchange: Exchange, store: Store, layout: Layout, ref: CommitRef) -> None:
    """Read all of a commit, each rank its share. Collective.

    Raises:
        Damaged, NotCommitted, StoreUnreachable: on every rank what was found on any.
    """
    manifest = on_rank_0(exchange, lambda: CommitReader.open(store, layout, ref).manifest)
    reader = CommitReader(store, layout, manifest)
    on_every_rank(exchange, lambda: reader.verify(part=exchange.rank, parts=exchange.world_size))


def _read_record(store: Store, layout: Layout, ref: CommitRef) -> tuple[Manifest, bytes]:
    reader = CommitReader.open(store, layout, ref)
    if STATE_OBJECT not in reader.manifest.by_name:
        raise StateMismatch(f"{ref} has no {STATE_OBJECT}: it was not saved by a Checkpointer")
    record = reader.read(STATE_OBJECT)
    try:
        parse_state(record)
    except (ValueError, KeyError, TypeError) as exc:
        key = layout.commit_prefix(ref) + STATE_OBJECT
        raise Damaged(key, f"it cannot be understood ({exc})", store.uri) from exc
    return reader.manifest, record
