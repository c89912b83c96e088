"""`alpaca-jobs checkpoints ls | verify | prune | copy`: the committed state of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, render, starting, words
from cli.exits import ExitCode, Refused

if TYPE_CHECKING:
    from checkpoints.pruning import Pruned

Keep = Annotated[
    int, typer.Option("--keep", min=0, help="The newest that stay, at least 2; 0: none, once the model is exported.")
]
KeepEvery = Annotated[
    int | None,
    typer.Option("--keep-every", min=1, help="Every checkpoint whose step is a multiple of this stays, too."),
]


def ls(run: options.RunName = None, store: options.Store = None, as_json: options.Json = False) -> None:
    """List what a run has committed, newest first, and whether it counts. One that is unreadable is named.

    Example: alpaca-jobs checkpoints ls
    """
    from alpaca_jobs.run_layout import EVAL_LOSS, LAYOUT
    from checkpoints.attempts import AttemptLog
    from checkpoints.best import metric_of
    from checkpoints.errors import Damaged, NotCommitted
    from checkpoints.lineage import counting_commits
    from checkpoints.reader import CommitReader, list_commits
    from cli.finding import find_run
    from cluster.runs.told_saves import told_saves

    found = find_run(run, store)
    folder = found.root.child(found.run_id)
    commits = list_commits(folder, LAYOUT)
    saves = told_saves(folder, commits)
    counting = set(counting_commits(AttemptLog(folder, LAYOUT).records(), commits, LAYOUT))
    rows: list[dict[str, Any]] = []
    for ref in commits:
        manifest, problem = None, None
        try:
            manifest = CommitReader.open(folder, LAYOUT, ref).manifest
        except NotCommitted:
            continue  # a run that is alive deleted it to make room
        except Damaged as exc:
            problem = str(exc)
            render.say(problem)
        rows.append(
            {
                **ref.to_json(),
                "counts": ref in counting,
                "bytes": manifest.size_bytes if manifest else None,
                "stored_bytes": manifest.stored_bytes if manifest else None,
                "world_size": manifest.world_size if manifest else None,
                "save_s": saves[ref].get("seconds") if ref in saves else None,
                "stall_s": saves[ref].get("stall_s") if ref in saves else None,
                "eval_loss": metric_of(manifest, EVAL_LOSS) if manifest else None,
                "problem": problem,
            }
        )
    if as_json:
        render.out_json({"run_id": found.run_id, "store": found.root.uri, "commits": rows})
    else:
        render.out_grid(_commits_grid(found.run_id, rows))


def verify(run: options.RunName = None, store: options.Store = None, as_json: options.Json = False) -> None:
    """Read every committed byte and every attempt's records and compare them with their digests.

    Exit code 3: something is damaged.

    Example: alpaca-jobs checkpoints verify demo-x3fkd
    """
    from alpaca_jobs.run_layout import LAYOUT
    from checkpoints.attempts import AttemptLog
    from checkpoints.transfer import verify_commits
    from cli.finding import find_run

    found = find_run(run, store)
    folder = found.root.child(found.run_id)
    records = [{"key": one.key, "problem": str(one)} for one in AttemptLog(folder, LAYOUT).damaged()]
    for record in records:
        render.say(record["problem"])
    results = []
    for report in verify_commits(folder, LAYOUT):
        render.say(f"{report.ref}: {report.problem or 'every byte is as it was committed'}")
        results.append({**report.ref.to_json(), "counts": report.counts, "problem": report.problem})
    damaged = [one for one in results if one["problem"] is not None]
    if as_json:
        body = {"commits": results, "damaged": len(damaged), "damaged_records": records}
        render.out_json({"run_id": found.run_id, **body})
    else:
        of_records = f"; {words.plural(len(records), 'record')} of attempts damaged" if records else ""
        render.out(f"{words.plural(len(results), 'commit')} read, {len(damaged)} damaged{of_records}")
    raise typer.Exit(ExitCode.SURROUNDINGS_FAILED if damaged or records else ExitCode.DONE)


def prune(
    run: options.RunName = None,
    keep: Keep = 2,
    keep_every: KeepEvery = None,
    store: options.Store = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Delete a finished run's older checkpoints, and what broken saves and exports left behind.

    The best by evaluation loss stays. With --keep 0 all go, after every byte of the exported model was read.

    Example: alpaca-jobs checkpoints prune demo-x3fkd --keep 2
    """
    from alpaca_jobs.run_layout import EVAL_LOSS, LAYOUT
    from checkpoints.errors import NoGoodCommit
    from checkpoints.pruning import prune as prune_commits
    from cli.finding import find_run

    if keep == 1:
        raise Refused("--keep is 1, but at least 2 stay, so that a damaged newest one leaves another; or 0 for none.")
    found = find_run(run, store)
    folder = found.root.child(found.run_id)
    rules: dict[str, Any] = {"stage": "train", "keep": keep, "keep_every": keep_every, "best_by": EVAL_LOSS}
    try:
        pruned = prune_commits(folder, LAYOUT, **rules, dry_run=True)
    except NoGoodCommit as exc:
        raise Refused(str(exc)) from exc
    if pruned:
        what = _pruned_words(pruned)
        all_go = " Nothing can be trained on from there, nor exported anew." if keep == 0 else ""
        render.say(f"To be deleted: {what}.{all_go}")
        starting.agree(f"Delete {what} of {found.run_id} for good?", yes=yes, grids=[])
        pruned = prune_commits(folder, LAYOUT, **rules)
    if as_json:
        body = [ref.to_json() for ref in sorted(pruned.commits, key=LAYOUT.sort_key)]
        more = {"leftovers_deleted": pruned.leftovers, "uploads_aborted": pruned.uploads}
        render.out_json({"run_id": found.run_id, "deleted": body, **more})
    elif pruned:
        render.out(f"Deleted {_pruned_words(pruned)} of {found.run_id}.")
    else:
        render.out(f"{found.run_id} has nothing to delete.")


def _pruned_words(pruned: Pruned) -> str:
    steps = sorted(ref.position for ref in pruned.commits)
    named = ", ".join(words.number(step) for step in steps[:8]) + (", …" if len(steps) > 8 else "")
    parts = [f"{words.plural(len(steps), 'checkpoint')} (step {named})"] if steps else []
    if pruned.leftovers:
        parts.append(f"{words.plural(pruned.leftovers, 'object')} of saves or exports that never ended")
    if pruned.uploads:
        parts.append(words.plural(pruned.uploads, "unfinished upload"))
    return ", ".join(parts)


def copy(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or the start of it.")],
    to: Annotated[str, typer.Option("--to", metavar="URI", help="Root of the other store.")],
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Copy a run that is over to another store or region, verified, so that it can be resumed from there.

    Example: alpaca-jobs checkpoints copy demo-x3fkd --to s3://elsewhere/runs
    """
    from cli.finding import find_run, open_named
    from cluster.runs.report import read_report
    from cluster.runs.run_copy import copy_whole_run

    found = find_run(run, store)
    destination = open_named(to)
    if destination.uri == found.root.uri:
        raise Refused(f"{found.run_id} is in {to} already. Name another store: --to URI")
    copied = []
    for name in copy_whole_run(found.root, destination, found.run_id, is_alive_here=found.is_alive_here):
        render.say(f"copied {name}")
        copied.append(name)
    found.home.remember_store(destination.uri)
    if as_json:
        render.out_json({"run_id": found.run_id, "from": found.root.uri, "to": destination.uri, "copied": copied})
    else:
        report = read_report(destination.child(found.run_id)) or {}
        told = ("See it there", "status") if report.get("outcome") == "done" else ("Go on from there", "resume")
        follows = f"{told[0]}: alpaca-jobs {told[1]} {found.run_id} --store {to}"
        render.out(f"{found.run_id} is in {destination.uri} as well. {follows}")


def _commits_grid(run_id: str, rows: list[dict[str, Any]]) -> render.Grid:
    """A line for each commit; columns that no commit has anything to say in are left out."""
    columns: dict[str, list[str]] = {
        "stage": [row["stage"] for row in rows],
        ">position": [words.number(row["position"]) for row in rows],
        ">attempt": [str(row["attempt"]) for row in rows],
        ">size": ["damaged" if row["problem"] else words.size(row["bytes"]) for row in rows],
    }
    if any(row["stored_bytes"] != row["bytes"] for row in rows):
        columns[">stored"] = [words.size(row["stored_bytes"]) for row in rows]
    is_timed = any(row["save_s"] is not None for row in rows)
    if is_timed:
        columns[">took"] = [words.duration(row["save_s"]) for row in rows]
        columns[">stall"] = [words.MISSING if row["stall_s"] is None else f"{row['stall_s']:.2f} s" for row in rows]
    columns["counts"] = [words.yes_no(row["counts"]) for row in rows]
    if any(row["eval_loss"] is not None for row in rows):
        columns[">eval loss"] = [words.number(row["eval_loss"], 4) for row in rows]
    return render.Grid(
        title=f"Commits of {run_id}",
        columns=tuple(columns),
        rows=tuple(zip(*columns.values(), strict=True)),
        notes=("took: from the call to the commit; stall: how long training stood still for it",) if is_timed else (),
    )
