"""`alpaca-jobs rm`: delete a run that is over, in its store and here."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options, render, starting, words


def rm(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or the start of it.")],
    store: options.Store = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Delete everything of a run: rows, checkpoints, model, reports.

    Example: alpaca-jobs rm demo-x3fkd --yes
    """
    from cli.finding import find_run
    from cluster.launch.launching import remove_run
    from cluster.runs.run_view import view_run

    found = find_run(run, store)
    view = view_run(found.root, found.run_id, is_alive=found.is_alive_here)
    came_to = f"rows {words.number(view.rows)}, step {words.number(view.step)}"
    what = f"{found.root.uri}/{found.run_id} ({view.state.value}, {came_to})"
    starting.agree(f"Delete {what} for good?", yes=yes, grids=[])
    deleted = remove_run(found.root, found.run_id, found.home)
    if as_json:
        render.out_json({"run_id": found.run_id, "store": found.root.uri, "objects_deleted": deleted})
    else:
        render.say(f"Deleted {what}: {words.plural(deleted, 'object')}.")
