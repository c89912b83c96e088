"""`alpaca-jobs setup`: from nothing to the first priced plan, step by step; without a terminal, the list of steps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options, render
from cli.exits import ExitCode, Refused

if TYPE_CHECKING:
    from cluster.launch.setup import Checklist, Step, Surroundings

_QUESTIONS = {
    "job": "Write a starter job there (Alpaca-7B: rows by a teacher, trained on 8 spot GPUs)?",
    "plugin": "Install the plugin (one small file, and one entry in SkyPilot's list of plugins)?",
    "bucket": "Make the bucket now?",
}


def setup(
    infra: Annotated[str, typer.Option("--infra", metavar="CLOUD", help="aws, gcp or azure.")] = "aws",
    job: Annotated[
        Path, typer.Option("--job", metavar="FILE", help="The job file; written if it is not there.")
    ] = Path("job.yaml"),
    ask_sky: Annotated[
        bool, typer.Option("--sky-check/--no-sky-check", help="Let SkyPilot try the credentials (some 20 seconds).")
    ] = True,
    as_json: options.Json = False,
) -> None:
    """Prepare a first launch on a cloud: credentials, SkyPilot, plugin, job, key, quota, bucket, and the price.

    Example: alpaca-jobs setup --infra aws

    Asks before it writes anything, and starts no machine. Break it off and call it again: it goes on where something
    is missing. Without a terminal, or with --json, it changes nothing and prints the list. Exit code 3: not ready.
    """
    from cluster.launch.setup import CLOUDS, look

    if infra not in CLOUDS:
        raise Refused(f"--infra is {infra:.40}, but {', '.join(CLOUDS)} are wanted. This machine needs no setup.")
    around = _surroundings(ask_sky)
    found = look(infra, job, around)
    if not as_json and render.can_ask():
        found = _go_through(infra, job, around, found)
    if as_json:
        render.out_json(found.to_json())
    else:
        render.out_grid(steps_grid(found))
    if not found.is_ready:
        raise typer.Exit(ExitCode.SURROUNDINGS_FAILED)


def _surroundings(ask_sky: bool) -> Surroundings:
    from cluster.cloud.aws_account import AwsAccount
    from cluster.cloud.sky_account import check_clouds
    from cluster.launch.setup import Surroundings

    if ask_sky:
        render.say("SkyPilot is asked which clouds it can use; that takes some seconds.")
    return Surroundings(os.environ, Path.home(), AwsAccount(), check_clouds if ask_sky else None)


def _go_through(infra: str, job: Path, around: Surroundings, found: Checklist) -> Checklist:
    """Offer what can be done here, in order; look again after each thing that was done."""
    from dataclasses import replace

    from cluster.launch.setup import look

    declined: set[str] = set()
    quick = replace(around, check_clouds=None)
    sky = [step for step in found.steps if step.name == f"SkyPilot on {infra}"]
    while step := next((one for one in found.steps if one.offer and one.offer not in declined), None):
        render.say(f"{step.name}: {step.words}")
        declined.add(step.offer)  # what was done is not offered again either
        if render.ask(_QUESTIONS[step.offer]):
            _do(step, job, found)
            found = look(infra, job, quick)  # SkyPilot's answer stays what it was
            found = replace(
                found, steps=tuple(sky[0] if sky and one.name == sky[0].name else one for one in found.steps)
            )
    return found


def _do(step: Step, job: Path, found: Checklist) -> None:
    match step.offer:
        case "job":
            from cli.init import init

            init(job, example="alpaca-7b", list_examples=False)
        case "plugin":
            from cluster.cloud.plugin_install import install_plugin, plugin_status

            install_plugin(plugin_status())
            render.say("Installed. SkyPilot reads it when its API server starts: sky api stop, then sky api start.")
        case "bucket":
            from cli.starting import make_bucket

            make_bucket(found.bucket)


def steps_grid(found: Checklist) -> render.Grid:
    """The steps in order, and what to type for those that are missing."""
    rows = tuple((step.name, step.state, step.words, step.command) for step in found.steps)
    missing = sum(step.state not in ("done", "advised") for step in found.steps)
    note = "Ready: the last line starts it." if found.is_ready else f"{missing} to go. Then call setup again."
    return render.Grid(("step", "state", "found", "what to type"), rows, notes=(note,))
