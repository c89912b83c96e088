"""Job files: what is read, what is written, and what is said about a file that cannot be used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.errors import SpecError
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import (
    change_job,
    job_from_dict,
    job_schema,
    job_to_dict,
    load_job,
    parse_job,
    render_job,
    stored_job,
)
from alpaca_jobs.spec_other_names import OTHER_NAMES
from alpaca_jobs.spec_words import all_keys
from alpaca_jobs.yaml_tree import dotted

BASE = """\
name: demo
data: {teacher: offline, num_rows: 160}
train: {model: tiny-llama, learning_rate: 2e-5}
compute: {workers: 2}
"""


def refusal(text: str) -> str:
    """What is said about a job file."""
    with pytest.raises(SpecError) as caught:
        parse_job(text, source="job.yaml")
    return str(caught.value)


def test_job_is_read_and_written_and_read_again() -> None:
    job = parse_job(BASE)
    assert (job.name, job.data.num_rows, job.train.learning_rate, job.compute.workers) == ("demo", 160, 2e-5, 2)
    assert parse_job(render_job(job)) == job
    assert job_from_dict(json.loads(json.dumps(job_to_dict(job)))) == job


def test_job_may_be_json() -> None:
    assert parse_job(json.dumps(job_to_dict(parse_job(BASE)))) == parse_job(BASE)


GOLDEN = Path(__file__).parent / "refusals.txt"


def _cases() -> list[tuple[str, str]]:
    """(edit, message) of refusals.txt: blocks of `old => new` (\\n for a line end), then what is said about it."""
    blocks = GOLDEN.read_text(encoding="utf-8").split("\n\n")
    return [(edit, said.rstrip("\n")) for edit, _, said in (block.partition("\n") for block in blocks)]


@pytest.mark.parametrize(("edit", "message"), _cases())
def test_refusal_says_where_what_was_found_and_what_is_wanted(edit: str, message: str) -> None:
    old, _, new = edit.partition(" => ")
    assert old in BASE
    assert refusal(BASE.replace(old, new.replace("\\n", "\n"))) == message


@pytest.mark.parametrize("new", ["secrets: [sk-hidden1]", "secrets: {A: sk-hidden1}", "secrets: [A=sk-hidden1]",
                                 "secrets: sk-hidden1", "api_key: sk-hidden1", "secrets: [[sk-hidden1]]",
                                 "store: s3://hidden1:hidden1@b"])  # fmt: skip
def test_refusal_never_repeats_what_may_be_a_secret(new: str) -> None:
    assert "hidden1" not in refusal(f"{BASE}{new}\n")
    assert "hidden1" not in refusal(BASE.replace("teacher: offline", "teacher: {model: m, api_key_env: sk-hidden1}"))
    assert "hidden1" not in refusal(
        BASE.replace("teacher: offline", "teacher: {model: m, base_url: 'http://u:hidden1@h/v1'}")
    )


def test_what_other_tools_call_a_key_leads_to_keys_that_there_are() -> None:
    known = {dotted(key) for key in all_keys()}
    assert {name for names in OTHER_NAMES.values() for name in names} <= known
    assert not OTHER_NAMES.keys() & {name.rpartition(".")[2] for name in known}


def test_all_problems_are_said_at_once_in_the_order_of_lines() -> None:
    text = BASE.replace("160", "0").replace("2e-5", "fast").replace("workers: 2", "workers: 0, num_nodes: 0")
    said = refusal(text)
    assert [int(line) for line in re.findall(r"^job\.yaml:(\d+):", said, re.MULTILINE)] == [2, 3, 4, 4]
    with pytest.raises(SpecError) as caught:
        parse_job(text)
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "job.yaml is empty. Write a starter job with: alpaca-jobs init"),
        ("# only a comment\n", "job.yaml is empty."),
        ("- 1\n", "job.yaml is a list; a mapping is wanted that starts with name: my-job"),
        ("hello\n", "job.yaml is just 'hello'; a mapping is wanted"),
        ("name: [", "job.yaml:1: this is not YAML: while parsing a flow"),
    ],
)
def test_what_is_no_mapping_is_refused(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    with pytest.raises(SpecError, match=re.escape(f"{missing} does not exist. Write a starter job with")):
        load_job(missing)
    with pytest.raises(SpecError, match=re.escape(f"{tmp_path} is a folder")):
        load_job(tmp_path)
    binary = tmp_path / "weights.bin"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="is not UTF-8 text"):
        load_job(binary)
    binary.write_bytes(b"a" * 2_000_000)
    with pytest.raises(SpecError, match=r"is 2,000,000 bytes long; a job file is a page"):
        load_job(binary)


def test_input_paths_are_relative_to_the_job_file(tmp_path: Path) -> None:
    file = tmp_path / "jobs" / "job.yaml"
    file.parent.mkdir()
    file.write_text(BASE.replace("teacher: offline", "teacher: offline, seed_tasks: ../seeds.jsonl"))
    assert load_job(file).data.seed_tasks == str(tmp_path / "seeds.jsonl")
    file.write_text(BASE.replace("teacher: offline, num_rows: 160", "from: rows.json").replace("tiny-llama", "./base"))
    job = load_job(file)
    assert job.data.from_ == str(tmp_path / "jobs" / "rows.json")
    assert job.train.model == str(tmp_path / "jobs" / "base")


def test_a_models_name_is_a_folder_where_one_lies_beside_the_job_and_trains_on_this_machine(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"

    def named(model: str, text: str = BASE) -> str:
        file.write_text(text.replace("tiny-llama", model))
        return load_job(file).train.model

    assert named("models/mine") == "models/mine"  # the hub's, for all that is known
    for name in ("models/mine", "tiny-llama"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").touch()
    assert named("models/mine") == str(tmp_path / "models/mine")
    assert named("tiny-llama") == "tiny-llama"
    on_cloud = BASE.replace("{workers: 2}", "{workers: 2, infra: [aws]}") + "store: s3://bucket/runs\n"
    assert named("models/mine", on_cloud) == "models/mine"


@pytest.mark.parametrize("uri", ["s3://bucket/rows.json", "/data/rows.json"])
def test_absolute_inputs_stay_as_they_are(tmp_path: Path, uri: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(BASE.replace("teacher: offline, num_rows: 160", f"from: {uri}"))
    assert load_job(file).data.from_ == uri


def test_change_is_checked_like_a_file_and_leaves_the_job_alone() -> None:
    job = parse_job(BASE)
    changed = change_job(
        job, {"limits.max_usd": 5, "compute.regions": ["b"], "data.teacher": {"model": "m", "api_key_env": None}}
    )
    assert (changed.limits.max_usd, changed.compute.regions) == (5, ("b",))
    assert job.limits.max_usd is None
    with pytest.raises(
        SpecError, match=r"command line: compute\.gpu is not a known key\. Did you mean compute\.gpus\?"
    ):
        change_job(job, {"compute.gpu": "L4:1"})
    with pytest.raises(SpecError, match=r"data\.teacher\.model cannot be set, because teacher is 'offline'"):
        change_job(job, {"data.teacher.model": "m"})


def _properties(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    name = part.get("$ref", "").rpartition("/")[-1]
    return dict((schema["$defs"][name] if name else part).get("properties", {}))


def test_a_run_of_a_version_with_other_defaults_is_read() -> None:
    job = parse_job(
        "name: demo\ndata: {from: rows.jsonl, licence: CC0-1.0}\ntrain: {model: tiny-llama}\ncompute: {workers: 2}\n"
    )
    kept = job_to_dict(job)
    kept["data"]["concurrency"] = 8  # what was its default once
    with pytest.raises(SpecError, match="concurrency says how rows are generated"):
        job_from_dict(kept)
    assert stored_job(kept) == job
    assert stored_job(job_to_dict(parse_job(BASE))) == parse_job(BASE)


def test_schema_describes_every_key() -> None:
    schema = job_schema()
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["name", "data", "train", "compute"]
    parts = [schema, *schema["$defs"].values()]
    for part in parts:
        for name, key in part["properties"].items():
            assert key.get("description"), name
    assert "from" in schema["$defs"]["DataSpec"]["properties"]
    assert schema["$defs"]["TrainSpec"]["properties"]["learning_rate"]["default"] == 2e-5
    assert set(_properties(schema, {"$ref": "#/$defs/LimitsSpec"})) == {
        "max_usd", "teacher_max_usd", "deadline_h", "max_stall_min",
    }  # fmt: skip


def test_every_default_is_accepted_when_it_is_written_out() -> None:
    """Else a rendered job would not load: the reason that "was it written" is never asked."""
    for text in (BASE, BASE.replace("teacher: offline, num_rows: 160", "from: rows.json")):
        job = parse_job(text)
        assert JobSpec.model_validate(job.model_dump(by_alias=True)) == job


ODD_VALUES: list[Any] = [None, True, -1, 0, 1e308, "", [], {}, [1], {"a": 1}, "long" * 999, "\n", "ü", [[]], 10**30]


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: repr(value)[:12])
def test_odd_value_under_any_key_is_a_job_or_words(value: Any) -> None:
    """Never a traceback, and never a page of the value itself."""
    base = job_to_dict(parse_job(BASE))
    odd = [{**base, key: value} for key in base]
    for part in (name for name in base if isinstance(base[name], dict)):
        odd.extend({**base, part: {**base[part], key: value}} for key in base[part])
    said = []
    for values in odd:
        try:
            job_from_dict(values)
        except SpecError as exc:
            said.append(str(exc))
    assert said
    for text in said:
        assert text.startswith("job.json: ")
        assert len(text) < 2000
