"""The job itself: defaults, recipes, what cannot be combined, and that no value of a secret is ever repeated."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from alpaca_jobs.spec import (
    CheckpointSpec,
    ComputeSpec,
    DataSpec,
    GpuRequest,
    JobSpec,
    SpotSpec,
    TeacherSpec,
    TrainSpec,
)
from alpaca_jobs.spec_io import job_to_dict


def job(**changes: Any) -> dict[str, Any]:
    """The smallest local job, with parts replaced."""
    parts: dict[str, Any] = {
        "name": "demo",
        "data": {"teacher": "offline"},
        "train": {"model": "tiny-llama"},
        "compute": {"workers": 2},
    }
    return {**parts, **changes}


def test_defaults_are_the_alpaca_recipe() -> None:
    train = TrainSpec(model="huggyllama/llama-7b")
    assert (train.global_batch_size, train.learning_rate, train.epochs, train.max_length) == (128, 2e-5, 3, 512)
    assert (train.weight_decay, train.warmup_ratio, train.lr_schedule, train.dtype) == (0.0, 0.03, "cosine", "bfloat16")
    data = DataSpec(teacher="offline")
    assert (data.num_rows, data.num_prompt_seeds, data.max_tasks_per_request) == (52_000, 3, 20)
    assert data.similarity_threshold == 0.7
    teacher = TeacherSpec(model="m")
    assert (teacher.temperature, teacher.top_p, teacher.max_tokens) == (1.0, 1.0, 3072)


def test_vicuna_recipe_starts_from_longer_rows_and_keeps_what_is_written() -> None:
    assert TrainSpec(model="m", recipe="vicuna").max_length == 2048
    assert TrainSpec(model="m", recipe="vicuna").gradient_checkpointing
    assert TrainSpec(model="m", recipe="vicuna", max_length=1024).max_length == 1024


def test_job_is_frozen_and_refuses_unknown_keys() -> None:
    spec = JobSpec.model_validate(job())
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        JobSpec.model_validate(job(gpu="A100"))


def test_job_survives_json_with_every_default_written_out() -> None:
    spec = JobSpec.model_validate(job(data={"from": "rows.json"}))
    assert "from" in job_to_dict(spec)["data"]
    assert JobSpec.model_validate(job_to_dict(spec)) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec


def test_stages_leave_generation_out_when_the_rows_exist() -> None:
    assert JobSpec.model_validate(job()).stages == ("generate", "train", "export")
    assert JobSpec.model_validate(job(data={"from": "rows.json"})).stages == ("train", "export")


def test_rows_file_can_be_named_from_python_too() -> None:
    assert DataSpec(from_="rows.json").from_ == "rows.json"


@pytest.mark.parametrize("name", ["a", "alpaca-7b", "a" * 40, "7b"])
def test_names_that_are_fine(name: str) -> None:
    assert JobSpec.model_validate(job(name=name)).name == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "a" * 41, "ä", "a/b", "a\n"])
def test_names_that_are_not(name: str) -> None:
    with pytest.raises(ValidationError):
        JobSpec.model_validate(job(name=name))


@pytest.mark.parametrize("value", [True, "many", 0, -1, 1.5, None])
def test_counts_take_whole_positive_numbers_only(value: Any) -> None:
    with pytest.raises(ValidationError):
        ComputeSpec.model_validate({"workers": 2, "num_nodes": value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, -1e-5, "fast", True])
def test_learning_rate_is_a_positive_finite_number(value: Any) -> None:
    with pytest.raises(ValidationError):
        TrainSpec.model_validate({"model": "m", "learning_rate": value})


def test_learning_rate_written_as_text_is_a_number() -> None:
    assert TrainSpec.model_validate({"model": "m", "learning_rate": "2e-5"}).learning_rate == 2e-5


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("A100-80GB:8", GpuRequest("A100-80GB", 8)), ("L4", GpuRequest("L4", 1)), ("auto", None), (None, None)],
)
def test_gpus_are_read_as_name_and_count(text: str | None, wanted: GpuRequest | None) -> None:
    compute = {"gpus": text, "infra": ["aws"], **({"workers": 2} if text is None else {})}
    assert ComputeSpec.model_validate(compute).gpu_request == wanted


@pytest.mark.parametrize("text", ["A100:0", "A100:", ":8", "A100:8:8", "A 100:8", "8", "A100:8 ", "A100:08"])
def test_gpus_in_any_other_form_are_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="NAME:COUNT is wanted"):
        ComputeSpec.model_validate({"gpus": text, "infra": ["aws"]})


def test_job_with_gpus_is_never_local() -> None:
    with pytest.raises(ValidationError, match="never silently runs without"):
        ComputeSpec(gpus="L4:1")


def test_spot_policy_has_three_forms() -> None:
    assert ComputeSpec(workers=1).spot_policy == SpotSpec(on_demand="never")
    assert ComputeSpec(workers=1, spot=False).spot_policy is None
    policy = ComputeSpec(workers=1, spot=SpotSpec(on_demand="last-resort")).spot_policy
    assert policy == SpotSpec(on_demand="last-resort")


def test_one_name_stands_for_a_list_of_one() -> None:
    compute = ComputeSpec.model_validate({"workers": 1, "infra": "aws", "regions": "us-east-1"})
    assert (compute.infra, compute.regions) == (("aws",), ("us-east-1",))
    assert JobSpec.model_validate(job(secrets="HF_TOKEN")).secrets == ("HF_TOKEN",)


@pytest.mark.parametrize("keep", [0, 1])
def test_fewer_than_two_checkpoints_are_refused(keep: int) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to"):
        CheckpointSpec(keep=keep)


SECRETS = [
    "sk-proj-abcdef0123456789",
    "OPENAI_API_KEY=sk-abcdef",
    "hf_abcdefghij",
    "AKIAIOSFODNN7EXAMPLE",
    {"OPENAI_API_KEY": "sk-abcdef"},
    ["HF_TOKEN", "sk-abcdef"],
    [{"name": "sk-abcdef"}],
]


@pytest.mark.parametrize("secrets", SECRETS)
def test_secret_value_in_place_of_a_name_is_refused_and_not_repeated(secrets: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(job(secrets=secrets))
    assert "NAME" in str(caught.value)
    for part in ("sk-", "abcdef", "AKIA"):
        assert part not in str(caught.value)


def test_teacher_behind_a_key_needs_the_keys_name_in_secrets() -> None:
    remote = {"teacher": {"model": "gpt-4o-mini"}}
    with pytest.raises(ValidationError, match=r"needs a key from OPENAI_API_KEY.*secrets: \[OPENAI_API_KEY\]"):
        JobSpec.model_validate(job(data=remote))
    assert JobSpec.model_validate(job(data=remote, secrets=["OPENAI_API_KEY"])).secrets == ("OPENAI_API_KEY",)


@pytest.mark.parametrize(
    "teacher",
    [
        {"model": "m", "base_url": "http://127.0.0.1:8000/v1"},
        {"model": "m", "base_url": "http://localhost:8000/v1"},
        {"model": "m", "base_url": "http://[::1]:8000/v1"},
        {"model": "m", "base_url": "https://llm.example.org/v1", "api_key_env": None},
    ],
)
def test_teacher_without_a_key_needs_none(teacher: dict[str, Any]) -> None:
    assert JobSpec.model_validate(job(data={"teacher": teacher})).secrets == ()


@pytest.mark.parametrize("store", ["s3://key:secret@bucket", "https://user:pw@host/x"])
def test_store_with_credentials_is_refused_and_not_repeated(store: str) -> None:
    with pytest.raises(ValidationError, match="holds a user name or password") as caught:
        JobSpec.model_validate(job(store=store))
    assert "secret" not in str(caught.value)
    assert "pw@" not in str(caught.value)


def test_local_stands_alone() -> None:
    with pytest.raises(ValidationError, match="local stands alone"):
        ComputeSpec(workers=2, infra=("local", "aws"))


@pytest.mark.parametrize(
    ("teacher", "prices"),
    [
        ({"model": "gpt-4o-mini"}, (0.15, 0.6)),
        ({"model": "gpt-4o-mini-2024-07-18", "base_url": "https://api.openai.com/v1"}, (0.15, 0.6)),
        ({"model": "gpt-4o-mini", "price_per_million_input_usd": 0.1}, (0.1, None)),
        ({"model": "gpt-4o-mini", "base_url": "https://proxy.example/v1"}, (None, None)),
        ({"model": "no-such-model"}, (None, None)),
    ],
)
def test_a_teachers_list_price_is_filled_in_and_a_jobs_own_goes_first(
    teacher: dict[str, Any], prices: tuple[float | None, float | None]
) -> None:
    spec = TeacherSpec.model_validate(teacher)
    assert (spec.price_per_million_input_usd, spec.price_per_million_output_usd) == prices
    assert TeacherSpec.model_validate(spec.model_dump()) == spec


def test_a_teacher_of_ones_own_is_free_of_tokens_keeps_no_key_and_survives_json() -> None:
    teacher = TeacherSpec.model_validate({"serve": "open/model-7B"})
    assert (teacher.model, teacher.api_key_env, teacher.needs_key) == ("open/model-7B", None, False)
    assert (teacher.price_per_million_input_usd, teacher.price_per_million_output_usd) == (0.0, 0.0)
    assert TeacherSpec.model_validate(teacher.model_dump(mode="json")) == teacher
    assert (teacher.timeout_s, TeacherSpec(model="m").timeout_s) == (600.0, 120.0)
    here = job(data={"teacher": {"serve": "m", "server": {"gpus": "L4:1"}}})
    assert JobSpec.model_validate(here), "`generate` writes a cloud job's rows on this machine, with what it has"
    assert TeacherSpec.model_validate({"serve": "gpt-4o-mini"}).price_per_million_input_usd == 0.0, "no list price"


@pytest.mark.parametrize(
    ("server", "compute", "words"),
    [
        ({}, {"infra": ["aws"], "gpus": "A100:8"}, "names no GPUs, but open/model-7B needs a machine"),
        ({"gpus": "L4:1"}, {"infra": ["aws"], "workers": 2, "rows_apart": False}, "is served on a machine of its own"),
        ({"gpus": "L4:1"}, {"infra": ["k8s"], "gpus": "A100:8"}, "on k8s the rows are written on the machine that"),
        ({}, {"workers": 1, "num_nodes": 2}, "is served on one machine, for the requests of that machine"),
    ],
)
def test_a_teacher_of_ones_own_needs_a_machine_that_serves_it(
    server: dict[str, Any], compute: dict[str, Any], words: str
) -> None:
    data = {"teacher": {"serve": "open/model-7B", "server": server}}
    with pytest.raises(ValidationError, match=words):
        JobSpec.model_validate(job(data=data, compute=compute, store="s3://b/r"))
