"""The examples: they read, they are the published recipes to the digit, and they plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from alpaca_jobs.errors import SpecError
from alpaca_jobs.examples import example_names, example_text
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import parse_job, render_job


def example(name: str) -> JobSpec:
    return parse_job(example_text(name), source=f"{name}.yaml")


def test_demo_comes_first() -> None:
    tuned = ("alpaca-13b", "alpaca-7b", "alpaca-lora", "opt-6.7b", "own-teacher", "trl-sft", "vicuna-7b")
    assert example_names() == ("demo", *tuned, "zh-alpaca", "zh-pretrain")


def test_unknown_example_is_answered_with_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"^alpaca7b is not an example\. Did you mean alpaca-7b\?$"):
        example_text("alpaca7b")
    with pytest.raises(SpecError, match=r"There are: demo, alpaca-13b"):
        example_text("../spec")


@pytest.mark.parametrize("name", example_names())
def test_example_reads_and_survives_being_written(name: str) -> None:
    assert parse_job(render_job(example(name))) == example(name)


@pytest.mark.parametrize("name", example_names())
def test_example_explains_itself(name: str) -> None:
    """`init` writes these files for people to edit: a first comment says what the job is, and no line is too wide."""
    lines = example_text(name).splitlines()
    assert lines[0].startswith("# ")
    assert max(map(len, lines)) <= 120
    assert sum("#" in line for line in lines) >= 8


@pytest.mark.parametrize(
    ("name", "model", "learning_rate", "epochs", "max_length"),
    [
        # REFERENCE: Stanford Alpaca's table; OPT with the 7B numbers; Vicuna with a context of 2048.
        ("alpaca-7b", "huggyllama/llama-7b", 2e-5, 3, 512),
        ("alpaca-13b", "huggyllama/llama-13b", 1e-5, 5, 512),
        ("opt-6.7b", "facebook/opt-6.7b", 2e-5, 3, 512),
        ("vicuna-7b", "huggyllama/llama-7b", 2e-5, 3, 2048),
    ],
)
def test_recipes_hold_the_published_numbers(
    name: str, model: str, learning_rate: float, epochs: float, max_length: int
) -> None:
    train = example(name).train
    assert train.model == model
    assert train.learning_rate == learning_rate
    assert (train.epochs, train.max_length) == (epochs, max_length)
    assert (train.global_batch_size, train.weight_decay, train.warmup_ratio) == (128, 0.0, 0.03)
    assert (train.lr_schedule, train.dtype) == ("cosine", "bfloat16")


@pytest.mark.parametrize("name", ["alpaca-7b", "alpaca-13b", "opt-6.7b"])
def test_alpaca_data_is_generated_as_published(name: str) -> None:
    data = example(name).data
    assert (data.num_rows, data.num_prompt_seeds, data.max_tasks_per_request) == (52_000, 3, 20)
    assert data.similarity_threshold == 0.7
    teacher = data.teacher
    assert teacher not in (None, "offline")
    assert (teacher.temperature, teacher.top_p, teacher.max_tokens) == (1.0, 1.0, 3072)  # type: ignore[union-attr]


def test_demo_is_small_local_and_exact() -> None:
    job = example("demo")
    assert job.compute.is_local
    assert job.compute.regions == ("a", "b", "c")
    assert (job.train.model, job.train.exactness, job.train.dtype) == ("tiny-llama", "bits", "float32")
    steps = job.data.num_rows / job.train.global_batch_size * job.train.epochs
    assert 30 <= steps <= 60
    assert job.checkpoints.interval_steps != "auto"
    assert steps >= 4 * job.checkpoints.interval_steps
    assert job.secrets == ()


def test_examples_are_package_data(repo_root: Path) -> None:
    assert (repo_root / "alpaca_jobs" / "examples" / "demo.yaml").read_text(encoding="utf-8") == example_text("demo")
