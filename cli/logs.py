"""`alpaca-jobs logs`: what a run said, over all its attempts; -f follows it to its end."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from cli import event_lines, options, render
from cli.exits import ExitCode, Refused

if TYPE_CHECKING:
    from cluster.events import Event

_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def logs(
    run: options.RunName = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
    since: Annotated[
        str | None, typer.Option("--since", metavar="WHEN", help="Only what is newer: 10m, 2h, or an ISO time.")
    ] = None,
    store: options.Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Show what a run said; with -f come back to one that still goes on.

    Example: alpaca-jobs logs -f demo-x3fkd
    """
    from cli.finding import find_run
    from cli.follow import how_to_come_back
    from cluster.event_reading import read_events
    from cluster.launch.following import follow_run

    start = _since(since, now=datetime.now(UTC)) if since else ""
    found = find_run(run, store)
    if not follow:
        for event in read_events(found.root.child(found.run_id)):
            if event.t > start:
                _show(event, as_json=as_json)
        return
    exit_code = int(ExitCode.SURROUNDINGS_FAILED)
    try:
        for event in follow_run(found.root, found.run_id, found.home, since=start):
            _show(event, as_json=as_json)
            if event.kind == "end":
                exit_code = int(event.fields.get("exit_code", exit_code))
    except KeyboardInterrupt:
        render.say(how_to_come_back(found))
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    raise typer.Exit(exit_code)


def _show(event: Event, *, as_json: bool) -> None:
    render.out(render.json_line(event.to_json()) if as_json else event_lines.log_line(event))


def _since(text: str, *, now: datetime) -> str:
    """A time as events carry it (ISO, UTC, milliseconds), from `10m` before now or from an ISO time.

    Raises:
        Refused: it is neither.
    """
    try:
        if match := _AGO.fullmatch(text):
            when = now - timedelta(**{_UNITS[match[2]]: float(match[1])})
        else:
            when = datetime.fromisoformat(text)
        return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError):  # the latter: before the year 1
        raise Refused(
            f"--since is {text}, but a time is wanted: 10m, 2h or 1d ago, or ISO such as 2026-11-20T10:00."
        ) from None
