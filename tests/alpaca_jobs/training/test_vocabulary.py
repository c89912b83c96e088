"""A merged vocabulary: old text is cut as before, new text is shorter, new rows begin as the mean of the old."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_llama

from alpaca_jobs.data.rows import Row
from alpaca_jobs.errors import ModelError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.dataset import prepare_dataset
from alpaca_jobs.training.model import build_model
from alpaca_jobs.training.reading import Document
from alpaca_jobs.training.tokenizer import build_tokenizer, load_tokenizer, write_folder
from alpaca_jobs.training.vocabulary import extend_tokenizer

GERMAN = ["der schnelle braune Fuchs springt über den faulen Hund", "über den Hund springt der Fuchs"] * 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, worker: Any) -> Path:
    """A tiny LLaMA whose tokenizer knows English, as a folder."""
    files = build_tokenizer("tiny-llama", [row.instruction + row.output for row in worker.rows(40)])
    folder = tmp_path_factory.mktemp("base")
    return tiny_llama(folder, files, max_position_embeddings=128, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that knows a little German, as a folder."""
    folder = tmp_path_factory.mktemp("german")
    write_folder(build_tokenizer("tiny-llama", GERMAN), folder)
    return folder


def _files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}


def test_old_text_keeps_its_tokens_and_new_text_takes_fewer(base: Path, german: Path, worker: Any) -> None:
    old, new = load_tokenizer(_files(base)), load_tokenizer(extend_tokenizer(_files(base), str(german)))
    texts = [row.instruction for row in worker.rows(40)]
    assert new.encode(texts) == old.encode(texts)
    before, after = (sum(map(len, one.encode(GERMAN))) for one in (old, new))
    assert after < 0.6 * before
    assert max(max(ids) for ids in new.encode(GERMAN)) < new.vocab_size
    assert new.eos_id == old.eos_id
    assert new.vocab_size > old.vocab_size


def test_what_is_encoded_reads_as_before(base: Path, german: Path) -> None:
    from tokenizers import Tokenizer

    merged = Tokenizer.from_str(extend_tokenizer(_files(base), str(german))["tokenizer.json"].decode())
    assert [merged.decode(merged.encode(text).ids) for text in GERMAN] == GERMAN


def test_new_rows_of_both_embeddings_begin_as_the_mean_of_the_old(base: Path, german: Path) -> None:
    train = TrainSpec(
        model=str(base), recipe="pretrain", max_length=64, tokenizer={"extend": str(german)}, global_batch_size=4
    )
    dataset = prepare_dataset(train, [Document(text) for text in GERMAN])
    tokenizer = load_tokenizer(dataset.tokenizer_files)
    old = build_model(train, load_tokenizer(_files(base)), device=torch.device("cpu"))
    new = build_model(train, tokenizer, device=torch.device("cpu"))
    for name in ("get_input_embeddings", "get_output_embeddings"):
        before, after = (getattr(model, name)().weight.detach() for model in (old, new))
        assert after.shape[0] == tokenizer.vocab_size
        assert torch.equal(after[: before.shape[0]], before)
        torch.testing.assert_close(after[before.shape[0] :], before.mean(0).expand_as(after[before.shape[0] :]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "is of the kind Unigram; only byte-pair encoders"),
        ({"pre_tokenizer": None}, "so their words are not the same texts"),
    ],
)
def test_tokenizers_that_do_not_fit_are_refused_in_words(
    base: Path, german: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    definition = {**json.loads((german / "tokenizer.json").read_text()), **change}
    (tmp_path / "other.json").write_text(json.dumps(definition))
    with pytest.raises(ModelError) as caught:
        extend_tokenizer(_files(base), str(tmp_path / "other.json"))
    assert words in str(caught.value)
    with pytest.raises(ModelError, match="has no word that the base model's tokenizer lacks"):
        extend_tokenizer(_files(base), str(base))


def test_pre_training_then_instruction_tuning_from_the_other_run_s_export(
    base: Path, german: Path, worker: Any, one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both stages of Chinese-LLaMA-Alpaca, tiny: a larger vocabulary, running text, then instructions on its model."""
    from alpaca_jobs.run_layout import LAYOUT
    from alpaca_jobs.training.hub import resolve_model
    from checkpoints.attempts import AttemptLog
    from checkpoints.fence import Fence
    from checkpoints.keys import CommitRef
    from checkpoints.store import Store
    from checkpoints.writer import CommitWriter

    first = TrainSpec(
        model=str(base), recipe="pretrain", max_length=64, tokenizer={"extend": str(german)}, global_batch_size=4,
        learning_rate=1e-3, max_steps=3, dtype="float32",
    )  # fmt: skip
    dataset = prepare_dataset(first, [Document(text) for text in GERMAN * 8])
    model = worker.trained_model(first, dataset, tmp_path / "train")
    model.save_pretrained(tmp_path / "exported")
    write_folder(dataset.tokenizer_files, tmp_path / "exported")
    store = Store.open(f"file://{tmp_path / 'runs' / 'zh-pretrain-abcde'}")
    log = AttemptLog(store, LAYOUT)
    log.claim(1, {})
    log.put_base(1, None)
    writer = CommitWriter(store, LAYOUT, CommitRef("export", 0, 1), fence=Fence(log, 1))
    for path in sorted((tmp_path / "exported").iterdir()):
        writer.put(path.name, path.read_bytes())
    writer.publish(meta={})

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    second = TrainSpec(model=store.uri, max_length=128, global_batch_size=4, max_steps=2, dtype="float32")
    tuned = prepare_dataset(second, [Row("Sag es auf Deutsch.", "", text) for text in GERMAN])
    mine, theirs = (json.loads(one.tokenizer_files["tokenizer.json"]) for one in (tuned, dataset))
    assert mine["model"] == theirs["model"]
    begun = build_model(second, load_tokenizer(tuned.tokenizer_files), device=torch.device("cpu"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(begun.state_dict()[name], tensor), name
    assert len(worker.losses_of(second, tuned, tmp_path / "tune")) == 2
    assert Path(resolve_model(store.uri)).is_relative_to(tmp_path / "cache")


def test_a_run_without_a_model_is_refused_in_words(tmp_path: Path) -> None:
    train = TrainSpec(model=f"file://{tmp_path}/nothing-abcde", max_length=128)
    with pytest.raises(ModelError, match=r"no exported model is there\. Name a run that is done"):
        prepare_dataset(train, [Row("a", "", "b")])
