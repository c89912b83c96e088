"""init, validate, generate's and export's files: what is written, and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.data.files import load_table
from alpaca_jobs.data.lineage_file import put_lineage
from alpaca_jobs.data.rows import Row, iter_rows
from alpaca_jobs.spec_io import job_from_dict
from checkpoints.store import Store
from cli.rows_file import write_rows
from cluster.node.review import run_lineage

pytestmark = pytest.mark.process

ROWS = (Row("Say hello.", "", "Hello.", 1, 0), Row("Name a colour.", "warm", "Rot, nicht blau: räd.", 1, 1))


def test_init_writes_a_job_that_validates(quick: Any) -> None:
    written = quick("init")
    assert (written.returncode, written.stdout.strip()) == (0, "job.yaml")
    assert quick("validate", "job.yaml").returncode == 0
    again = quick("init")
    assert again.returncode == 2
    assert "exists already and was left as it is" in again.stderr


def test_init_lists_examples_with_the_demo_first(quick: Any) -> None:
    listed = quick("init", "--list").stdout
    assert [name in listed for name in ("demo", "alpaca-7b", "alpaca-13b", "vicuna-7b", "opt-6.7b")] == [True] * 5
    refused = quick("init", "--example", "gpt-9")
    assert refused.returncode == 2
    assert "alpaca-7b" in refused.stderr
    assert not (quick.folder / "job.yaml").exists()


def test_init_into_a_folder_that_is_not_there_is_refused(quick: Any) -> None:
    refused = quick("init", "nowhere/job.yaml")
    assert refused.returncode == 2
    assert "cannot be written" in refused.stderr


def test_validate_answers_a_broken_job_in_words(quick: Any) -> None:
    job = quick.folder / "job.yaml"
    job.write_text(
        "name: x\ndata: {teacher: offline, num_rowz: 5}\ntrain: {model: tiny-llama}\ncompute: {workers: 1}\n"
    )
    refused = quick("validate", "job.yaml")
    assert refused.returncode == 2
    assert "num_rowz" in refused.stderr
    assert "num_rows" in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"teacher": "offline", "seed_tasks": "none.jsonl"}, "none.jsonl does not exist"),
        ({"teacher": "offline", "seed_tasks": "text.jsonl"}, "text.jsonl line 1 is not JSON"),
        ({"teacher": "offline", "seed_tasks": "two.jsonl"}, "there are 2 seed tasks, but every request shows 3"),
        ({"from": "none.json"}, "data.from is"),
    ],
)
def test_inputs_that_are_not_there_are_said_before_a_plan_is_shown(quick: Any, data: Any, said: str) -> None:
    (quick.folder / "text.jsonl").write_text("hello\n", encoding="utf-8")
    tasks = [{"instruction": f"Say {word}.", "input": "", "output": word} for word in ("yes", "no")]
    (quick.folder / "two.jsonl").write_text("\n".join(map(json.dumps, tasks)), encoding="utf-8")
    job = quick.job(data=data)
    for command in (["validate", job], ["launch", job, "--yes"]):
        refused = quick(*command)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert refused.stdout == ""
    assert not (quick.folder / "runs").exists()
    assert quick("launch", job, "--dry-run").returncode == 0, "what it would cost can be asked before the rows are here"


def test_validate_full_writes_every_default_and_is_valid_itself(quick: Any) -> None:
    full = quick("validate", quick.job(), "--full").stdout
    (quick.folder / "full.yaml").write_text(full, encoding="utf-8")
    assert "learning_rate" in full
    checked = quick("validate", "full.yaml", "--json")
    assert json.loads(checked.stdout)["stages"] == ["train", "export"]


def test_validate_schema_is_json_schema(quick: Any) -> None:
    schema = json.loads(quick("validate", "--schema").stdout)
    assert schema["additionalProperties"] is False
    assert "train" in schema["properties"]


def test_validate_without_a_job_asks_which(quick: Any) -> None:
    assert quick("validate").returncode == 2


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_generated_rows_are_read_back_as_they_were(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, ROWS)
    read = tuple(iter_rows(load_table(str(tmp_path / name))))
    assert [(row.instruction, row.input, row.output) for row in read] == [
        (row.instruction, row.input, row.output) for row in ROWS
    ]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]


def test_generate_refuses_before_the_teacher_is_paid(quick: Any) -> None:
    (quick.folder / "there.jsonl").write_text("", encoding="utf-8")
    job = quick.job()
    for out, said in (("there.jsonl", "exists already"), ("no/where.jsonl", "there is no folder")):
        refused = quick("generate", job, "--out", out, "--yes")
        assert refused.returncode == 2
        assert said in refused.stderr
    refused = quick("generate", job, "--out", "rows.txt", "--yes")
    assert refused.returncode == 2
    assert "its name says no format" in refused.stderr
    refused = quick("generate", job, "--out", "new.jsonl", "--yes")
    assert refused.returncode == 2
    assert "has its rows already" in refused.stderr
    assert not (quick.folder / "runs").exists()


def test_generate_shows_a_preview_and_leaves_nothing_behind(quick: Any) -> None:
    job = quick.job(data={"teacher": "offline", "num_rows": 500, "recipe": "self-instruct"})
    shown = quick("generate", job, "--preview", "4")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("Instruction: ") == shown.stdout.count("Output: ") == 4
    assert "at most $0.00" in shown.stderr
    found = json.loads(quick("generate", job, "--preview", "2", "--json").stdout)
    assert len(found["rows"]) == 2
    assert found["at_most_usd"] == 0
    assert not (quick.folder / "runs").exists()
    refused = quick("generate", job)
    assert refused.returncode == 2
    assert "--out FILE" in refused.stderr


def test_a_preview_by_a_teacher_whose_key_is_not_here_is_refused(quick: Any) -> None:
    job = quick.job(data={"teacher": {"model": "gpt-4o-mini"}, "num_rows": 5}, secrets=["OPENAI_API_KEY"])
    refused = quick("generate", job, "--preview", "1", "--yes")
    assert refused.returncode == 2
    assert "needs the key in OPENAI_API_KEY" in refused.stderr


def test_a_preview_that_costs_money_is_agreed_to_first_and_keeps_the_budget(quick: Any) -> None:
    teacher = {"model": "gpt-4o-mini", "base_url": "http://127.0.0.1:9/v1", "price_per_million_input_usd": 1,
               "price_per_million_output_usd": 1}  # fmt: skip
    job = quick.job(data={"teacher": teacher, "num_rows": 5}, limits={"teacher_max_usd": 0.001})
    refused = quick("generate", job, "--preview", "1")
    assert refused.returncode == 2
    assert "Add --yes" in refused.stderr
    refused = quick("generate", job, "--preview", "1", "--yes")
    assert refused.returncode == 4
    assert "above limits.teacher_max_usd, 0.001" in refused.stderr


def test_train_wants_rows_and_this_machine(quick: Any) -> None:
    refused = quick("train", quick.job(data={"teacher": "offline", "num_rows": 5}), "--yes")
    assert refused.returncode == 2
    assert "--rows FILE" in refused.stderr
    cloud = quick.job(store="s3://bucket/runs", compute={"gpus": "A100-80GB:8", "infra": ["aws"]})
    refused = quick("train", cloud, "--yes")
    assert refused.returncode == 2
    assert "alpaca-jobs launch" in refused.stderr


def test_train_runs_to_the_end_on_rows_that_exist(quick: Any) -> None:
    job = quick.job(data={"teacher": "offline", "num_rows": 5, "licence": "CC-BY-4.0"})
    put_lineage(quick.folder / "rows.json", {"teacher": "m at h", "terms": "read them"})
    done = quick("train", job, "--rows", str(quick.folder / "rows.json"), "--yes", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["outcome"] == "done"
    store = Store.open(f"file://{quick.folder}/runs").child(report["run_id"])
    lineage = run_lineage(store, job_from_dict(json.loads(store.get("job.json"))["job"], source="job.json"))
    assert lineage == {
        "teacher": "m at h", "terms": "read them", "rows": "rows.json", "licence of the rows": "CC-BY-4.0"
    }  # fmt: skip


def test_export_refuses_a_folder_that_holds_something(quick: Any) -> None:
    run_id = quick.launch()
    quick.wait_until_over(run_id)
    refused = quick("export", run_id, "--to", ".")
    assert refused.returncode == 2
    assert "not empty" in refused.stderr


def test_export_of_an_unfinished_run_says_what_is_there(quick: Any) -> None:
    quick.behaviour |= {"steps": 4000}
    run_id = quick.launch()
    quick.wait_for_step(run_id, 9)
    quick("cancel", run_id)
    refused = quick("export", run_id, "--to", "model")
    assert refused.returncode == 2
    assert "has no model yet; committed is train" in refused.stderr
    assert not (quick.folder / "model").exists()
