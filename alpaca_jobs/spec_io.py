"""YAML -> JobSpec and back; errors name file, line and key, what was found, what is wanted, and the nearest valid key.

`load_job(path)` is what users' files go through, `change_job` what command-line options do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from alpaca_jobs.errors import SpecError
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_data import USED_WITH_FROM
from alpaca_jobs.spec_recipe import TokenizerSpec
from alpaca_jobs.spec_words import problems_in_words
from alpaca_jobs.yaml_tree import YamlTree, parse_yaml, render_yaml

_Part = TypeVar("_Part", bound=BaseModel)
_COMMAND_LINE = "command line"
"""Where values come from that stand in no job file, as errors call it."""
_MAX_BYTES = 1_000_000  # a job file is a page; a weights file named by mistake should not be parsed first


def load_job(path: str | Path) -> JobSpec:
    """Read a job file.

    Relative paths of inputs (data.seed_tasks, data.from, train.files, train.eval.file, and train.model starting with ./
    or ../, or that names a model there and trains here) are taken relative to the file's folder, so that the job means
    the same from everywhere; `store` stays relative to where you stand.

    Raises:
        SpecError: the file cannot be read, or does not describe a job; `problems` lists all of them.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise SpecError(f"{path} is a folder; a job file is wanted. Write a starter with: alpaca-jobs init")
    try:
        raw = path.read_bytes()
    except FileNotFoundError as exc:
        raise SpecError(f"{path} does not exist. Write a starter job with: alpaca-jobs init") from exc
    except OSError as exc:
        raise SpecError(f"{path} cannot be read: {exc.strerror}. Check its permissions.") from exc
    if len(raw) > _MAX_BYTES:
        raise SpecError(f"{path} is {len(raw):,} bytes long; a job file is a page of YAML. Is it the right file?")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise SpecError(f"{path} is not UTF-8 text (byte {exc.start}). Save it as UTF-8.") from exc
    folder = path.resolve().parent
    return _anchored(parse_job(text, source=str(path), folder=folder), folder)


def parse_job(text: str, source: str = "job.yaml", *, folder: Path = Path()) -> JobSpec:
    """Read a job from YAML (or JSON) text; `source` is what errors call it, templates are read from `folder`. Raises
    SpecError.
    """
    tree = parse_yaml(text, source=source)
    if tree.value is None:
        raise SpecError(f"{source} is empty. Write a starter job with: alpaca-jobs init")
    if not isinstance(tree.value, dict):
        kind = "a list" if isinstance(tree.value, list) else f"just {tree.value!r:.60}"
        raise SpecError(f"{source} is {kind}; a mapping is wanted that starts with name: my-job")
    return _validated(JobSpec, tree, source, folder=folder)


def job_from_dict(values: Mapping[str, Any], source: str = "job.json") -> JobSpec:
    """Make a job from plain values. Raises SpecError."""
    return _validated(JobSpec, YamlTree(value=dict(values)), source)


def stored_job(values: Mapping[str, Any], source: str = "job.json") -> JobSpec:
    """Make the job of a run from what was kept at its launch, perhaps by another version; raises SpecError.

    Keys that the job has no use for were kept with the defaults of that version. They are passed over, since today's
    defaults may be others, and would make a mistake of them.
    """
    values, data = dict(values), values.get("data")
    if isinstance(data, dict) and data.get("from") is not None:
        values["data"] = {key: data[key] for key in ("from", *USED_WITH_FROM) if key in data}
    return job_from_dict(values, source)


def job_to_dict(job: JobSpec) -> dict[str, Any]:
    """All values of a job, defaults included, as plain JSON-ready values under their YAML names."""
    return job.model_dump(mode="json", by_alias=True)


def render_job(job: JobSpec) -> str:
    """Write a job as YAML with every key, defaults included; `parse_job` reads the same job back."""
    return render_yaml(job_to_dict(job))


def change_job(job: JobSpec, changes: Mapping[str, Any]) -> JobSpec:
    """A changed copy of a job, checked as a whole again.

    Args:
        job: stays as it is.
        changes: dotted key -> new value, for example {"compute.infra": ["local"], "limits.max_usd": 5}.

    Raises:
        SpecError: an unknown key, or a job that cannot be.
    """
    values = job_to_dict(job)
    for key, value in changes.items():
        *parents, last = key.split(".")
        part = values
        for parent in parents:
            below = part.setdefault(parent, {})
            if not isinstance(below, dict):
                raise SpecError(
                    f"{_COMMAND_LINE}: {key} cannot be set, because {parent} is {below!r} and has no keys below."
                )
            part = below
        part[last] = value
    return job_from_dict(values, _COMMAND_LINE)


def part_from_dict(kind: type[_Part], values: Mapping[str, Any]) -> _Part:
    """Make one part of a job, such as a TeacherSpec, from plain values that did not stand in a job file.

    Raises:
        SpecError: it cannot be; says which key, what was found and what is wanted.
    """
    return _validated(kind, YamlTree(value=dict(values)), _COMMAND_LINE)


def job_schema() -> dict[str, Any]:
    """JSON schema of a job file, for editors' completion and checks; descriptions are the keys' docstrings."""
    schema = JobSpec.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "alpaca-jobs job file"}


def _validated(kind: type[_Part], tree: YamlTree, source: str, *, folder: Path = Path()) -> _Part:
    try:
        return kind.model_validate(tree.value, context={"folder": folder})
    except ValidationError as exc:
        problems = problems_in_words(exc, tree, source)
        raise SpecError("\n".join(problems), problems=problems) from exc


def _anchored(job: JobSpec, folder: Path) -> JobSpec:
    """A copy whose relative input paths are absolute."""
    data: dict[str, Any] = {}
    if job.data.seed_tasks != "builtin":
        data["seed_tasks"] = _absolute(job.data.seed_tasks, folder)
    if job.data.from_ is not None:
        data["from_"] = _absolute(job.data.from_, folder)
    train: dict[str, Any] = {}
    if _names_folder(job, folder):
        train["model"] = _absolute(job.train.model, folder)
    if job.train.tokenizer is not None:
        train["tokenizer"] = TokenizerSpec(extend=_absolute(job.train.tokenizer.extend, folder))
    if job.train.eval is not None and job.train.eval.file is not None:
        file = _absolute(job.train.eval.file, folder)
        train["eval"] = job.train.eval.model_copy(update={"file": file})
    if job.train.files:
        train["files"] = tuple(_absolute(name, folder) for name in job.train.files)
    return job.model_copy(
        update={"data": job.data.model_copy(update=data), "train": job.train.model_copy(update=train)}
    )


def _names_folder(job: JobSpec, folder: Path) -> bool:
    """Whether train.model is a relative path. `models/mine` may be the hub's as well: as in transformers it is the
    folder where one with a model is there, but only for a job of this machine: rented ones have the hub alone.
    """
    model = job.train.model
    if model.startswith(("./", "../", "~/")):
        return True
    is_word = "://" in model or model == "tiny-llama" or job.train.method == "command"
    return not is_word and job.compute.is_local and (folder / model / "config.json").is_file()


def _absolute(path: str, folder: Path) -> str:
    return path if "://" in path else str((folder / Path(path).expanduser()).resolve())
