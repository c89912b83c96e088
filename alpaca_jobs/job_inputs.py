"""The files on this machine that a job names: looked at before anything is planned, shown or paid for."""

from __future__ import annotations

from pathlib import Path

from alpaca_jobs.errors import DataError
from alpaca_jobs.generation.seeds import check_enough, load_seed_tasks
from alpaca_jobs.spec import JobSpec


def check_inputs(job: JobSpec) -> None:
    """Look at what a launch would read: seed tasks are read whole, of rows only whether the file is there.

    Nothing is contacted: what is named by a URI is read at launch.

    Raises:
        DataError: a file that is not there, or seed tasks that are none or too few; says which file and line.
    """
    data, held_out = job.data, job.train.eval
    named = {"data.from": data.from_, "train.eval.file": None if held_out is None else held_out.file}
    for key, source in named.items():
        if source is not None and "://" not in source and not Path(source).expanduser().is_file():
            raise DataError(
                f"{key} is {source}, but no such file is on this machine. Check the path; a relative one starts from "
                "the job file's folder."
            )
    if "generate" in job.stages and "://" not in data.seed_tasks:
        check_enough(load_seed_tasks(data.seed_tasks), data)
