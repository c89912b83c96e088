"""Templates of the user's own: files like alpaca-lora's, mixed; each draw a function of seed, epoch and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.data.rows import Row
from alpaca_jobs.errors import SpecError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.spec_io import job_from_dict, job_to_dict, load_job
from alpaca_jobs.training.collate import Layout
from alpaca_jobs.training.dataset import prepare_dataset
from alpaca_jobs.training.feed import make_step
from alpaca_jobs.training.mixing import MixedRows
from alpaca_jobs.training.recipes import to_example

SHORT = {"prompt_input": "Q: {instruction} ({input})\nA:", "prompt_no_input": "Q: {instruction}\nA:"}
LONG = {
    "description": "A longer one.",
    "prompt_input": "### Aufgabe:\n{instruction}\n\n### Eingabe:\n{input}\n\n### Antwort:\n",
    "prompt_no_input": "### Aufgabe:\n{instruction}\n\n### Antwort:\n",
    "response_split": "### Antwort:",
}
JOB = "name: j\ndata: {teacher: offline}\ncompute: {workers: 1, infra: [local]}\n"


def test_a_job_carries_the_contents_of_its_template_files(tmp_path: Path) -> None:
    (tmp_path / "german.json").write_text(json.dumps(LONG))
    (tmp_path / "job.yaml").write_text(JOB + "train: {model: tiny-llama, templates: [german.json]}\n")
    job = load_job(tmp_path / "job.yaml")
    assert job.train.templates[0].prompt_input == LONG["prompt_input"]
    (tmp_path / "german.json").unlink()
    assert job_from_dict(job_to_dict(job)).train.templates == job.train.templates


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("nothing.json", "nothing.json cannot be read as JSON"),
        ({**SHORT, "prompt_input": "only {instruction}"}, "then {input}, once each, is wanted"),
        ({**SHORT, "prompt_no_input": "{instruction} {input}"}, "without {input}, is wanted"),
    ],
)
def test_a_template_that_cannot_be_one_is_refused_in_words(tmp_path: Path, template: Any, words: str) -> None:
    (tmp_path / "job.yaml").write_text(JOB + f"train: {{model: tiny-llama, templates: {json.dumps([template])}}}\n")
    with pytest.raises(SpecError, match=r"train\.templates") as caught:
        load_job(tmp_path / "job.yaml")
    assert words in str(caught.value)


def test_braces_in_rows_stay_as_they_are() -> None:
    train = TrainSpec(model="tiny-llama", templates=[SHORT])
    (turn,) = to_example(Row("use {input}", "{instruction}", "yes"), train.templates[0])
    assert turn.prompt == "Q: use {input} ({instruction})\nA:"


def test_rows_are_drawn_anew_in_every_epoch_and_alike_everywhere(worker: Any) -> None:
    train = TrainSpec(
        model="tiny-llama", templates=[SHORT, LONG], max_length=256, global_batch_size=16, micro_batch_size=4, epochs=2
    )
    rows = worker.rows(80)
    mixed, again = prepare_dataset(train, rows).rows, prepare_dataset(train, rows).rows
    assert isinstance(mixed, MixedRows)
    first, second = mixed.of_epoch(0), mixed.of_epoch(1)
    assert 20 < first.template.sum() < 60
    assert first.template.tolist() != second.template.tolist()
    assert first.template.tolist() == again.of_epoch(0).template.tolist()
    assert mixed.digest == again.digest
    for row in range(80):
        ((tokens, is_target),) = first.pieces(row)
        assert len(tokens) == first.lengths[row]
        assert is_target.sum() == first.target_counts[row]

    def lengths(step: int, world_size: int) -> list[int]:
        steps = [
            make_step(
                step, train=train, data=mixed, rank=rank, world_size=world_size, layout=Layout.POSITIONS, pad_id=0
            )
            for rank in range(world_size)
        ]
        positions = [inputs.model_inputs["position_ids"] for ready in steps for inputs in ready.micros]
        assert sum(int(one.numel()) for one in positions) == steps[0].tokens
        return sorted(
            int(length) for ready in steps for length in mixed.of_epoch((step - 1) // 5).lengths[list(ready.plan.rows)]
        )

    assert lengths(2, 1) == sorted(lengths(2, 2)[::2])
    assert sum(lengths(2, 1)) != sum(lengths(7, 1))
