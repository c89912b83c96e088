"""`alpaca-jobs data convert`: a file of rows in another shape, in another kind of file."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cli import options, render, words
from cli.exits import require_modules


class Shape(StrEnum):
    """What a record looks like."""

    ALPACA = "alpaca"
    SELF_INSTRUCT = "self-instruct"
    SHAREGPT = "sharegpt"
    OPENAI = "openai"


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="JSON, JSON lines or Parquet; a path or a URI.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new file: .json, .jsonl or .parquet.")],
    to: Annotated[Shape, typer.Option("--to", help="The shape of each record in OUT.")] = Shape.ALPACA,
    as_json: options.Json = False,
) -> None:
    """Write a file's rows in another shape: Alpaca's, Self-Instruct's, ShareGPT's or OpenAI's messages.

    Example: alpaca-jobs data convert chats.json messages.jsonl --to openai

    What shape IN has is seen in each record. The kind of file is said by its name. Fields that a shape has no place for
    are left behind; a conversation of several exchanges is refused where a shape holds one.
    """
    require_modules(*(["pyarrow"] if ".parquet" in source + out else []))
    from alpaca_jobs.data.files import check_target, load_table, write_table
    from alpaca_jobs.data.formats import read_examples, render_examples

    check_target(out)
    examples = read_examples(load_table(source))
    records = render_examples(examples, to.value)
    write_table(out, records)
    if as_json:
        render.out_json({"in": source, "out": out, "to": to.value, "examples": len(examples), "records": len(records)})
    else:
        render.out(out)
        render.say(f"{words.plural(len(examples), 'example')} in {words.plural(len(records), 'record')}")
