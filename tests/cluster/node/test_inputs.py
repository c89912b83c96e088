"""Inputs are the run's own from launch on: a tokenizer to merge is read from the run's folder, not from a laptop."""

from __future__ import annotations

from pathlib import Path

from alpaca_jobs.spec_io import job_from_dict
from alpaca_jobs.training.reading import load_training_rows
from alpaca_jobs.training.vocabulary import read_tokenizer
from checkpoints.store import Store
from cluster.node.inputs import freeze_inputs, with_frozen_inputs


def test_the_second_tokenizer_outlives_the_file_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    (tmp_path / "texts.jsonl").write_text('{"text": "one"}\n')
    job = job_from_dict(
        {
            "name": "j",
            "data": {"from": str(tmp_path / "texts.jsonl")},
            "train": {"model": "a/b", "recipe": "pretrain", "tokenizer": {"extend": str(tmp_path)}},
            "compute": {"workers": 1, "infra": ["local"]},
        }
    )
    store = Store.open(f"file://{tmp_path}/runs/j-abcde")
    freeze_inputs(job, store)
    (tmp_path / "tokenizer.json").unlink()
    frozen = with_frozen_inputs(job, store).train.tokenizer
    assert frozen is not None
    assert read_tokenizer(frozen.extend) == b'{"model": {}}'


def test_a_job_without_one_stays_as_it_is(tmp_path: Path) -> None:
    job = job_from_dict(
        {
            "name": "j",
            "data": {"teacher": "offline"},
            "train": {"model": "tiny-llama"},
            "compute": {"workers": 1, "infra": ["local"]},
        }
    )
    assert with_frozen_inputs(job, Store.open(f"file://{tmp_path}")) is job


def test_held_out_rows_of_a_file_are_the_runs_own_from_launch_on(tmp_path: Path) -> None:
    (tmp_path / "held-out.jsonl").write_text('{"instruction": "Say one.", "output": "One."}\n')
    job = job_from_dict(
        {
            "name": "j",
            "data": {"teacher": "offline"},
            "train": {"model": "tiny-llama", "eval": {"file": str(tmp_path / "held-out.jsonl"), "stop_after": 3}},
            "compute": {"workers": 1, "infra": ["local"]},
        }
    )
    store = Store.open(f"file://{tmp_path}/runs/j-abcde")
    freeze_inputs(job, store)
    (tmp_path / "held-out.jsonl").unlink()
    frozen = with_frozen_inputs(job, store).train.eval
    assert frozen is not None
    assert frozen.file is not None
    assert frozen.stop_after == 3
    assert len(load_training_rows(frozen.file, job.train)) == 1
