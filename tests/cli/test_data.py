"""`alpaca-jobs data ...`: from file to file, in every format, with the decisions of rouge_score."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rouge_score.rouge_scorer import RougeScorer

from alpaca_jobs.data.files import load_table
from alpaca_jobs.data.lineage_file import put_lineage
from alpaca_jobs.data.stream_writing import write_table

pytestmark = pytest.mark.process

Cli = Callable[..., subprocess.CompletedProcess[str]]
WORDS = [
    "write",
    "list",
    "name",
    "explain",
    "the",
    "a",
    "short",
    "long",
    "poem",
    "story",
    "about",
    "cats",
    "dogs",
    "rivers",
    "of",
    "in",
    "three",
    "words",
]


def _records(count: int) -> list[dict[str, Any]]:
    dice = random.Random(3)
    return [
        {"instruction": " ".join(dice.choices(WORDS, k=dice.randint(3, 9))), "output": "o", "id": number}
        for number in range(count)
    ]


def _kept_by_rouge_score(records: list[dict[str, Any]], earlier: list[str]) -> list[int]:
    scorer, pool, kept = RougeScorer(["rougeL"]), list(earlier), []
    for record in records:
        if all(scorer.score(other, record["instruction"])["rougeL"].fmeasure <= 0.7 for other in pool):
            pool.append(record["instruction"])
            kept.append(record["id"])
    return kept


@pytest.mark.parametrize(
    ("given", "out"), [("in.json", "out.jsonl"), ("in.jsonl", "out.parquet"), ("in.parquet", "o.json")]
)
def test_dedupe_keeps_what_rouge_score_keeps_in_any_format(run_cli: Cli, tmp_path: Path, given: str, out: str) -> None:
    records = _records(120)
    write_table(tmp_path / given, records)
    write_table(tmp_path / "seeds.jsonl", [{"instruction": "write a short poem about cats"}])
    files = [str(tmp_path / name) for name in (given, out, "seeds.jsonl")]
    done = run_cli("data", "dedupe", *files[:2], "--against", files[2], "--json")
    assert done.returncode == 0, done.stderr
    kept = [record.fields["id"] for record in load_table(str(tmp_path / out))]
    assert kept == _kept_by_rouge_score(records, ["write a short poem about cats"])
    said = json.loads(done.stdout)
    assert (said["rows"], said["kept"], said["dropped"]) == (120, len(kept), 120 - len(kept))
    assert 0 < said["dropped"] < 120


def test_dedupe_warns_of_rows_in_letters_that_rouge_does_not_read(run_cli: Cli, tmp_path: Path) -> None:
    """They are decided as rouge_score would: by the one foreign name they share, and not at all where there is none."""
    texts = [
        "用Python写一个排序函数",
        "什么是Python的生成器?",
        "同样的句子",
        "同样的句子",
        "Write a naïve poem about São Paulo",
    ]
    write_table(tmp_path / "in.jsonl", [{"instruction": text} for text in texts])
    done = run_cli("data", "dedupe", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    kept = [record.fields["instruction"] for record in load_table(str(tmp_path / "out.jsonl"))]
    assert kept == [texts[0], *texts[2:]]
    assert "Warning: of 5 rows, 4 are written mostly in other letters than a to z" in done.stderr


@pytest.mark.slow
def test_dedupe_by_two_workers_writes_the_same_file(run_cli: Cli, tmp_path: Path) -> None:
    write_table(tmp_path / "in.jsonl", _records(400))
    for number in (1, 2):
        out = str(tmp_path / f"out-{number}.jsonl")
        done = run_cli("data", "dedupe", str(tmp_path / "in.jsonl"), out, "--workers", str(number))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out-2.jsonl").read_bytes() == (tmp_path / "out-1.jsonl").read_bytes()


def test_dedupe_names_the_neighbours_under_alpacas_own_names(run_cli: Cli, tmp_path: Path) -> None:
    write_table(tmp_path / "in.json", _records(40))
    done = run_cli("data", "dedupe", str(tmp_path / "in.json"), str(tmp_path / "out.json"), "--neighbours")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "out.json")
    kept = [record.fields for record in load_table(str(tmp_path / "out.json"))]
    assert kept[0]["most_similar_instructions"] == {}
    last = kept[-1]
    assert len(last["most_similar_instructions"]) == 10
    scorer = RougeScorer(["rougeL"])
    for text, score in last["most_similar_instructions"].items():
        assert scorer.score(text, last["instruction"])["rougeL"].fmeasure == score <= 0.7
    assert 0 < last["avg_similarity_score"] < 0.7


def test_dedupe_refuses_in_words_and_leaves_files_alone(run_cli: Cli, tmp_path: Path) -> None:
    write_table(tmp_path / "in.json", [{"text": "no instruction"}])
    write_table(tmp_path / "there.json", [{"a": 1}])
    for args, said in (
        (["in.json", "there.json"], "exists already"),
        (["in.json", "out.json"], "has no 'instruction'; its fields are: text"),
        (["missing.json", "out.json"], "does not exist"),
        (["in.json", "out.csv"], "no format"),
        (["in.json", "out.json", "--against", "in.json"], "is the input itself"),
        (["in.json", "out.json", "--neighbours", "--workers=2"], "leave --workers away"),
    ):
        paths = [word if word.startswith("--") else str(tmp_path / word) for word in args]
        refused = run_cli("data", "dedupe", *paths)
        assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
        assert said in refused.stderr
    assert not (tmp_path / "out.json").exists()


def test_convert_goes_through_every_shape_and_file_and_back(run_cli: Cli, tmp_path: Path) -> None:
    rows = [
        {"instruction": "Sort.", "input": "b a", "output": "a b"},
        {"instruction": "Hi.", "input": "", "output": "Hi."},
    ]
    write_table(tmp_path / "a.json", rows)
    for given, out, shape in (
        ("a.json", "b.jsonl", "self-instruct"),
        ("b.jsonl", "c.parquet", "self-instruct"),
        ("c.parquet", "d.json", "alpaca"),
        ("d.json", "e.jsonl", "openai"),
        ("e.jsonl", "f.json", "sharegpt"),
    ):
        done = run_cli("data", "convert", str(tmp_path / given), str(tmp_path / out), "--to", shape, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["examples"] == 2
    assert [dict(record.fields) for record in load_table(str(tmp_path / "d.json"))] == rows
    chats = load_table(str(tmp_path / "f.json"))
    assert chats[0].fields["conversations"][0] == {"from": "human", "value": "Sort.\n\nb a"}
    refused = run_cli("data", "convert", str(tmp_path / "f.json"), str(tmp_path / "g.json"), "--to", "xml")
    assert refused.returncode == 2


def test_convert_makes_a_chat_of_each_answer(run_cli: Cli, tmp_path: Path) -> None:
    chat = {"conversations": [{"from": "gpt" if n % 2 else "human", "value": f"Say {n}."} for n in range(4)]}
    write_table(tmp_path / "a.json", [chat])
    there, out = str(tmp_path / "a.json"), tmp_path / "b.jsonl"
    done = run_cli("data", "convert", there, str(out), "--to", "openai", "--each-answer", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == 2
    made = [record.fields["messages"] for record in load_table(str(out))]
    assert [len(messages) for messages in made] == [2, 4]
    assert [one.get("weight") for one in made[1]] == [None, 0, None, None]
    write_table(tmp_path / "c.json", [{"conversations": chat["conversations"][:1]}])
    refused = run_cli("data", "convert", str(tmp_path / "c.json"), str(tmp_path / "d.json"), "--each-answer")
    assert (refused.returncode, (tmp_path / "d.json").exists()) == (2, False)
    assert "holds no answer to be learned" in refused.stderr


def test_a_card_says_what_rows_are_like_and_where_they_come_from(run_cli: Cli, tmp_path: Path) -> None:
    write_table(tmp_path / "in.jsonl", _records(60))
    job = tmp_path / "job.yaml"
    job.write_text("name: x\ndata: {teacher: offline}\ntrain: {model: tiny-llama}\ncompute: {workers: 1}\n")
    card = tmp_path / "card.html"
    done = run_cli("data", "card", str(tmp_path / "in.jsonl"), str(card), "--job", str(job), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["rows"], said["with_input"]) == (60, 0)
    page = card.read_text(encoding="utf-8")
    assert "demo data composed by rule" in page
    assert "Data card: in.jsonl" in page
    turns = [{"from": "gpt" if n % 2 else "human", "value": f"Say {n}."} for n in range(4)]
    (tmp_path / "chats.json").write_text(json.dumps([{"id": "a", "conversations": turns}]))
    put_lineage(tmp_path / "chats.json", {"teacher": "m at h"})
    done = run_cli("data", "card", str(tmp_path / "chats.json"), str(tmp_path / "chats.html"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["lineage"]["teacher"]) == (2, "m at h")
    assert "each of their 2 exchanges is a row here" in found["lineage"]["chats"]
    refused = run_cli("data", "card", str(tmp_path / "in.jsonl"), str(card))
    assert (refused.returncode, card.read_text(encoding="utf-8")) == (2, page)


def test_clean_writes_chats_that_vicunas_recipe_reads(run_cli: Cli, tmp_path: Path) -> None:
    said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "<p>Hello <b>you</b></p>"}]
    write_table(tmp_path / "in.json", [{"id": "1", "conversations": said}, {"id": "2", "conversations": said[:1]}])
    done = run_cli("data", "clean", str(tmp_path / "in.json"), str(tmp_path / "out.json"), "--json")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["chats"], counts["kept"], counts["drops"], counts["with_html"]) == (2, 1, {"empty": 1}, 1)
    cleaned = load_table(str(tmp_path / "out.json"))[0].fields
    assert cleaned["conversations"][1] == {"from": "gpt", "value": "Hello **you**"}
    in_capitals = run_cli("data", "clean", str(tmp_path / "in.json"), str(tmp_path / "en.json"), "--language", "EN")
    assert in_capitals.returncode == 0, in_capitals.stderr
    assert len(load_table(str(tmp_path / "en.json"))) == 1
    refused = run_cli("data", "clean", str(tmp_path / "in.json"), str(tmp_path / "x.json"), "--language", "english")
    assert refused.returncode == 2
    assert "no language code known here" in refused.stderr


def test_preview_says_what_is_learned_and_warns(run_cli: Cli, tmp_path: Path) -> None:
    write_table(tmp_path / "in.jsonl", [*_records(20), {"instruction": "x", "output": "### Response:\ny"}])
    done = run_cli("data", "preview", str(tmp_path / "in.jsonl"), "--row", "3")
    assert done.returncode == 0, done.stderr
    assert "learned | o\n" in done.stdout
    assert "end     | </s> (learned)" in done.stdout
    assert "\x1b" not in done.stdout  # no colour in a pipe, and nothing is lost with it
    assert "warning (template_in_rows): 1 rows" in done.stderr
    told = json.loads(run_cli("data", "preview", str(tmp_path / "in.jsonl"), "--row", "3", "--json").stdout)
    (shown,) = told["shown"]
    assert "".join(one["text"] for one in shown["pieces"][0] if one["target"]) == "o</s>"
    assert [one["name"] for one in told["warnings"]] == ["template_in_rows"]


def test_preview_reads_documents_of_a_text_file_a_line_each(run_cli: Cli, tmp_path: Path) -> None:
    text, job = tmp_path / "text.txt", tmp_path / "job.yaml"
    text.write_text("".join(f"The cat sat on mat {number}.\n" for number in range(20)))
    job.write_text(
        f"name: x\ndata: {{from: {text}}}\ntrain: {{model: tiny-llama, recipe: pretrain, max_length: 32}}\n"
        "compute: {workers: 1}\n"
    )
    told = [
        json.loads(run_cli("data", "preview", *command, "--json").stdout)
        for command in ([str(job)], [str(text), "--max-length", "32"])
    ]
    assert told[0]["shown"] == told[1]["shown"]
    assert "".join(one["text"] for one in told[0]["shown"][0]["pieces"][0]).startswith("The cat sat on mat 0.</s>")
    assert told[0]["recipe"] == told[1]["recipe"] == "pretrain"


def test_preview_of_a_job_whose_rows_are_to_be_written_shows_its_seeds(run_cli: Cli, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("name: x\ndata: {teacher: offline}\ntrain: {model: tiny-llama}\ncompute: {workers: 1}\n")
    done = run_cli("data", "preview", str(job), "--tokens")
    assert done.returncode == 0, done.stderr
    assert "seed tasks (builtin)" in done.stdout
    chats = tmp_path / "chats.json"
    chats.write_text('[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]')
    job.write_text(f"name: x\ndata: {{from: {chats}}}\ntrain: {{model: tiny-llama}}\ncompute: {{workers: 1}}\n")
    for command in (("data", "preview"), ("validate",)):
        refused = run_cli(*command, str(job))
        assert refused.returncode == 2
        assert "Set recipe: vicuna" in refused.stderr


def test_translate_refuses_in_words_before_anything_is_asked_or_left_behind(run_cli: Cli, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text('[{"instruction": "Say hi.", "input": "", "output": "Hi."}]', encoding="utf-8")
    before = [str(rows), str(tmp_path / "out.json"), "--to", "pt", "--yes"]
    nowhere = ["--model", "m", "--base-url", "http://127.0.0.1:9/v1"]
    for more, said in (
        (["--model", "gpt-4o-mini"], "needs the key in OPENAI_API_KEY, not set in this shell"),
        ([*nowhere, "--max-usd", "1"], "--max-usd 1 cannot be kept: what m costs is not known"),
    ):
        refused = run_cli("data", "translate", *before, *more)
        assert refused.returncode == 2
        assert said in refused.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []
