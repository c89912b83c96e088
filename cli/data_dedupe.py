"""`alpaca-jobs data dedupe`: the rows of a file without those too similar to an earlier one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, render, words
from cli.exits import Refused, require_modules

if TYPE_CHECKING:
    from alpaca_jobs.data.record_files import Record
    from alpaca_jobs.generation.sharded import Shards

_TELL_EVERY_S = 5.0


def dedupe(
    source: Annotated[str, typer.Argument(metavar="IN", help="JSON, JSON lines or Parquet; a path or a URI.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new file: .json, .jsonl or .parquet.")],
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold",
            min=0,
            max=1,
            callback=options.finite,
            help="Drop what has a ROUGE-L F above this with a kept one.",
        ),
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
    from alpaca_jobs.data.files import check_target
    from alpaca_jobs.data.lineage_file import hand_on
    from alpaca_jobs.data.stream_writing import write_table
    from alpaca_jobs.data.streams import local_file, stream_table
    from alpaca_jobs.generation.dedupe import decide_records

    if any(name == source for name in against or ()):
        raise Refused(f"--against {source} is the input itself: every row would be a duplicate of itself.")
    check_target(out)
    began = time.monotonic()
    seen = _Seen()
    with (
        _shards(workers, threshold) as shards,
        tempfile.TemporaryDirectory() as folder,
        local_file(source, Path(folder)) as path,
    ):
        decided = decide_records(
            seen.told(stream_table(path, source), field), field=field, threshold=threshold,
            against=_texts(against or (), field), with_neighbours=neighbours, shards=shards,
        )  # fmt: skip
        num_kept = write_table(out, seen.kept(decided))
    num_rows, num_dropped = seen.count, seen.count - num_kept
    hand_on(source, out, f"those with a ROUGE-L F above {threshold:g} to an earlier one dropped")
    seconds = time.monotonic() - began
    if as_json:
        found = {"in": source, "out": out, "rows": num_rows, "kept": num_kept}
        render.out_json(
            {
                **found, "dropped": num_dropped, "threshold": threshold, "seconds": round(seconds, 3),
                "mostly_other_letters": seen.num_unread,
            }
        )  # fmt: skip
        return
    render.out(out)
    share = words.share(num_dropped, num_rows)
    render.say(
        f"{words.plural(num_kept, 'row')} kept of {num_rows:,}; {num_dropped:,} dropped ({share}), "
        f"in {words.duration(seconds)}"
    )
    if seen.num_unread:
        render.say(
            f"Warning: of {num_rows:,} rows, {seen.num_unread:,} are written mostly in other letters than a to z. "
            "ROUGE-L reads nothing else but digits: of those rows it drops what shares a number or a name, and keeps "
            "what is the same. Dedupe rows before they are translated, or leave these as they are."
        )


def _texts(sources: Iterable[str], field: str) -> Iterator[str]:
    """The texts of whole files, one after the other."""
    from alpaca_jobs.data.streams import local_file, stream_table

    for source in sources:
        with tempfile.TemporaryDirectory() as folder, local_file(source, Path(folder)) as path:
            for record in stream_table(path, source):
                yield record.text(field, may_be_empty=True)


class _Seen:
    """Counts rows as they are decided, and says now and then how many those are."""

    def __init__(self) -> None:
        self.count = self.num_unread = 0
        self._told_at = time.monotonic()

    def told(self, records: Iterable[Record], field: str) -> Iterator[Record]:
        """The records, on their way to be decided; counts those that ROUGE-L cannot read."""
        from alpaca_jobs.generation.rouge import is_read

        for record in records:
            text = record.fields.get(field)
            self.num_unread += isinstance(text, str) and not is_read(text)
            yield record

    def kept(self, decided: Iterable[Mapping[str, Any] | None]) -> Iterator[Mapping[str, Any]]:
        """The rows that are kept."""
        num_kept = 0
        for fields in decided:
            self.count += 1
            if fields is not None:
                num_kept += 1
                yield fields
            if time.monotonic() - self._told_at > _TELL_EVERY_S:
                self._told_at = time.monotonic()
                render.say(f"{self.count:,} rows decided, {num_kept:,} kept")


def _shards(workers: int, threshold: float) -> AbstractContextManager[Shards | None]:
    """The shards of the work, as a context; none for one process."""
    if workers == 1:
        return nullcontext()
    from cluster.node.dedupe_shards import ray_shards

    return ray_shards(workers, threshold)
