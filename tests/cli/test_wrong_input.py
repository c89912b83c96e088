"""Wrong input of every kind: exit code 2, nothing on stdout, and words that say what was found and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alpaca_jobs.training.tokenizer import build_tokenizer, write_folder
from cli import main

ROWS = [{"instruction": f"Say the number {number}.", "input": "", "output": f"{number}."} for number in range(4)]
JOB: dict[str, Any] = {
    "name": "wrong",
    "store": "file://./runs",
    "data": {"from": "rows.json"},
    "train": {"model": "tiny-llama"},
    "compute": {"workers": 1},
}
FILES: dict[str, str | bytes] = {
    "rows.json": json.dumps(ROWS),
    "job.yaml": json.dumps(JOB),
    "empty.jsonl": "",
    "latin.jsonl": '{"instruction": "café", "input": "", "output": "x"}\n'.encode("latin-1"),
    "rows.csv": "instruction,input,output\nSay hello.,,hello\n",
    "comma.json": '[{"instruction": "a", "input": "", "output": "b"},]',
    "tabs.yaml": "name: x\ndata:\n\tteacher: offline\n",
    "comma.yaml": '{"name": "x",, "data": {}}',
    "latin.yaml": "name: café\n".encode("latin-1"),
    "empty.yaml": "",
    "list.yaml": "- a\n- b\n",
    "fake.parquet": json.dumps(ROWS),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of every wrong kind."""
    for name, content in FILES.items():
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def ask(*args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    done = CliRunner().invoke(main.app, list(args))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, " ".join(done.stderr.split())


def refused(*args: str) -> str:
    """What a command says on stderr that ends with 2 and prints no result."""
    code, out, said = ask(*args)
    assert (code, out) == (2, ""), said
    assert "did not foresee" not in said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("none.yaml", "none.yaml does not exist. Write a starter job with: alpaca-jobs init"),
        ("folder", "folder is a folder; a job file is wanted"),
        ("tabs.yaml", "tabs.yaml:3: a tab stands where YAML wants spaces. Indent with spaces."),
        ("comma.yaml", "comma.yaml:1: this is not YAML"),
        ("latin.yaml", "latin.yaml is not UTF-8 text (byte 9). Save it as UTF-8."),
        ("empty.yaml", "empty.yaml is empty."),
        ("list.yaml", "list.yaml is a list; a mapping is wanted"),
        ("rows.csv", "a mapping is wanted"),
    ],
)
@pytest.mark.parametrize("command", ["validate", "estimate", "launch", "drill"])
def test_what_is_no_job_is_refused_by_every_command_alike(here: Path, command: str, job: str, said: str) -> None:
    assert said in refused(command, job)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("none.json", "none.json does not exist (looked for "),
        ("folder", "folder"),
        ("empty.jsonl", "empty.jsonl is empty. It should hold JSON"),
        ("latin.jsonl", "latin.jsonl is not UTF-8 text: byte"),
        ("rows.csv", "rows.csv line 1 is not JSON"),
        ("comma.json", "comma.json"),
        ("fake.parquet", "fake.parquet is not Parquet"),
    ],
)
@pytest.mark.parametrize("command", [("dedupe",), ("convert",), ("clean",), ("translate", "--to", "pt", "--offline")])
def test_rows_that_are_none_are_refused_by_every_command_alike(
    here: Path, command: tuple[str, ...], rows: str, said: str
) -> None:
    verb, *options = command
    assert said in refused("data", verb, rows, "out.json", *options)
    assert not list(here.glob("out.json*"))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("rows.json", "exists already and was left as it is"),
        ("out.csv", "its name says no format"),
        ("none/out.json", "there is no folder"),
        ("/proc/out.json", "/proc/out.json cannot be written in /proc ("),
    ],
)
def test_a_target_that_cannot_be_written_is_said_before_the_work(here: Path, target: str, said: str) -> None:
    if target.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("no /proc here")
    assert said in refused("data", "dedupe", "rows.json", target)
    assert said in refused("generate", "job.yaml", "--out", target)


@pytest.mark.parametrize("command", ["validate", "estimate", "launch"])
def test_a_base_model_that_cannot_be_trained_is_refused_before_a_plan(here: Path, command: str) -> None:
    folder = here / "model"
    folder.mkdir()
    (here / "job.yaml").write_text(json.dumps({**JOB, "train": {"model": "./model"}}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": {"bits": 4}}))
    assert "whose weights are quantised" in refused(command, "job.yaml")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert "it holds no weights that transformers reads (config.json)" in refused(command, "job.yaml")


def test_a_sound_base_model_is_shown_and_its_size_told(here: Path) -> None:
    folder = here / "model"
    folder.mkdir()
    (here / "job.yaml").write_text(json.dumps({**JOB, "train": {"model": "./model"}}))
    config = {
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32,
        "num_attention_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
    }  # fmt: skip
    write_folder(build_tokenizer("tiny-llama", ["a text"]), folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_text("0")
    code, out, _ = ask("validate", "job.yaml", "--json")
    assert code == 0
    told = json.loads(out)["base_model"]
    assert (told["num_parameters"], told["context_length"], told["fetched_bytes"]) == (920, 512, 0)
    assert "base model" in ask("validate", "job.yaml")[1]


@pytest.mark.parametrize("command", ["estimate", "launch"])
def test_seed_tasks_that_are_none_have_no_price(here: Path, command: str) -> None:
    (here / "job.yaml").write_text(json.dumps({**JOB, "data": {"seed_tasks": "none.jsonl", "teacher": "offline"}}))
    assert "none.jsonl does not exist" in refused(command, "job.yaml")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "args",
    [
        ("launch", "job.yaml", "--dry-run", "--budget"),
        ("launch", "job.yaml", "--dry-run", "--deadline"),
        ("estimate", "job.yaml", "--parameters"),
        ("estimate", "job.yaml", "--row-tokens"),
        ("data", "dedupe", "rows.json", "out.json", "--threshold"),
        ("data", "preview", "rows.json", "--max-truncated"),
        ("drill", "job.yaml", "--max-usd"),
        ("weights", "recover", "a", "b", "c", "--integrity-sum"),
    ],
    ids=" ".join,
)
def test_what_is_no_number_is_none_for_an_option_either(here: Path, args: tuple[str, ...], number: str) -> None:
    assert args[-1] in refused(*args, number)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("launch", "job.yaml", "--dry-run", "--budget", "-5"), "-5 is no limit to work within"),
        (("resume", "--budget", "-5"), "-5 is no limit to work within"),
        (("resume", "--teacher-budget", "0"), "0 is no limit to work within"),
        (("launch", "job.yaml", "--dry-run", "--deadline", "0"), "0 is no limit to work within"),
        (("drill", "job.yaml", "--world-size", "2,0"), "--world-size is 2,0, but numbers of ranks are wanted"),
        (("drill", "job.yaml", "--world-size", "2,,1"), "--world-size is 2,,1"),
        (("logs", "--since", "99999999999d"), "--since is 99999999999d, but a time is wanted"),
        (("logs", "--since", "tomorrow"), "--since is tomorrow, but a time is wanted"),
        (("data", "preview", "rows.json", "--recipe", "nope"), "recipe is nope, but this version knows only alpaca"),
        (("data", "preview", "rows.json", "--row", "4"), "--row is 4, but rows.json has 4 rows, counted from 0."),
        (
            ("data", "dedupe", "http://127.0.0.1/a.json", "out.json"),
            "is on the web, but a file or an s3://, gs:// or az://",
        ),
        (("data", "convert", "https://127.0.0.1/a.json", "out.json"), "Fetch it: curl -LO URL"),
        (("status",), "There is no run yet in any store used from here. Start one: alpaca-jobs launch JOB"),
        (("status", "--store", "ftp://x"), "ftp://x: no store here speaks ftp://"),
        (("runs", "--store", "s3://"), "s3://: the bucket is missing. Write s3://BUCKET/PREFIX."),
        (("status", "none"), "There is no run none in any store used from here"),
        (("init", "folder"), "folder exists already"),
        (("init", "none/job.yaml"), "none/job.yaml cannot be written (No such file or directory)"),
        (("init", "rows.json/job.yaml"), "cannot be written (Not a directory)"),
        (("init", f"{'a' * 300}.yaml"), "cannot be written (File name too long)"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_options_that_cannot_be_are_refused_in_words(here: Path, args: tuple[str, ...], said: str) -> None:
    assert said in refused(*args)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "m", "--base-url", "nonsense"), "base_url is nonsense"),
        (("--model", "m", "--prices", "-1,2"), "price_per_million_input_usd is -1"),
        (("--model", "m", "--prices", "nan,2"), "price_per_million_input_usd is nan"),
        (("--model", "m", "--prices", "1"), "--prices is '1', but two numbers with a comma are wanted"),
        ((), "Who translates? Name one of"),
    ],
)
def test_a_translator_that_cannot_be_is_refused_in_words(
    here: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], said: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert said in refused("data", "translate", "rows.json", "out.json", "--to", "pt", *options)


def test_a_translator_that_is_away_is_not_waited_for_in_silence_for_an_hour() -> None:
    from cli.data_translate import PATIENCE_S, _teacher

    teacher = _teacher("m", "http://127.0.0.1:9/v1", "KEY", None, None, offline=False)
    assert not isinstance(teacher, str)
    assert teacher.patience_s == PATIENCE_S <= 60


def test_train_looks_into_its_rows_before_anything_starts(here: Path) -> None:
    assert "rows.csv line 1 is not JSON" in refused("train", "job.yaml", "--rows", "rows.csv", "--yes")
    assert not (here / "runs").exists()


def test_half_a_starter_job_does_not_stay(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cli.init import _gone_if_broken_off

    half = here / "half.yaml"
    half.write_text("name: ha", encoding="utf-8")
    with pytest.raises(OSError, match="full"), _gone_if_broken_off(half):
        raise OSError(28, "full")
    assert not half.exists()


def test_half_a_card_does_not_stay(here: Path) -> None:
    """A text that no UTF-8 can hold stands for the disk that is full in the middle."""
    from alpaca_jobs.data.files import whole_file

    with pytest.raises(UnicodeEncodeError), whole_file(here / "card.html") as partial:
        partial.write_text("half of it \ud800", encoding="utf-8")
    assert list(here.glob("card.html*")) == []
