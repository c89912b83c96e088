"""The files on this machine that a job names: looked at before anything is planned, shown or paid for."""

from __future__ import annotations

from pathlib import Path

from alpaca_jobs.errors import DataError, ModelError
from alpaca_jobs.generation.seeds import check_seed_file
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.training.hub import is_path, resolve_model


def check_inputs(job: JobSpec) -> None:
    """Look at what a launch would read: seed tasks are read whole, of all else only whether it is there.

    Nothing is contacted: what is named by a URI, or on the hub, is looked at at launch.

    Raises:
        DataError: a file that is not there, or seed tasks that are none or too few; says which file and line.
        ModelError: a folder as base model that is not there, or that rented machines do not have.
    """
    data, held_out = job.data, job.train.eval
    named = [("data.from", data.from_), ("train.eval.file", None if held_out is None else held_out.file)]
    for key, source in [*named, *(("train.files", file) for file in job.train.files)]:
        if source is not None and "://" not in source and not Path(source).expanduser().is_file():
            raise DataError(
                f"{key} is {source}, but no such file is on this machine. Check the path; a relative one starts from "
                "the job file's folder."
            )
    if job.train.method != "command":  # what a program of the user's own makes of the word is its own affair
        _check_model(job)
    if "generate" in job.stages:
        check_seed_file(data)


def _check_model(job: JobSpec) -> None:
    """A folder as base model, before rows are paid for that could not be trained on."""
    model, compute = job.train.model, job.compute
    if not is_path(model):
        return
    if compute.is_local:
        resolve_model(model)
    elif not compute.is_own and compute.image is None:
        raise ModelError(
            f"train.model is the folder {model}, which machines rented from {', '.join(compute.infra)} do not have. "
            "Give a name on the Hugging Face hub (owner/name), the URI of a run that exported a model "
            "(s3://bucket/runs/RUN), or a compute.image that holds the folder."
        )
