"""From nothing to the first priced plan, in a pretend account: what is missing, what to type, and the price."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.cloud.aws_account import AwsAccount
from cluster.cloud.aws_bucket import make_bucket
from cluster.errors import ClusterError
from cluster.launch.setup import Checklist, Step, Surroundings, look

JOB = """
name: demo
store: auto
data: {num_rows: 52000, teacher: {model: gpt-4o-mini}}
train: {recipe: alpaca, model: huggyllama/llama-7b}
compute: {infra: [gcp], gpus: "A100-80GB:8"}
secrets: [OPENAI_API_KEY]
"""


@pytest.fixture
def around(aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SKYPILOT_SERVER_PLUGINS_CONFIG", str(tmp_path / "plugins.yaml"))
    return Surroundings({}, tmp_path, AwsAccount(), lambda clouds: clouds)


def by_name(found: Checklist) -> dict[str, Step]:
    return {step.name: step for step in found.steps}


def test_with_nothing_there_every_step_says_what_to_type(
    around: Surroundings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    found = look("aws", tmp_path / "job.yaml", Surroundings({}, tmp_path, AwsAccount(), around.check_clouds))
    steps = by_name(found)
    assert not found.is_ready
    assert (steps["credentials of aws"].state, steps["credentials of aws"].command) == ("todo", "aws configure")
    assert steps["SkyPilot on aws"].words == "needs credentials first"
    assert steps["plugin"].offer == "plugin"
    assert (steps["job"].state, steps["job"].offer) == ("todo", "job")
    assert found.plan is None


def test_it_ends_with_a_price_and_goes_on_where_something_was_missing(around: Surroundings, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    found = look("aws", job, around)
    steps = by_name(found)
    assert (steps["teacher's key"].state, steps["teacher's key"].command) == ("todo", "export OPENAI_API_KEY=...")
    assert (steps["store"].state, steps["store"].offer) == ("advised", "bucket")
    assert steps["quota"].state == "advised"  # moto has no such quota: a new account's is shown, and said to be
    assert "in a new account" in steps["quota"].words
    assert steps["base model"].state == "advised"  # there is no hub for tests
    assert "huggyllama/llama-7b was not looked at: the hub cannot be reached" in steps["base model"].words
    assert not found.is_ready
    assert found.bucket is not None
    make_bucket(around.account, found.bucket)
    again = look("aws", job, Surroundings({"OPENAI_API_KEY": "key"}, tmp_path, around.account, lambda clouds: clouds))
    steps = by_name(again)
    assert steps["store"].state == "done"
    assert steps["estimate"].command == f"alpaca-jobs launch {job} --infra aws"
    assert "USD (" in steps["estimate"].words
    assert again.is_ready
    assert "key" not in json.dumps(again.to_json()).replace("teacher's key", "")


def test_what_skypilot_says_decides_and_its_silence_is_not_a_yes(around: Surroundings, tmp_path: Path) -> None:
    def silent(_: object) -> list[str]:
        raise ClusterError("no answer")

    states = {}
    for name, check in (("refuses", lambda _: []), ("silent", silent), ("not asked", None)):
        found = look("aws", tmp_path / "job.yaml", Surroundings({}, tmp_path, around.account, check))
        states[name] = by_name(found)["SkyPilot on aws"].state
    assert states == {"refuses": "todo", "silent": "unknown", "not asked": "unknown"}


@pytest.mark.parametrize(
    ("infra", "file", "command"),
    [
        ("gcp", ".config/gcloud/application_default_credentials.json", "gcloud auth application-default login"),
        ("azure", ".azure/msal_token_cache.json", "az login"),
    ],
)
def test_other_clouds_credentials_are_looked_for_where_their_tools_put_them(
    around: Surroundings, tmp_path: Path, infra: str, file: str, command: str
) -> None:
    missing = by_name(look(infra, tmp_path / "job.yaml", around))[f"credentials of {infra}"]
    assert (missing.state, missing.command) == ("todo", command)
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("{}")
    assert by_name(look(infra, tmp_path / "job.yaml", around))[f"credentials of {infra}"].state == "done"


def test_seed_tasks_and_a_bucket_that_are_not_there_are_said_before_a_launch(
    around: Surroundings, tmp_path: Path
) -> None:
    job = tmp_path / "job.yaml"
    wrong = JOB.replace("store: auto", "store: s3://nobody-made-this/runs")
    job.write_text(wrong.replace("data: {", "data: {seed_tasks: mine.jsonl, "))
    steps = by_name(look("aws", job, around))
    assert steps["seeds and rows"].state == "todo"
    assert "mine.jsonl does not exist" in steps["seeds and rows"].words
    assert steps["store"].state == "todo"
    assert "nobody-made-this" in steps["store"].words


def test_a_base_model_that_cannot_be_trained_is_said_before_a_launch(around: Surroundings, tmp_path: Path) -> None:
    job, model = tmp_path / "job.yaml", tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    job.write_text(JOB.replace("huggyllama/llama-7b", str(model)))
    step = by_name(look("aws", job, around))["base model"]
    assert step.state == "todo"
    assert "an encoder with a decoder (t5)" in step.words
