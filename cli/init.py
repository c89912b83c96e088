"""`alpaca-jobs init`: write a starter job that works as it is."""

from __future__ import annotations

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
    examples = example_jobs()
    if list_examples:
        rows = tuple((name, _first_comment(text)) for name, text in examples.items())
        render.out_grid(render.Grid(("example", "what it is"), rows))
        return
    if example not in examples:
        raise Refused(f"There is no example {example!r}. There are: {', '.join(examples)}.")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(examples[example])
    except FileExistsError:
        raise Refused(f"{path} exists already and was left as it is. Name another: alpaca-jobs init FILE") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as exc:
        raise Refused(f"{path} cannot be written ({exc.strerror}). Name another: alpaca-jobs init FILE") from exc
    render.out(str(path))
    render.say(f"Look it over, then: alpaca-jobs validate {path}, and: alpaca-jobs launch {path}")


def example_jobs() -> dict[str, str]:
    """The job files that ship with the package, name -> text; the demo first."""
    from importlib.resources import files

    folder = files("alpaca_jobs") / "examples"
    jobs = {entry.name[: -len(".yaml")]: entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    return {
        name: jobs[name].read_text(encoding="utf-8") for name in sorted(jobs, key=lambda name: (name != "demo", name))
    }


def _first_comment(text: str) -> str:
    first = text.partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""
