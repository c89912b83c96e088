"""`alpaca-jobs data convert`: a file of rows in another shape, in another kind of file."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cli import options, render, words
from cli.exits import Refused, require_modules


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
    reversible: Annotated[
        bool, typer.Option("--reversible", help="Add fields for what a shape has no place for, for the way back.")
    ] = False,
    each_answer: Annotated[
        bool, typer.Option("--each-answer", help="A chat becomes one for each answer; earlier ones get weight 0.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Write a file's rows in another shape: Alpaca's, Self-Instruct's, ShareGPT's or OpenAI's messages.

    Example: alpaca-jobs data convert chats.json messages.jsonl --to openai

    What shape IN has is seen in each record. The kind of file is said by its name. A chat has one text where a row has
    an instruction and an input: they are joined by a blank line, and with --reversible also kept beside it, with the
    row's id. Other fields are left behind; a conversation of several exchanges is refused where a shape holds one.

    --each-answer is for train.template: chat where the tokenizer's template writes an answer otherwise once more turns
    follow, as Qwen3's does: each answer is then learned as the model is asked for it. An answer with weight 0 is read
    and not learned.
    """
    require_modules(*(["pyarrow"] if ".parquet" in source + out else []))
    from alpaca_jobs.data import formats
    from alpaca_jobs.data.files import check_target, load_table
    from alpaca_jobs.data.lineage_file import hand_on
    from alpaca_jobs.data.stream_writing import write_table

    check_target(out)
    examples = formats.read_examples(load_table(source))
    if each_answer:
        examples = [part for one in examples for part in formats.each_answer(one)]
        if not examples:
            raise Refused(f"{source} holds no answer to be learned, so there is nothing to write.")
    records = formats.render_examples(examples, to.value, reversible=reversible)
    write_table(out, records)
    hand_on(source, out, f"converted to {to.value}")
    joined = formats.num_joined(examples) if to in (Shape.SHAREGPT, Shape.OPENAI) and not reversible else 0
    if as_json:
        counts = {"examples": len(examples), "records": len(records), "inputs_joined": joined}
        render.out_json({"in": source, "out": out, "to": to.value, **counts})
        return
    render.out(out)
    note = (
        f"; {words.plural(joined, 'input')} joined to the instruction (--reversible keeps them apart)" if joined else ""
    )
    render.say(f"{words.plural(len(examples), 'example')} in {words.plural(len(records), 'record')}{note}")
