"""Data larger than memory: tokens in files give the same bits as tokens in memory, in bounded memory."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpaca_jobs.errors import DataError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training import data as data_module
from alpaca_jobs.training.collate import Layout
from alpaca_jobs.training.data import EpochRows
from alpaca_jobs.training.dataset import Dataset, prepare_again, prepare_dataset
from alpaca_jobs.training.feed import make_step
from alpaca_jobs.training.stored import StoredRows

ROWS = [
    {"instruction": f"Say {n} in {('red', 'blue', 'green')[n % 3]} words.", "input": "now" * (n % 4), "output": "é" * n}
    for n in range(1, 60)
]
TEMPLATE = {"prompt_input": "{instruction} with {input}: ", "prompt_no_input": "{instruction}: "}
SHORT = {"prompt_input": "{instruction}|{input}|", "prompt_no_input": "{instruction}|"}
CHATS = [
    {"conversations": [{"from": "human", "value": f"Hi {n}"}, {"from": "gpt", "value": "Hello." * n}]}
    for n in range(1, 30)
]
TEXTS = [{"text": "word and word again " * (n % 7) + f"number {n}"} for n in range(40)]
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "alpaca": (ROWS, {"max_length": 120}),
    "held out": (ROWS, {"max_length": 120, "eval": {"fraction": 0.2}}),
    "two templates": (ROWS, {"max_length": 120, "templates": [TEMPLATE, SHORT]}),
    "vicuna": (CHATS, {"recipe": "vicuna", "max_length": 90}),
    "blocks": (TEXTS, {"recipe": "pretrain", "max_length": 16, "packing": "blocks"}),
    "best fit": (TEXTS, {"recipe": "pretrain", "max_length": 16, "packing": "best_fit", "eval": {"fraction": 0.2}}),
}


def spec(**changes: Any) -> TrainSpec:
    given = {"model": "tiny-llama", "global_batch_size": 8, "micro_batch_size": 3, "epochs": 2, **changes}
    return TrainSpec.model_validate(given)


def write(folder: Path, rows: list[dict[str, Any]], suffix: str) -> str:
    path = folder / f"rows{suffix}"
    if suffix == ".parquet":
        from alpaca_jobs.data.stream_writing import write_table

        write_table(path, rows)
    elif suffix == ".json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def same_rows(one: EpochRows, other: EpochRows) -> bool:
    def flat(rows: EpochRows, row: int) -> list[list[Any]]:
        return [[ids.tolist(), is_target.tolist()] for ids, is_target in rows.pieces(row)]

    names = ("lengths", "target_counts", "squared_lengths")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names) and all(
        flat(one, row) == flat(other, row) for row in range(len(one.lengths))
    )


def assert_same(one: Dataset, other: Dataset, train: TrainSpec) -> None:
    assert one.tokenizer_files == other.tokenizer_files
    assert one.num_steps == other.num_steps
    for mine, yours in ((one.rows, other.rows), (one.evaluation, other.evaluation)):
        assert (mine is None) == (yours is None)
        if mine is not None and yours is not None:
            assert mine.digest == yours.digest
            assert (mine.num_truncated, mine.num_without_target) == (yours.num_truncated, yours.num_without_target)
            assert same_rows(mine.of_epoch(1), yours.of_epoch(1))
    for step in (1, one.num_steps):
        made = [
            make_step(step, train=train, data=each.rows, rank=1, world_size=2, layout=Layout.PADDED, pad_id=0)
            for each in (one, other)
        ]
        assert made[0].plan == made[1].plan
        assert all(a.labels.equal(b.labels) for a, b in zip(made[0].micros, made[1].micros, strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_rows_in_files_are_the_rows_in_memory_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, suffix: str
) -> None:
    rows, changes = CASES[case]
    source, train = write(tmp_path, rows, suffix), spec(**changes)
    in_memory = prepare_dataset(train, source)
    monkeypatch.setattr(data_module, "_CHUNK_CHARACTERS", 300)  # many chunks, so that their borders show
    stored = prepare_dataset(train, source, folder=tmp_path / "tokens")
    assert_same(pickle.loads(pickle.dumps(stored)), in_memory, train)
    assert len(pickle.dumps(stored.rows)) < 2000, "it travels as a name"


def test_held_out_rows_of_a_file_are_stored_beside_a_file_of_rows_and_travel_with_rows_in_memory(
    tmp_path: Path,
) -> None:
    from alpaca_jobs.training.reading import load_training_rows

    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text(json.dumps(ROWS[0]) + "\n")
    source, train = write(tmp_path, ROWS[1:], ".json"), spec(eval={"file": str(held_out)})
    stored = prepare_dataset(train, source, folder=tmp_path / "tokens")
    assert isinstance(stored.evaluation, StoredRows)
    made = prepare_dataset(train, load_training_rows(source, train), folder=tmp_path / "none")
    assert_same(stored, made, train)
    assert not (tmp_path / "none").exists(), "other machines could not make it again"


def test_a_file_of_a_store_and_lines_of_text_are_read_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffone line\r\n\nanother ünd\u2028more\nlast".encode())
    train = spec(recipe="pretrain", max_length=8)
    for end in (b"", b"\n", b"\n\n"):
        path.write_bytes(path.read_bytes().rstrip(b"\n") + end)
        stored = prepare_dataset(train, f"file://{path}", folder=tmp_path / f"tokens{len(end)}")
        assert_same(stored, prepare_dataset(train, str(path)), train)
    assert not list(tmp_path.glob("tokens*/source-*")), "the copy is gone"


def test_another_machine_makes_the_same_files_and_other_rows_are_refused(tmp_path: Path) -> None:
    source, train = write(tmp_path, ROWS, ".jsonl"), spec(eval={"fraction": 0.2})
    first = prepare_dataset(train, source, folder=tmp_path / "first")
    elsewhere = Dataset(
        *(getattr(first, name) for name in ("rows", "tokenizer_files", "num_steps", "evaluation"))
    )  # fmt: skip
    moved = tmp_path / "moved"
    (tmp_path / "first").rename(moved)  # a machine that has none of it
    prepare_again(train, source, elsewhere, folder=tmp_path / "first")
    assert_same(elsewhere, prepare_dataset(train, source), train)
    before = (tmp_path / "first").stat().st_mtime_ns
    prepare_again(train, source, elsewhere, folder=tmp_path / "first")
    assert (tmp_path / "first").stat().st_mtime_ns == before, "made once on a machine"
    (tmp_path / "first").rename(tmp_path / "again")
    write(tmp_path, ROWS[:-1], ".jsonl")
    with pytest.raises(DataError, match=r"are not those of the first machine.*Give all machines the same software"):
        prepare_again(train, source, elsewhere, folder=tmp_path / "first")


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".jsonl", '{"instruction": "a", "output": "b"}\n{oops\n'), (".jsonl", " \n"), (".jsonl", "3\n"),
        (".json", '[{"instruction": "a", "output": "b"},\n  {"x" 3}]'), (".json", "[]"), (".json", "[1, 2]"),
        (".json", '[{"instruction": "a", "output": "b"}'), (".parquet", "no"),
        (".json", '[{"instruction": "a", "output": "b"}] x'), (".jsonl", '{"instruction": "a"}\n'),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_in_the_same_words(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_text(text)
    said = []
    for folder in (None, tmp_path / "tokens"):
        with pytest.raises(DataError) as caught:
            prepare_dataset(spec(), str(path), folder=folder)
        said.append(str(caught.value))
    assert said[0].split(" (")[0] == said[1].split(" (")[0]
    assert not list((tmp_path / "tokens").glob("trained-*")), "nothing half is left"


def test_bytes_that_are_no_utf8_are_named_at_their_place(tmp_path: Path) -> None:
    for suffix, text in ((".jsonl", b'{"instruction": "a", "output": "b"}\n{"\xff'), (".json", b'\n[{"a": "\xff"}]')):
        path = tmp_path / f"rows{suffix}"
        path.write_bytes(text)
        with pytest.raises(DataError, match=f"byte {text.index(bytes([0xFF]))} is 0xff"):
            prepare_dataset(spec(), str(path), folder=tmp_path / "tokens")


def test_an_item_longer_than_what_is_read_at_once_is_one_item(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "b", "note": "x" * length} for length in (3, 3 << 20, 5)]
    stored = prepare_dataset(spec(), write(tmp_path, rows, ".json"), folder=tmp_path / "tokens")
    assert isinstance(stored.rows, StoredRows)
    assert len(stored.rows) == 3


PROGRAM = """
import resource, sys
from pathlib import Path
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.dataset import prepare_dataset
import alpaca_jobs.training.feed, pyarrow.parquet, tokenizers
train = TrainSpec(model=sys.argv[3], recipe="pretrain", max_length=512)
def mib(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
small, large = sys.argv[1], sys.argv[2]
prepare_dataset(train, small, folder=Path(small).parent / "small")
before = mib()
made = prepare_dataset(train, large, folder=Path(large).parent / "large")
print(int(mib() - before), len(made.rows), made.rows.of_epoch(0).lengths.sum())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_file_takes_no_memory_that_grows_with_it(tmp_path: Path, tiny_opt: Path) -> None:
    text = json.dumps({"text": "red and blue in reverse order, please. " * 250}) + "\n"
    (tmp_path / "small.jsonl").write_text(text * (6_000_000 // len(text)))
    (tmp_path / "large.jsonl").write_text(text * (36_000_000 // len(text)))
    arguments = [tmp_path / "small.jsonl", tmp_path / "large.jsonl", tiny_opt]
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=550
    )
    assert said.returncode == 0, said.stderr
    grown, rows, tokens = map(int, said.stdout.split())
    assert rows == -(-tokens // 512)
    assert tokens > 5e6
    assert grown < 20, "MiB; 30 MB more of text, and 5 bytes for each of more than 4 million tokens"
