"""The command line: `alpaca-jobs`. One file per verb; this one lists them, in the order a newcomer meets them.

Nothing heavy is imported here or at the top of any verb's file: `--help` answers in a quarter of a second.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Annotated

import typer

from cli import (
    cancel,
    checkpoints,
    data_card,
    data_clean,
    data_convert,
    data_dedupe,
    data_preview,
    data_translate,
    doctor,
    drill,
    estimate,
    export,
    generate,
    init,
    launch,
    logs,
    offers,
    plugin,
    receipt,
    render,
    resume,
    rm,
    runs,
    setup,
    status,
    train,
    validate,
    weights_diff,
    weights_recover,
)
from cli.exits import DEBUG_VARIABLE, guarded

START, WATCH, STEER, PROVE, STAGES = "Start", "Watch", "Steer", "Prove", "One stage by itself, on this machine"
DATA, STATE, CLOUDS = "Data", "State", "Clouds"

COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("init", init.init, START),
    ("validate", validate.validate, START),
    ("offers", offers.offers, START),
    ("estimate", estimate.estimate, START),
    ("launch", launch.launch, START),
    ("runs", runs.runs, WATCH),
    ("status", status.status, WATCH),
    ("logs", logs.logs, WATCH),
    ("receipt", receipt.receipt, WATCH),
    ("cancel", cancel.cancel, STEER),
    ("resume", resume.resume, STEER),
    ("rm", rm.rm, STEER),
    ("drill", drill.drill, PROVE),
    ("generate", generate.generate, STAGES),
    ("train", train.train, STAGES),
    ("export", export.export, STAGES),
    ("weights diff", weights_diff.diff, STATE),
    ("weights recover", weights_recover.recover, STATE),
    ("checkpoints ls", checkpoints.ls, STATE),
    ("checkpoints verify", checkpoints.verify, STATE),
    ("checkpoints prune", checkpoints.prune, STATE),
    ("checkpoints copy", checkpoints.copy, STATE),
    ("data dedupe", data_dedupe.dedupe, DATA),
    ("data convert", data_convert.convert, DATA),
    ("data preview", data_preview.preview, DATA),
    ("data card", data_card.card, DATA),
    ("data clean", data_clean.clean, DATA),
    ("data translate", data_translate.translate, DATA),
    ("setup", setup.setup, CLOUDS),
    ("doctor", doctor.doctor, CLOUDS),
    ("plugin install", plugin.install, CLOUDS),
    ("plugin status", plugin.status, CLOUDS),
    ("plugin remove", plugin.remove, CLOUDS),
)
GROUPS = {
    "checkpoints": ("the committed state of a run", STATE),
    "data": ("work on files of rows", DATA),
    "weights": ("a model as its difference from another", STATE),
    "plugin": ("our recovery strategy in SkyPilot's API server", CLOUDS),
}
"""First words that stand before others, what all of those are about, and their panel."""

app = typer.Typer(
    name="alpaca-jobs",
    help="From a job file (seed tasks and a base model) to an instruction-tuned model, on machines that may be taken "
    "away at any moment.\n\nTry it here, without an account: [bold]alpaca-jobs init[/bold], then "
    "[bold]alpaca-jobs launch job.yaml[/bold].",
    epilog="Exit codes: 0 done, 1 the job failed, 2 wrong input, 3 the surroundings failed (capacity, credentials, "
    "store), 4 stopped by a budget or a deadline, 130 interrupted.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

_groups = {
    name: typer.Typer(help=f"{words[0].upper()}{words[1:]}.", no_args_is_help=True)
    for name, (words, _) in GROUPS.items()
}
for _name, _command, _panel in COMMANDS:
    _group, _, _verb = _name.rpartition(" ")
    if _group:
        _groups[_group].command(_verb)(guarded(_command))
    else:
        app.command(_name, rich_help_panel=_panel)(guarded(_command))
for _name, _typer in _groups.items():
    app.add_typer(_typer, name=_name, rich_help_panel=GROUPS[_name][1])


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        render.out(version("alpaca-jobs"))
        raise typer.Exit


@app.callback()
def _before_any_command(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and detailed logs.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
    is_debugging = bool(os.environ.get(DEBUG_VARIABLE))
    logging.basicConfig(
        level=logging.DEBUG if is_debugging else logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s" if is_debugging else "%(message)s",
    )
