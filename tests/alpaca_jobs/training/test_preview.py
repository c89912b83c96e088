"""What a preview shows is what training sees, and it warns of everything that would waste a training."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from alpaca_jobs.data.record_files import Record
from alpaca_jobs.errors import DataError
from alpaca_jobs.spec import JobSpec, TrainSpec
from alpaca_jobs.training.local_check import local_warnings
from alpaca_jobs.training.preview import find_problems, preview_tokens
from alpaca_jobs.training.reading import read_training_rows
from alpaca_jobs.training.recipes import build_tokenizer, prepare_rows
from alpaca_jobs.training.tokenizer import load_tokenizer

ROWS = [{"instruction": f"Say {number} 世界.", "input": "", "output": f"Hello {number}! 🎉"} for number in range(30)]
CHAT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}


def records(bodies: list[dict[str, Any]]) -> list[Record]:
    return [Record(f"f item {number}", body) for number, body in enumerate(bodies, start=1)]


def train(**changes: Any) -> TrainSpec:
    return TrainSpec.model_validate({"model": "tiny-llama", **changes})


def names(bodies: list[dict[str, Any]], **changes: Any) -> list[str]:
    return [one.name for one in preview_tokens(records(bodies), train(**changes), places=()).warnings]


def test_shown_tokens_are_the_very_ones_of_training_and_make_the_text() -> None:
    spec = train()
    rows = read_training_rows(records(ROWS), spec)
    files = build_tokenizer(spec, rows)
    ((ids, is_target),) = prepare_rows(rows, load_tokenizer(files), files, spec).of_epoch(0).pieces(7)
    (shown,) = preview_tokens(records(ROWS), spec, places=[7]).rows
    (piece,) = shown.pieces
    assert piece.ids == tuple(ids.tolist())
    assert piece.is_target == tuple(is_target.tolist())
    text = "".join(piece.texts)
    assert text.endswith("### Response:Hello 7! 🎉</s>")
    assert "Say 7 世界." in text
    learned = [text for text, target in zip(piece.texts, piece.is_target, strict=True) if target]
    assert "".join(learned) == "Hello 7! 🎉</s>"
    assert shown.ends_with_eos
    assert shown.num_cut == 0


def test_rows_that_the_evaluation_holds_out_are_marked() -> None:
    from alpaca_jobs.training.dataset import prepare_dataset
    from cli.token_view import facts_grid, row_text

    spec = train(eval={"fraction": 0.2})
    found = preview_tokens(records(ROWS), spec, places=range(len(ROWS)))
    dataset = prepare_dataset(spec, read_training_rows(records(ROWS), spec))
    sides = {side: [row for row in found.rows if row.is_held_out is side] for side in (False, True)}
    for side, data in ((False, dataset.rows), (True, dataset.evaluation)):
        assert data is not None
        shown = [[list(piece.ids) for piece in row.pieces] for row in sides[side]]
        epoch = data.of_epoch(0)
        assert shown == [[ids.tolist() for ids, _ in epoch.pieces(row)] for row in range(len(data))]
    assert found.num_held_out == len(sides[True]) >= 1
    assert "held out" in row_text(sides[True][0], found, with_ids=False, colour=False).split("\n")[0]
    assert "held out" not in row_text(sides[False][0], found, with_ids=False, colour=False)
    assert f"{found.num_held_out} rows" in str(facts_grid(found, spec, "f"))
    texts = [{"text": f"document number {number}"} for number in range(30)]
    packed = preview_tokens(records(texts), train(recipe="pretrain", eval={"fraction": 0.2}), places=[0])
    assert packed.num_held_out >= 1
    whole = preview_tokens(records(texts), train(recipe="pretrain"), places=[0])
    assert packed.num_tokens < whole.num_tokens


def test_what_is_cut_is_counted_and_warned_of() -> None:
    whole = preview_tokens(records(ROWS), train(), places=[0]).rows[0]
    count = sum(len(piece.ids) for piece in whole.pieces)
    cut = preview_tokens(records(ROWS), train(max_length=count - 3), places=[0])
    assert cut.rows[0].num_cut == 3
    assert not cut.rows[0].ends_with_eos
    assert "truncated" in [one.name for one in cut.warnings]
    assert cut.warnings[-1].num_rows == cut.num_truncated
    lenient = preview_tokens(records(ROWS), train(max_length=count - 3), places=[0], max_truncated=1.0)
    assert "truncated" not in [one.name for one in lenient.warnings]


def test_good_rows_have_no_warnings() -> None:
    assert names(ROWS) == []
    assert names([CHAT], recipe="vicuna") == []


@pytest.mark.parametrize(
    ("bodies", "changes", "name"),
    [
        ([*ROWS, {"instruction": "### Instruction:\nx", "output": "y"}], {}, "template_in_rows"),
        ([*ROWS, {"instruction": "x", "output": "<|im_start|>y"}], {}, "template_in_rows"),
        ([{"conversations": [{"from": "human", "value": "USER: x"}, CHAT["conversations"][1]]}], {"recipe": "vicuna"},
         "template_in_rows"),
        ([*ROWS, {"instruction": "word " * 600, "output": "y"}], {}, "answer_cut_away"),
    ],
)  # fmt: skip
def test_rows_that_would_waste_a_training_are_named(
    bodies: list[dict[str, Any]], changes: dict[str, Any], name: str
) -> None:
    assert name in names(bodies, **changes)


@pytest.mark.parametrize(("end", "joined"), [("A:", False), ("A:\n", False), ("A: ", True)])
def test_a_template_whose_end_becomes_a_part_of_the_answer_is_named(end: str, joined: bool) -> None:
    """The space goes to the answer's first word, whose token is then the prompt's and not learned."""
    template = {"prompt_input": f"Q: {{instruction}} {{input}}\n{end}", "prompt_no_input": f"Q: {{instruction}}\n{end}"}
    bodies = [{"instruction": f"Say sun {number}", "output": f"sun sun {number}"} for number in range(40)]
    changes = {"templates": [template]}
    assert ("prompt_joins_answer" in names(bodies, **changes)) == joined
    (row,) = preview_tokens(records(bodies), train(**changes), places=[3]).rows
    learned = "".join(text for piece in row.pieces for text, is_target in zip(piece.texts, piece.is_target, strict=True)
                      if is_target)  # fmt: skip
    assert (learned == "sun sun 3</s>") != joined


def test_a_missing_end_and_a_shared_padding_token_are_named() -> None:
    spec = train()
    rows = read_training_rows(records(ROWS), spec)
    files = build_tokenizer(spec, rows)
    tokenizer = load_tokenizer(files)
    data = prepare_rows(rows, tokenizer, files, spec)
    same = dataclasses.replace(tokenizer, pad_id=tokenizer.eos_id)
    found = find_problems(data, same, spec, ends=[same.eos_id], max_truncated=0.05)
    assert [one.name for one in found] == ["pad_is_eos"]
    found = find_problems(data, tokenizer, spec, ends=[7], max_truncated=0.05)
    assert [(one.name, one.num_rows) for one in found] == [("no_eos", 30)]


@pytest.mark.parametrize(
    ("body", "changes", "words"),
    [
        (CHAT, {}, "train.recipe vicuna trains on, but train.recipe is alpaca"),
        (ROWS[0], {"recipe": "vicuna"}, "train.recipe alpaca trains on, but train.recipe is vicuna"),
        ({"messages": []}, {"recipe": "vicuna"}, "Set train.template: chat"),
        ({"text": "x"}, {}, "train.recipe pretrain trains on"),
    ],
)
def test_a_file_for_another_recipe_is_refused_with_the_one_it_fits(
    body: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        preview_tokens(records([body]), train(**changes), places=[0])


def test_packed_documents_keep_their_borders() -> None:
    bodies = [{"text": f"Document {number} about cats."} for number in range(6)]
    found = preview_tokens(
        records(bodies), train(recipe="pretrain", packing="best_fit", max_length=60), places=[0, 99]
    )  # fmt: skip
    (row,) = found.rows
    assert len(row.pieces) > 1
    assert all(piece.ids[-1] == found.ends[0][0] and not piece.is_target[0] for piece in row.pieces)
    assert found.warnings == ()


def test_a_job_with_local_rows_is_looked_at_before_it_is_launched(tmp_path: Any) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"instruction": "### Instruction:\\nx", "output": "y"}]', encoding="utf-8")

    def job(source: str, model: str = "tiny-llama") -> JobSpec:
        body = {"name": "x", "data": {"from": source}, "train": {"model": model}, "compute": {"workers": 1}}
        return JobSpec.model_validate(body)

    assert ["prompt template" in words for words in local_warnings(job(str(path)))] == [True]
    text = tmp_path / "text.txt"
    text.write_bytes(b"### Instruction:\n" * 2000 + b"\xff")  # beyond what is looked at, and never read
    pretrain = job(str(text)).model_copy(update={"train": train(recipe="pretrain")})
    assert ["prompt template" in words for words in local_warnings(pretrain)] == [True]
    assert local_warnings(job("s3://bucket/rows.json")) == []
    assert local_warnings(job(str(tmp_path / "none.json"))) == []
    assert local_warnings(job(str(path), "nobody/has-this-model")) == []  # and nothing is fetched
