"""`alpaca-jobs data card`: one page that says what rows are like and where they come from."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options, render, words
from cli.exits import Refused, require_modules

if TYPE_CHECKING:
    from alpaca_jobs.data.formats import Example
    from alpaca_jobs.data.rows import Row


def card(
    source: Annotated[str, typer.Argument(metavar="IN", help="Rows: JSON, JSON lines or Parquet; a path or a URI.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new .html file.")],
    job_file: Annotated[
        Path | None, typer.Option("--job", metavar="JOB", help="The job that wrote the rows: teacher, seeds, terms.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write a page about rows: lengths, similarity, verbs and what they act on, examples, licence and lineage.

    Example: alpaca-jobs data card rows.jsonl card.html --job job.yaml

    The page is one file that fetches nothing. Rows may have any shape that `data convert` reads; of a chat, every
    exchange counts.
    """
    require_modules("numpy", "rapidfuzz", *(["pyarrow"] if source.endswith(".parquet") else []))
    from alpaca_jobs.data.card import make_card
    from alpaca_jobs.data.files import load_table, whole_file
    from alpaca_jobs.data.formats import read_examples
    from alpaca_jobs.data.lineage import lineage_of
    from alpaca_jobs.data.lineage_file import read_lineage
    from alpaca_jobs.generation.seeds import load_seed_tasks
    from alpaca_jobs.spec_io import load_job

    if out.suffix != ".html" or out.exists() or not out.absolute().parent.is_dir():
        problem = "exists already" if out.exists() else "is not the name of a new .html file in a folder that exists"
        raise Refused(f"{out} {problem}. Name another.")
    beside = read_lineage(source)
    lineage = {"rows": Path(source).name, **(beside or {"terms": "not stated; name the job with --job"})}
    if job_file is not None:
        data = load_job(job_file).data
        seeds = None if data.from_ is not None else load_seed_tasks(data.seed_tasks)
        lineage = lineage_of(data, seeds, beside=beside)
    examples = read_examples(load_table(source))
    rows = [row for one in examples for row in _rows_of(one)]
    if not rows:
        raise Refused(f"{source} holds no question with an answer, so there is nothing to show.")
    if len(rows) != len(examples):
        lineage["chats"] = f"{words.plural(len(examples), 'chat')}; each of their {len(rows):,} exchanges is a row here"
    with whole_file(out) as partial:
        partial.write_text(make_card(f"Data card: {Path(source).name}", rows, lineage), encoding="utf-8")
    if as_json:
        with_input = sum(bool(row.input) for row in rows)
        render.out_json({"out": str(out), "rows": len(rows), "with_input": with_input, "lineage": lineage})
    else:
        render.out(str(out))
        render.say(f"{words.plural(len(rows), 'row')}; open it in a browser")


def _rows_of(example: Example) -> list[Row]:
    """An example as rows: itself where it is one, else every question of a chat with its answer."""
    from alpaca_jobs.data.rows import Row

    spoken = [turn for turn in example.turns if turn.role != "system"]
    if len(spoken) <= 2 and example.instruction:
        return [Row(example.instruction, example.input or "", spoken[-1].text)]
    return [
        Row(one.text, "", two.text) for one, two in pairwise(spoken) if (one.role, two.role) == ("user", "assistant")
    ]
