"""`alpaca-jobs init`: write a starter job that works as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.exits import Refused


def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The job file to write.")] = Path("job.yaml"),
    example: Annotated[str, typer.Option("--example", "-e", help="Which job to start from; see --list.")] = "demo",
    list_examples: Annotated[bool, typer.Option("--list", help="Show the examples, write nothing.")] = False,
) -> None:
    """Write a starter job file; the default one runs on this machine, without an account or a key.

    Example: alpaca-jobs init my-job.yaml --example alpaca-7b
    """
    from alpaca_jobs.examples import example_names, example_program, example_text
    from alpaca_jobs.spec_io import parse_job

    if list_examples:
        rows = tuple((name, _first_comment(example_text(name))) for name in example_names())
        render.out_grid(render.Grid(("example", "what it is"), rows))
        return
    text = example_text(example)
    texts = {path: text}
    for name in parse_job(text).train.files:
        texts[path.with_name(name)] = example_program(name)
    try:
        if path.exists():
            raise Refused(f"{path} exists already and was left as it is. Name another: alpaca-jobs init FILE")
        for taken in (one for one in texts if one.exists()):
            raise Refused(f"{taken} exists already, and the job needs its own. Choose another folder: init FOLDER/FILE")
        for target, content in texts.items():
            with target.open("x", encoding="utf-8") as file, _gone_if_broken_off(target):
                file.write(content)
                file.flush()
    except OSError as exc:
        raise Refused(f"{path} cannot be written ({exc.strerror}). Name another: alpaca-jobs init FILE") from exc
    render.out(str(path))
    render.say(f"Look it over, then: alpaca-jobs validate {path}, and: alpaca-jobs launch {path}")


@contextmanager
def _gone_if_broken_off(path: Path) -> Iterator[None]:
    """Half a file (a full disk, Ctrl-C) does not stay."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _first_comment(text: str) -> str:
    first = text.partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""
