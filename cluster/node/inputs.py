"""A run's inputs, copied into its own folder of the store at launch.

A node in another region has no copy of the user's disk, and a seed file edited between two attempts would change the
rows of the second. So a run reads its inputs from `inputs/` alone, from its first attempt on.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from alpaca_jobs.data.lineage_file import parse_lineage, read_lineage
from alpaca_jobs.data.record_files import read_bytes
from alpaca_jobs.data.streams import local_file
from alpaca_jobs.errors import DataError
from alpaca_jobs.generation.seeds import load_seed_tasks
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_recipe import TokenizerSpec
from alpaca_jobs.training.vocabulary import read_tokenizer
from checkpoints.mapped import map_file
from checkpoints.store import Store

SEED_TASKS = "inputs/seed_tasks.jsonl"
ROWS_FOLDER = "inputs/rows"
LINEAGE = "inputs/lineage.json"
FILES_FOLDER = "inputs/files"
TOKENIZER = "inputs/tokenizer.json"
EVALUATION_FOLDER = "inputs/evaluation"


def freeze_inputs(job: JobSpec, store: Store) -> None:
    """Check the inputs a job names and copy them to the run's folder; called once, at launch.

    Raises:
        DataError: a file that is missing, not what it should be, or empty.
    """
    for name in job.train.files:
        store.put(f"{FILES_FOLDER}/{Path(name).name}", read_bytes(name))
    if job.train.tokenizer is not None:
        store.put(TOKENIZER, read_tokenizer(job.train.tokenizer.extend))
    if job.train.eval is not None and job.train.eval.file is not None:
        file = job.train.eval.file
        _put_file(store, f"{EVALUATION_FOLDER}/{Path(file).name}", file)
    if job.data.from_ is not None:
        _put_file(store, f"{ROWS_FOLDER}/{Path(job.data.from_).name}", job.data.from_)
        if (lineage := read_lineage(job.data.from_)) is not None:
            store.put(LINEAGE, json.dumps({"lineage": lineage}, ensure_ascii=False).encode())
        return
    tasks = load_seed_tasks(job.data.seed_tasks)
    records = [
        {
            "id": task.name,
            "instruction": task.instruction,
            "instances": [{"input": task.input, "output": task.output}],
            **({} if task.is_classification is None else {"is_classification": task.is_classification}),
        }
        for task in tasks
    ]
    store.put(SEED_TASKS, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())


def _put_file(store: Store, key: str, source: str) -> None:
    """Copy a file at a path or URI, which may be larger than memory: the store is given it mapped, not read."""
    with tempfile.TemporaryDirectory() as folder, local_file(source, Path(folder)) as path:
        try:
            with path.open("rb") as file:
                data = map_file(file)
        except OSError as exc:
            raise DataError(f"{source} cannot be read: {exc.strerror}. A readable file is wanted.") from exc
        store.put(key, data)


def frozen_seed_tasks(store: Store) -> str:
    """Where a run's seed tasks lie, as a URI."""
    return f"{store.uri}/{SEED_TASKS}"


def frozen_rows(store: Store) -> str:
    """Where the rows lie that a run was given, as a URI."""
    return f"{store.uri}/{store.list(ROWS_FOLDER + '/')[0]}"


def with_frozen_inputs(job: JobSpec, store: Store) -> JobSpec:
    """The job with its second tokenizer and its evaluation's rows where nodes find them: in the run's folder."""
    changes: dict[str, Any] = {}
    if job.train.tokenizer is not None:
        changes["tokenizer"] = TokenizerSpec(extend=f"{store.uri}/{TOKENIZER}")
    if job.train.eval is not None and job.train.eval.file is not None:
        key = store.list(EVALUATION_FOLDER + "/")[0]
        changes["eval"] = job.train.eval.model_copy(update={"file": f"{store.uri}/{key}"})
    return job.model_copy(update={"train": job.train.model_copy(update=changes)}) if changes else job


def frozen_lineage(store: Store) -> dict[str, str] | None:
    """What lay beside the rows that a run was given about where they come from; None if nothing did."""
    if not store.exists(LINEAGE):
        return None
    return parse_lineage(store.get(LINEAGE), f"{store.uri}/{LINEAGE}")


def frozen_files(store: Store) -> dict[str, str]:
    """The files that a run's training command was given: name -> key in the run's store."""
    return {key.rpartition("/")[2]: key for key in store.list(FILES_FOLDER + "/")}
