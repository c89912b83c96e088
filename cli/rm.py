"""`alpaca-jobs rm`: delete a run that is over, in its store and here."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options, render, starting, words


def rm(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or the start of it.")],
    store: options.Store = None,
    bucket: Annotated[
        bool, typer.Option("--bucket", help="Remove its bucket, too, if `store: auto` made it and it is empty then.")
    ] = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Delete everything of a run: rows, checkpoints, model, reports.

    Example: alpaca-jobs rm demo-x3fkd --yes
    """
    from checkpoints.errors import Damaged
    from cli.finding import find_run
    from cluster.launch.stopping import remove_run
    from cluster.runs.run_view import view_run

    found = find_run(run, store)
    try:
        view = view_run(found.root, found.run_id, is_alive=found.is_alive_here)
        came_to = f"{view.state.value}, rows {words.number(view.rows)}, step {words.number(view.step)}"
    except Damaged as exc:  # what cannot be read can be deleted all the same
        render.say(str(exc))
        came_to = "nobody knows how far it got"
    what = f"{found.root.uri}/{found.run_id} ({came_to})"
    starting.agree(f"Delete {what}{' and its bucket' if bucket else ''} for good?", yes=yes, grids=[])
    deleted = remove_run(found.root, found.run_id, found.home)
    is_removed = _remove_bucket(found.root.uri) if bucket else False
    if as_json:
        body = {"run_id": found.run_id, "store": found.root.uri, "objects_deleted": deleted}
        render.out_json({**body, "bucket_removed": is_removed})
    else:
        render.say(f"Deleted {what}: {words.plural(deleted, 'object')}.")


def _remove_bucket(store_uri: str) -> bool:
    """Remove the bucket and say so; one that still holds something stays."""
    from cluster.cloud.aws_account import AwsAccount
    from cluster.cloud.aws_bucket import remove_bucket

    is_removed = remove_bucket(AwsAccount(), store_uri)
    render.say("The bucket is removed." if is_removed else "The bucket stays: it holds other runs, or files of yours.")
    return is_removed
