"""`alpaca-jobs data dedupe`: the rows of a file without those too similar to an earlier one."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options, render, words
from cli.exits import Refused, require_modules

if TYPE_CHECKING:
    from alpaca_jobs.generation.sharded import Shards


def dedupe(
    source: Annotated[str, typer.Argument(metavar="IN", help="JSON, JSON lines or Parquet; a path or a URI.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new file: .json, .jsonl or .parquet.")],
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="Drop what has a ROUGE-L F above this with a kept one.")
    ] = 0.7,
    field: Annotated[str, typer.Option("--field", metavar="NAME", help="Whose text is compared.")] = "instruction",
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="FILE", help="Rows that count as kept already, such as seeds. Repeatable."),
    ] = None,
    neighbours: Annotated[
        bool, typer.Option("--neighbours", help="Add the 10 nearest instructions and the mean similarity to each row.")
    ] = False,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, help="Share the work among N processes (Ray).")
    ] = 1,
    as_json: options.Json = False,
) -> None:
    """Drop rows whose instruction is too similar to an earlier one, exactly as rouge_score would decide.

    Example: alpaca-jobs data dedupe alpaca_data.json unique.json

    The order is kept, and so is every field. It is the same comparison, bit for bit, that generation uses. With more
    workers the rows are the same; it pays from some hundred thousand rows on.
    """
    if workers > 1 and neighbours:
        raise Refused("--neighbours compares every row with all before it, in one process: leave --workers away.")
    needed = [*(["pyarrow"] if ".parquet" in source + out else []), *(["ray"] if workers > 1 else [])]
    require_modules("numpy", "rapidfuzz", *needed)
    from alpaca_jobs.data.files import check_target, load_table, write_table
    from alpaca_jobs.data.lineage_file import hand_on
    from alpaca_jobs.generation.dedupe import dedupe_records

    if any(name == source for name in against or ()):
        raise Refused(f"--against {source} is the input itself: every row would be a duplicate of itself.")
    check_target(out)
    began = time.monotonic()
    records = load_table(source)
    earlier = [record.text(field, may_be_empty=True) for name in against or () for record in load_table(name)]
    with _shards(workers, threshold) as shards:
        result = dedupe_records(
            records, field=field, threshold=threshold, against=earlier, with_neighbours=neighbours, shards=shards
        )  # fmt: skip
    write_table(out, result.kept)
    hand_on(source, out, f"those with a ROUGE-L F above {threshold:g} to an earlier one dropped")
    seconds = time.monotonic() - began
    if as_json:
        found = {"in": source, "out": out, "rows": len(records), "kept": len(result.kept)}
        render.out_json(
            {**found, "dropped": result.num_dropped, "threshold": threshold, "seconds": round(seconds, 3)}
        )  # fmt: skip
        return
    render.out(out)
    share = words.share(result.num_dropped, len(records))
    render.say(
        f"{words.plural(len(result.kept), 'row')} kept of {len(records):,}; {result.num_dropped:,} dropped ({share}), "
        f"in {words.duration(seconds)}"
    )


def _shards(workers: int, threshold: float) -> AbstractContextManager[Shards | None]:
    """The shards of the work, as a context; none for one process."""
    if workers == 1:
        return nullcontext()
    from cluster.node.dedupe_shards import ray_shards

    return ray_shards(workers, threshold)
