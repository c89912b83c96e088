"""`alpaca-jobs export`: a finished run's model as a folder that transformers loads."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options, render, rows_file, words
from cli.exits import Refused

if TYPE_CHECKING:
    from checkpoints.store import Store


def export(
    run: options.RunName = None,
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="The folder to write; new or empty.")] = Path(
        "model"
    ),
    rows: Annotated[
        Path | None,
        typer.Option("--rows", metavar="FILE", help="Its rows so far instead: a new .jsonl, .parquet or .json file."),
    ] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Copy a run's model out of its store, every byte verified; or the rows that its teacher wrote, and nothing else.

    Example: alpaca-jobs export demo-x3fkd --to ./my-model

    Rows can be had at any time, also of a run that was stopped: alpaca-jobs export demo-x3fkd --rows rows.jsonl
    """
    from cli.finding import find_run

    if rows is not None:
        rows_file.check_writable(rows)
    found = find_run(run, store)
    if rows is not None:
        num_rows = rows_file.write_run_rows(rows, found.root.child(found.run_id))
        if as_json:
            render.out_json({"run_id": found.run_id, "out": str(rows), "rows": num_rows})
        else:
            render.out(str(rows))
            render.say(f"{words.plural(num_rows, 'row')}; where they come from: {rows}.lineage.json")
        return
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise Refused(f"{to} exists and is not empty; nothing was written. Name another folder: --to FOLDER")
    files = copy_model(found.root.child(found.run_id), found.run_id, to)
    if as_json:
        render.out_json({"run_id": found.run_id, "folder": str(to), "files": files})
    else:
        render.out(str(to))
        render.say(f"{words.plural(len(files), 'file')}, {sum(files.values()) / 2**20:,.1f} MiB. {_loading(to, files)}")


def _loading(folder: Path, files: Collection[str]) -> str:
    """How what was exported is loaded."""
    if "adapter_config.json" in files:
        return (
            "They are adapters, to be put on their base model as README.md there says:\n"
            f"  PeftModel.from_pretrained(base, '{folder}'), AutoTokenizer.from_pretrained('{folder}')"
        )
    return (
        "Load it with transformers:\n"
        f"  AutoModelForCausalLM.from_pretrained('{folder}'), AutoTokenizer.from_pretrained('{folder}')"
    )


def copy_model(store: Store, run_id: str, folder: Path) -> dict[str, int]:
    """Copy the newest exported model that counts; returns file name -> bytes.

    Raises:
        Refused: the run has exported none yet, or there can be no such folder.
        Damaged: the bytes in the store are not those that were committed.
    """
    from alpaca_jobs.run_layout import LAYOUT
    from checkpoints.attempts import AttemptLog
    from checkpoints.lineage import counting_commits
    from checkpoints.reader import CommitReader, list_commits

    counting = counting_commits(AttemptLog(store, LAYOUT).records(), list_commits(store, LAYOUT), LAYOUT)
    exported = [ref for ref in counting if ref.stage == "export"]
    if not exported:
        newest = counting[0] if counting else "nothing"
        raise Refused(f"{run_id} has no model yet; committed is {newest}. Go on with: alpaca-jobs resume {run_id}")
    reader = CommitReader.open(store, LAYOUT, exported[0])
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # what an interrupted copy left
    try:
        partial.mkdir(parents=True)
    except OSError as exc:
        raise Refused(f"{folder} cannot be written ({exc.strerror}). Name another folder: --to FOLDER") from exc
    try:
        files = reader.copy_to(partial)
    except BaseException:  # a disk that is full wants the room back, and a next call begins anew
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)  # a copy that was killed leaves FOLDER.partial, never half a model under the name asked for
    return files
