"""`alpaca-jobs cancel`: ask a run to stop, wherever it works; what it has is saved first."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options, render


def cancel(
    run: options.RunName = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until it has stopped.")] = True,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Stop a run; `resume` goes on with it later.

    Example: alpaca-jobs cancel demo-x3fkd
    """
    from cli.finding import find_run
    from cli.follow import follow
    from cluster.events import utc_now
    from cluster.launch.following import follow_run
    from cluster.launch.stopping import cancel_run

    found = find_run(run, store)
    asked_at = utc_now()
    said = cancel_run(found.root, found.run_id, found.home, say=render.say)
    if wait and found.is_alive_here:
        render.say(
            f"{found.run_id} was asked to stop and may save for up to half a minute; Ctrl-C stops the waiting only."
        )
        follow(follow_run(found.root, found.run_id, found.home), found.run_id, since=asked_at)
    if as_json:
        body = {"run_id": found.run_id, "store": found.root.uri, "alive_here": found.is_alive_here, "said": said}
        render.out_json(body)
    elif said is not None:
        render.say(said)
    elif found.is_alive_here is False:
        render.say(f"{found.run_id} has stopped; nothing of it runs here. To go on: alpaca-jobs resume {found.run_id}")
    else:
        render.say(f"{found.run_id} was asked to stop. See: alpaca-jobs status {found.run_id}")
