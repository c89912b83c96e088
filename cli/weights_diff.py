"""`alpaca-jobs weights diff`: what training changed, to be handed out where the base model may not be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli import options, render, words
from cli.exits import require_modules


def diff(
    raw: Annotated[str, typer.Argument(metavar="RAW", help="The base model: a folder, or a cached hub name.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The model trained from it; likewise.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; new or empty.")],
    padding: Annotated[
        Literal["mean", "zero"],
        typer.Option("--padding", help="What rows that RAW lacks are taken against: Alpaca's way, or Vicuna v0's."),
    ] = "mean",
    as_json: options.Json = False,
) -> None:
    """Write TUNED minus RAW, which is no use without RAW; `weights recover` undoes it to the last bit.

    Example: alpaca-jobs weights diff huggyllama/llama-7b ./my-model ./my-model-diff

    Memory stays the same whatever the model's size. Others' tools add it to RAW as they do with Alpaca's.
    """
    require_modules("torch")
    from dataclasses import asdict

    from alpaca_jobs.weights.diff import make_diff

    made = make_diff(raw, tuned, out, padding=padding, on_tensor=render.counting("tensors"))
    if as_json:
        render.out_json(asdict(made))
        return
    render.out(str(out))
    if made.grown:
        render.say(f"{', '.join(made.grown)} grew; their new rows are against the {padding} of RAW's rows"[:200])
    render.say(
        f"{words.plural(made.num_tensors, 'tensor')}, {words.number(made.num_elements)} elements; "
        f"{words.number(made.num_corrections)} of them need a correction to come back to the last bit. "
        f"Integrity sum: {made.sum:.4f}"
    )
