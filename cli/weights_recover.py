"""`alpaca-jobs weights recover`: the tuned model again, from the base model and what training changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli import options, render, words
from cli.exits import require_modules


def recover(
    raw: Annotated[str, typer.Argument(metavar="RAW", help="The base model: a folder, or a cached hub name.")],
    diff: Annotated[str, typer.Argument(metavar="DIFF", help="What `weights diff`, Alpaca or Vicuna published.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; new or empty.")],
    padding: Annotated[
        Literal["mean", "zero"] | None,
        typer.Option("--padding", help="For a diff by others, with more rows: mean (Alpaca) or zero (Vicuna v0)."),
    ] = None,
    integrity_sum: Annotated[
        float | None,
        typer.Option(
            "--integrity-sum",
            metavar="SUM",
            callback=options.finite,
            help="What all parameters add up to; Alpaca-7B: 50637.1836.",
        ),
    ] = None,
    sum_tolerance: Annotated[
        float,
        typer.Option(
            "--sum-tolerance",
            metavar="X",
            min=0,
            callback=options.finite,
            help="How far the sum may be off; Alpaca's is the default.",
        ),
    ] = 0.01,
    as_json: options.Json = False,
) -> None:
    """Write RAW plus DIFF, every tensor checked against the digests that `weights diff` recorded.

    Example: alpaca-jobs weights recover huggyllama/llama-7b ./my-model-diff ./my-model

    With the wrong base nothing is written.
    """
    require_modules("torch")
    from dataclasses import asdict

    from alpaca_jobs.weights.recover import recover as add

    made = add(
        raw, diff, out, padding=padding, integrity_sum=integrity_sum, sum_tolerance=sum_tolerance,
        on_tensor=render.counting("tensors"),
    )  # fmt: skip
    if as_json:
        render.out_json(asdict(made))
        return
    render.out(str(out))
    if made.verified:
        checked = "each the same, bit for bit, as when the diff was made"
    elif integrity_sum is not None:
        checked = "the integrity sum is right"
    else:
        checked = (
            "not checked: this diff records no digests. Check with --integrity-sum SUM, or ask the model something"
        )
    render.say(f"{words.plural(made.num_tensors, 'tensor')}; {checked}. Integrity sum: {made.sum:.4f}")
