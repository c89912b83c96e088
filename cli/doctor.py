"""`alpaca-jobs doctor`: what is installed, signed in and reachable, and what still bills although nobody wants it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options, render
from cli.exits import ExitCode, Refused

if TYPE_CHECKING:
    from cluster.launch.findings import Finding

_ORDER = ("billing", "broken", "missing", "note", "ok")


def doctor(
    fix: Annotated[
        bool, typer.Option("--fix", help="Offer to repair what can be repaired; each repair is asked for.")
    ] = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Look for what is broken and for what still costs money: machines, jobs and buckets of runs that are over.

    Example: alpaca-jobs doctor --fix

    Reads only, unless told to fix. Exit code 3 when something is broken, or bills and nobody wants it.
    """
    from cluster.launch.doctor import examine
    from cluster.runs.home import Home

    findings = examine(Home.default())
    if fix:
        _offer_repairs(findings, yes=yes)
        findings = examine(Home.default())
    findings.sort(key=lambda one: _ORDER.index(one.level.value))
    if as_json:
        render.out_json({"findings": [one.to_json() for one in findings]})
    else:
        render.out_grid(findings_grid(findings))
    if any(one.level.is_bad for one in findings):
        raise typer.Exit(ExitCode.SURROUNDINGS_FAILED)


def _offer_repairs(findings: Sequence[Finding], *, yes: bool) -> None:
    """Ask for each repair; what fails is said, and the next one is offered."""
    from cluster.errors import ClusterError
    from cluster.launch.doctor import repair

    offered = [one for one in findings if one.level.is_bad and one.repair]
    if offered and not yes and not render.can_ask():
        raise Refused("Nobody is here to agree to repairs (no terminal). Add --yes to go ahead without being asked.")
    for one in offered:
        render.say(f"{one.what}: {one.words}")
        if not yes and not render.ask("Repair it?"):
            continue
        try:
            render.say(repair(one))
        except ClusterError as exc:
            render.say(str(exc))
    if not offered:
        render.say("There is nothing that this command can repair.")


def findings_grid(findings: Sequence[Finding]) -> render.Grid:
    """One line each, the worst first, and what to type."""
    rows = tuple((one.level.value, one.what, one.words, one.command) for one in findings)
    bad = [one for one in findings if one.level.is_bad]
    if any(one.repair for one in bad):
        note = "Repairs are offered by: alpaca-jobs doctor --fix"
    else:
        note = "Nothing is broken, and nothing of ours bills that nobody wants." if not bad else "See the first lines."
    return render.Grid(("", "what", "found", "what to do"), rows, notes=(note,))
