"""`alpaca-jobs drill`: kill a run's node on purpose, then hold the result against an undisturbed run."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import event_lines, options, render, starting, words
from cli.ending import end_runs
from cli.exits import ExitCode, Refused

if TYPE_CHECKING:
    from cluster.events import Event
    from cluster.launch.drill_killer import Kill


def drill(
    job_file: options.JobFile,
    kills: Annotated[
        int | None, typer.Option("--kills", min=0, help="How often the node is killed.", show_default="2; 1 on a cloud")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the moments.")] = 0,
    world_size: Annotated[
        str | None, typer.Option("--world-size", metavar="A,B", help="Training ranks of the attempts, in turn.")
    ] = None,
    infra: Annotated[
        list[str] | None,
        typer.Option("--infra", metavar="aws", help="On this cloud instead of here: costs money, and asks before."),
    ] = None,
    gpus: Annotated[
        str | None, typer.Option("--gpus", metavar="NAME:COUNT", help="With --infra: on these GPUs, such as L4:1.")
    ] = None,
    max_usd: Annotated[
        float, typer.Option("--max-usd", min=0.01, callback=options.finite, help="With --infra: the most it may cost.")
    ] = 1.0,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Preempt a run of this job without warning and see whether it comes out the same.

    Example: alpaca-jobs drill job.yaml --kills 2

    Two runs really run here: one is left alone, the other's node is killed with SIGKILL. Exit code 1: not the same.
    With --infra aws one run is launched there, and its own machine terminated: does this account get it back?
    """
    if infra and infra != ["local"]:
        from cli.drill_cloud import drill_on_cloud

        num_kills = 1 if kills is None else kills
        drill_on_cloud(
            job_file, infra=infra, gpus=gpus, max_usd=max_usd, kills=num_kills, yes=yes, as_json=as_json
        )  # fmt: skip
        return
    kills = 2 if kills is None else kills
    from alpaca_jobs.spec_io import load_job
    from cluster.launch.drill import run_drill
    from cluster.runs.home import Home

    job = load_job(job_file)
    sizes = _sizes(world_size)
    starting.check_installed(job)
    home = Home.default()
    before = {folder.run_id for folder in home.runs()}
    try:
        result = run_drill(job, kills=kills, seed=seed, world_sizes=sizes, home=home, on_event=Talk().hear)
    except KeyboardInterrupt:
        end_runs([folder.run_id for folder in home.runs() if folder.run_id not in before])
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    body = result.to_json()
    if as_json:
        render.out_json(body)
    else:
        render.out_grid(drill_grid(body))
    is_elastic = len(set(sizes)) > 1
    passed = result.is_good and (result.bit_identical or is_elastic)
    raise typer.Exit(ExitCode.DONE if passed else ExitCode.JOB_FAILED)


class Talk:
    """Tells on stderr what the two runs do, line by line: a drill is often read afterwards."""

    def __init__(self) -> None:
        self._thinning = event_lines.Thinning()

    def hear(self, run: str, what: Event | Kill | str) -> None:
        """Take an event, a kill or a sentence."""
        from cluster.events import Event

        if isinstance(what, str):
            line: str | None = what
        elif isinstance(what, Event):
            line = event_lines.line_of(what) if self._thinning.lets_through(what) else None
        else:
            line = f"KILLED attempt {what.attempt} in {what.region}, in phase {what.phase}" + _at(what.reached)
        if line:
            render.say(f"{run:>11} | {line}")


def drill_grid(result: Mapping[str, Any]) -> render.Grid:
    """The result as the table that ends the demo."""
    regions = result["regions"]
    moved = all(one != other for one, other in pairwise(regions))
    by_phase = ", ".join(f"{count} in {phase}" for phase, count in result["kills_by_phase"].items()) or "none"
    rows = [
        ("kills", f"{result['kills']} ({by_phase})"),
        ("attempts", str(result["attempts"])),
        ("regions", f"{' -> '.join(regions)}" + ("" if moved else "  (not moved every time)")),
        ("lost steps", f"{sum(result['lost_steps'])} in all, {result['lost_steps_max']} at most at once"),
        ("rows", f"{result['rows']}; {result['rows_lost']} lost, {result['rows_duplicated']} doubled"),
        ("requests asked again", str(result["requests_repeated"])),
        ("corrupt resumes", str(result["corrupt_resumes"])),
        ("final loss", words.number(result["final_loss"], 4)),
        ("weights, undisturbed", result["weights_digest"]["undisturbed"][:32]),
        ("weights, killed", result["weights_digest"]["killed"][:32]),
        ("bit-identical", words.yes_no(result["bit_identical"])),
    ]
    undisturbed, killed = result["run_ids"]["undisturbed"], result["run_ids"]["killed"]
    return render.pairs(
        "A run whose node was killed, against an undisturbed one", rows, [f"Runs: {undisturbed}, {killed}"]
    )


def _at(step: int | None) -> str:
    return "" if step is None else f", after step {step}"


def _sizes(text: str | None) -> tuple[int, ...]:
    parts = text.split(",") if text else []
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise Refused(f"--world-size is {text}, but numbers of ranks are wanted, such as 2,1.")
    return tuple(int(part) for part in parts)
