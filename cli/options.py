"""Arguments that several commands share, written once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer


def finite(value: float | None) -> float | None:
    """A number that can be counted with: click takes `nan` and `inf` for numbers, too.

    Raises:
        typer.BadParameter: it is neither absent nor finite.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number to count with.")
    return value


def positive(value: float | None) -> float | None:
    """A limit: finite, and more than nothing.

    Raises:
        typer.BadParameter: it is neither absent nor that.
    """
    if finite(value) is not None and value is not None and value <= 0:
        raise typer.BadParameter(f"{value:g} is no limit to work within; more than 0 is wanted.")
    return value


JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="The job file.", show_default=False)]
RunName = Annotated[
    str | None, typer.Argument(metavar="RUN", help="The run's id, or the start of it; the latest run if left out.")
]
Store = Annotated[
    str | None, typer.Option("--store", metavar="URI", help="Look in this store instead of the ones used from here.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Infra = Annotated[
    list[str] | None,
    typer.Option("--infra", metavar="WHERE", help="Where to run, instead of the job's compute.infra. Repeatable."),
]
Budget = Annotated[
    float | None,
    typer.Option(
        "--budget", metavar="USD", callback=positive, help="Stop before more than this is spent (limits.max_usd)."
    ),
]
Deadline = Annotated[
    float | None,
    typer.Option(
        "--deadline", metavar="HOURS", callback=positive, help="Stop after this many hours (limits.deadline_h)."
    ),
]
