"""`alpaca-jobs data preview`: rows as the model will see them, token by token, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, render, token_view
from cli.exits import Refused, require_modules

if TYPE_CHECKING:
    from alpaca_jobs.data.record_files import Record
    from alpaca_jobs.spec import JobSpec, TrainSpec

_JOB_SUFFIXES = (".yaml", ".yml")


def preview(
    source: Annotated[str, typer.Argument(metavar="JOB_OR_FILE", help="A job (.yaml), or a file of rows or chats.")],
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="FILE", help="Rows to look at, instead of the job's data.from.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Whose tokenizer; for a file: tiny-llama if left out.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME", help="For a file: alpaca, vicuna or pretrain; else guessed."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", metavar="N", min=1, help="Instead of the recipe's.")
    ] = None,
    show: Annotated[int, typer.Option("--show", metavar="N", min=0, help="How many rows to show.")] = 2,
    row: Annotated[
        list[int] | None, typer.Option("--row", metavar="N", min=0, help="Show this row, from 0. Repeatable.")
    ] = None,
    max_truncated: Annotated[
        float,
        typer.Option(
            "--max-truncated",
            metavar="X",
            min=0,
            max=1,
            callback=options.finite,
            help="Share of cut rows that is no warning.",
        ),
    ] = 0.05,
    tokens: Annotated[bool, typer.Option("--tokens", help="One line per token, with its id.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show tokens, their mask, the end-of-sequence token, what is cut and what is packed; and warn.

    Example: alpaca-jobs data preview job.yaml --row 17

    Everything is made by the code that trains. Lines say "learned" (loss) or "read" (no loss), so that nothing depends
    on colour. A job whose rows are still to be written is shown with its seed tasks.
    """
    require_modules("numpy", "tokenizers", *(["pyarrow"] if str(rows or source).endswith(".parquet") else []))
    from alpaca_jobs.training.preview import preview_tokens

    records, train, about = _open(source, rows, model, recipe, max_length)
    places = row if row else list(range(show))
    if beyond := [place for place in row or () if place >= len(records)]:
        raise Refused(f"--row is {beyond[0]}, but {about} has {len(records)} rows, counted from 0.")
    found = preview_tokens(records, train, places=places, max_truncated=max_truncated)
    if as_json:
        render.out_json({"in": about, "model": train.model, "recipe": train.recipe, **token_view.preview_json(found)})
        return
    render.out_grid(token_view.facts_grid(found, train, about))
    for one in found.rows:
        render.out("")
        render.out(token_view.row_text(one, found, with_ids=tokens, colour=render.shows_colour()))
    for warning in found.warnings:
        render.say(f"warning ({warning.name}): {warning.words}")
    if not found.warnings:
        render.say("nothing is wrong with these rows, as far as can be seen")


def _open(
    source: str, rows: str | None, model: str | None, recipe: str | None, max_length: int | None
) -> tuple[tuple[Record, ...], TrainSpec, str]:
    """Return the records to look at, how they are trained on, and where they come from in words."""
    from alpaca_jobs.training.reading import load_training_records

    changes = {
        name: value for name, value in (("model", model), ("recipe", recipe), ("max_length", max_length)) if value
    }
    if not source.endswith(_JOB_SUFFIXES):
        if rows is not None:
            raise Refused(f"{source} is no job file (.yaml), so --rows does not go with it. Name the rows alone.")
        given = {"model": "tiny-llama", **({"recipe": "pretrain"} if source.endswith(".txt") else {}), **changes}
        records = load_training_records(source, _spec(given))
        return records, _spec({"recipe": _guess(records[0]), **given}), source
    from alpaca_jobs.spec_io import load_job

    job = load_job(Path(source))
    train = job.train if not changes else _spec({**job.train.model_dump(exclude_unset=True), **changes})
    name = rows or job.data.from_
    if name is not None:
        return load_training_records(name, train), train, name
    return _seed_records(job.data.seed_tasks), train, f"the job's seed tasks ({job.data.seed_tasks})"


def _seed_records(source: str) -> tuple[Record, ...]:
    from alpaca_jobs.data.record_files import Record
    from alpaca_jobs.generation.seeds import load_seed_tasks

    return tuple(
        Record(f"seed task {place}", {"instruction": task.instruction, "input": task.input, "output": task.output})
        for place, task in enumerate(load_seed_tasks(source), start=1)
    )


def _guess(record: Record) -> str:
    """The recipe that trains on records of this shape."""
    for name, recipe in (("conversations", "vicuna"), ("messages", "vicuna"), ("instruction", "alpaca")):
        if name in record.fields:
            return recipe
    return "pretrain" if "text" in record.fields else "alpaca"


def _spec(values: dict[str, Any]) -> TrainSpec:
    from alpaca_jobs.spec import TrainSpec
    from alpaca_jobs.spec_io import part_from_dict

    return part_from_dict(TrainSpec, values)


def warnings_of(job: JobSpec) -> list[str]:
    """What a look at a job's rows and seed tasks would warn of, where they (and the tokenizer) are on this machine."""
    from alpaca_jobs.generation.seeds import seed_warnings
    from alpaca_jobs.training.local_check import local_warnings

    return [*local_warnings(job), *seed_warnings(job.data)]
