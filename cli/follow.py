"""Following a run on stderr: a panel that redraws itself on a terminal, lines elsewhere. Shared by several verbs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from cli import event_lines, progress, render
from cli.exits import ExitCode

if TYPE_CHECKING:
    from cli.finding import FoundRun
    from cluster.events import Event

REPORT_PATIENCE_S = 15.0
"""Where the supervisor is on another machine, the report comes a moment after the end."""


def follow(events: Iterable[Event], title: str, *, since: str = "") -> progress.Progress:
    """Show events as they come until there are no more; returns how the run stands then.

    Args:
        events: of the whole run, so that what is shown is how it stands.
        since: ISO time; what happened before it is known, an end too, and not shown again.
    """
    now, thinning, ended_before = progress.Progress(), event_lines.Thinning(), None
    panel = render.LivePanel() if render.progress_is_live() else None
    with panel or nullcontext():
        for event in events:
            now = progress.after(now, event)
            if event.t <= since:
                ended_before = now.end
                continue
            line = event_lines.line_of(event)
            if panel is not None:
                if line and event.kind in ("decision", "log", "attempt", "stall"):
                    panel.say(line)
                panel.show(partial(_panel, title, now))
            elif line and thinning.lets_through(event):
                render.say(line)
    return replace(now, end=None) if now.end is ended_before else now


def _panel(title: str, now: progress.Progress) -> render.Grid:
    return render.pairs(title, progress.panel_rows(now, now_s=time.time()))


def follow_to_the_end(found: FoundRun, *, since: str = "") -> tuple[int, dict[str, Any] | None]:
    """Follow a run until it is over; returns its exit code and its report.

    Ctrl-C leaves the run alone, says how to come back to it, and exits with 130.
    """
    from cluster.launch.following import follow_run

    try:
        end = follow(follow_run(found.root, found.run_id, found.home), found.run_id, since=since).end
        report = _report(found) if end is not None else None
    except KeyboardInterrupt:
        render.say(how_to_come_back(found))
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    return int((end or {}).get("exit_code", ExitCode.SURROUNDINGS_FAILED)), report


def how_to_come_back(found: FoundRun) -> str:
    """What a user is told who leaves a run that goes on."""
    return (
        f"{found.run_id} goes on without this terminal.\n"
        f"  watch it again: alpaca-jobs logs -f {found.run_id}\n"
        f"  how it stands:  alpaca-jobs status {found.run_id}\n"
        f"  stop it:        alpaca-jobs cancel {found.run_id}"
    )


def _report(found: FoundRun) -> dict[str, Any] | None:
    from cluster.runs.report import read_report

    give_up_at = time.monotonic() + REPORT_PATIENCE_S
    while True:
        report = read_report(found.root.child(found.run_id))
        if report is not None or time.monotonic() >= give_up_at:
            return None if report is None else dict(report)
        time.sleep(0.5)
