"""Everything that is printed goes through here: results to stdout, talk to stderr; tables for people, JSON for scripts.

rich is imported when a table is drawn, not before. Colour never carries meaning, so that a pipe loses nothing.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, Group

PIPE_WIDTH = 200
"""Columns of a table that goes into a pipe or a file, where no terminal says how wide it is."""
_LONG_WORD = 16  # letters; a longer word, such as a store's URI, may fold


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn: pure text, so that what a command shows can be tested without a terminal.

    Attributes:
        columns: headings; one that starts with `>` is set to the right. No headings: a list of name and value.
        rows: cells as text, each row as long as the columns (two cells where there are no columns).
        title: a line above, or empty.
        notes: lines below.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()


def pairs(title: str, rows: Sequence[tuple[str, str]], notes: Sequence[str] = ()) -> Grid:
    """A list of name and value."""
    return Grid((), tuple(rows), title, tuple(notes))


def out(text: str) -> None:
    """Print a result: one text, as it is."""
    print(text)


def out_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print a result for programs: JSON and nothing else."""
    print(json.dumps(_without_nan(value), indent=2, ensure_ascii=False, allow_nan=False))


def json_line(value: Mapping[str, Any]) -> str:
    """A value as one line of JSON."""
    return json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False)


def _without_nan(value: Any) -> Any:
    """The same value with null for each number that JSON has no word for: a loss may have become NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, list | tuple) else value


def out_grid(grid: Grid) -> None:
    """Print a result for people."""
    _draw(grid, sys.stdout)


def say(text: str = "") -> None:
    """Talk: progress, questions, advice."""
    print(text, file=sys.stderr, flush=True)


def say_grid(grid: Grid) -> None:
    """A table that is talk, such as the plan before it is agreed to."""
    _draw(grid, sys.stderr)


def ask(question: str) -> bool:
    """Ask on the terminal; only y and yes agree. The end of the input is a no."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    return answer.strip().lower() in ("y", "yes")


def can_ask() -> bool:
    """Whether somebody is there to answer and to see the question."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def shows_colour() -> bool:
    """Whether stdout is a terminal whose user has not asked for plain text (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def progress_is_live() -> bool:
    """Whether progress may redraw itself; elsewhere it is written line by line."""
    return sys.stderr.isatty()


def counting(thing: str) -> Callable[[int, int], None]:
    """A line on a terminal that counts up in place, `12 of 291 tensors`; silent elsewhere."""

    def count(done: int, total: int) -> None:
        if progress_is_live():
            print(f"\r{done:,} of {total:,} {thing}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return count


class LivePanel:
    """A small table on stderr that redraws itself, with lines of talk scrolling by above it. Use as a context."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False)
        self._make: Callable[[], Grid] = lambda: pairs("", ())
        self._live = Live(
            console=self._console, refresh_per_second=4, transient=True, get_renderable=lambda: draw(self._make())
        )

    def __enter__(self) -> LivePanel:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, grid: Grid | Callable[[], Grid]) -> None:
        """Replace the table; one that is given as a function is made anew at every redraw, four times a second."""
        self._make = grid if callable(grid) else lambda: grid

    def say(self, text: str) -> None:
        """A line above the table, which stays."""
        self._console.print(text, markup=False, soft_wrap=True)


def _draw(grid: Grid, stream: Any) -> None:
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:  # rich's own ends with 1, which says here that a job failed
            raise BrokenPipeError

    console = Plain(file=stream, highlight=False, soft_wrap=False, width=None if stream.isatty() else PIPE_WIDTH)
    console.print(draw(grid, console=console))
    for note in grid.notes:
        console.print(note, markup=False, soft_wrap=True)
    stream.flush()


def draw(grid: Grid, *, console: Console | None = None) -> Group:
    """A grid's title and table for rich. Cells are text, never markup: a region called [red] stays one.

    Nothing is cut off: text folds, and a table that is too wide even so for the console (where one is given) is written
    as sentences, each row with the names of its columns.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD if grid.columns else None, show_header=bool(grid.columns), pad_edge=False)
    if not grid.columns:
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
    for column in grid.columns:
        is_number = column.startswith(">")
        table.add_column(
            Text(column.lstrip(">")), justify="right" if is_number else "left", no_wrap=is_number, overflow="fold"
        )
    for row in grid.rows:
        table.add_row(*(Text(cell) for cell in row))
    if grid.columns and console is not None and _least_width(grid) > console.width:
        return draw(pairs(grid.title, [_sentence(grid.columns, row) for row in grid.rows]))
    return Group(Text(grid.title, style="bold"), table) if grid.title else Group(table)


def _least_width(grid: Grid) -> int:
    """Columns of a terminal in which a table still reads well: numbers whole, words too unless they are long."""

    def least(heading: str, cells: Sequence[str]) -> int:
        if heading.startswith(">"):
            return max(map(len, (heading.lstrip(">"), *cells)))
        return min(max(len(word) for text in (heading, *cells) for word in text.split() or [""]), _LONG_WORD)

    widths = [least(name, [row[place] for row in grid.rows]) for place, name in enumerate(grid.columns)]
    return sum(widths) + 3 * len(widths)


def _sentence(columns: Sequence[str], row: Sequence[str]) -> tuple[str, str]:
    """A row of a table as its first cell and all others with the names of their columns."""
    named = zip((column.lstrip(">") for column in columns[1:]), row[1:], strict=True)
    return row[0], ", ".join(f"{name} {cell}" for name, cell in named if cell)
