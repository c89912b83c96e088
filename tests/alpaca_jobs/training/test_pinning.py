"""A base model's revision is settled once, and that is what is loaded; the faults of old conversions are named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import filter_repo_objects
from tokenizers import Tokenizer, models

from alpaca_jobs.errors import ModelError
from alpaca_jobs.generation.offline_teacher import running
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.hub import resolve_model
from alpaca_jobs.training.pinning import Pinned, pin_revision
from alpaca_jobs.training.recipes import build_tokenizer as build_job_tokenizer
from alpaca_jobs.training.revision import fetch_revision, fetched_files
from alpaca_jobs.training.tokenizer import build_tokenizer, load_tokenizer, write_folder

OLD, NEW = "1" * 40, "2" * 40
CONTENTS = {OLD: b'{"model_type": "llama", "hidden_size": 8}', NEW: b'{"model_type": "llama", "hidden_size": 16}'}


class _Hub(BaseHTTPRequestHandler):
    """One model with a branch main (at NEW), a tag v1 (at OLD) and one file."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        revision = parts[5] if parts[:2] == ["api", "models"] and len(parts) > 5 else "main"
        if parts[2:3] == ["resolve"]:
            revision = parts[3]
        commit = {"main": NEW, "v1": OLD, OLD: OLD, NEW: NEW}.get(revision)
        headers: dict[str, str] = {}
        if commit is None:
            status, body, headers = 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
        elif parts[0] == "api":
            files = [{"rfilename": "config.json"}]
            status, body = 200, json.dumps({"id": "acme/base", "sha": commit, "siblings": files}).encode()
        else:
            status, body = 200, CONTENTS[commit]
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    with running(server):
        yield address


@pytest.fixture
def silent_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_branch_a_tag_or_nothing_become_the_commit_they_stand_for(hub: str) -> None:
    assert pin_revision("acme/base", None) == Pinned(NEW)
    assert pin_revision("acme/base", "main") == Pinned(NEW)
    assert pin_revision("acme/base", "v1") == Pinned(OLD)
    with pytest.raises(ModelError, match=r"train\.revision is v9, and acme/base has no such branch, tag or commit"):
        pin_revision("acme/base", "v9")


def test_what_was_pinned_is_what_is_loaded_whatever_the_branch_says_later(hub: str) -> None:
    folder = resolve_model(TrainSpec(model="acme/base", revision=OLD).base)
    assert json.loads((Path(folder) / "config.json").read_text())["hidden_size"] == 8
    assert Path(folder).name == OLD


NAMES = [
    "config.json", "tokenizer.model", "README.md", "model-1.safetensors", "model-2.safetensors", "pytorch_model.bin",
    "consolidated.safetensors", "original/consolidated.00.pth", "onnx/model.safetensors", "flax_model.msgpack",
]  # fmt: skip


@pytest.mark.parametrize("names", [NAMES, [name for name in NAMES if not name.startswith("model")]])
def test_what_is_weighed_at_launch_is_what_a_machine_fetches(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own filter, given what `fetch_revision` gives it."""

    def pretend(model: str, *, revision: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        for name in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", pretend)
    fetch_revision("acme/base", OLD, weights=True)
    fetched = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert fetched == fetched_files(names)
    assert not [name for name in fetched if "consolidated" in name or "/" in name]
    assert [name for name in fetched if name.endswith((".safetensors", ".bin"))] == [
        name for name in NAMES if name.startswith("model" if "model-1.safetensors" in names else "pytorch")
    ]


def test_a_commit_is_taken_at_its_word_and_needs_no_hub(silent_hub: None) -> None:
    assert pin_revision("acme/base", OLD) == Pinned(OLD)


def test_without_a_hub_the_cache_says_which_commit_it_is(silent_hub: None, cache: Path) -> None:
    snapshot = cache / "models--acme--base" / "snapshots" / NEW
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(CONTENTS[NEW])
    (cache / "models--acme--base" / "refs").mkdir()
    (cache / "models--acme--base" / "refs" / "main").write_text(NEW)
    found = pin_revision("acme/base", None)
    assert found.revision == NEW
    assert found.words == f"The hub cannot be reached: acme/base is pinned to main as this cache has it, {NEW[:12]}."
    assert resolve_model(f"acme/base@{NEW}") == str(snapshot)
    with pytest.raises(ModelError, match=r"is not in this machine's Hugging Face cache, and the hub cannot be reached"):
        resolve_model(f"acme/base@{OLD}")


def test_without_hub_and_cache_nothing_is_pinned_and_that_is_said(silent_hub: None) -> None:
    found = pin_revision("acme/base", None)
    assert found.revision is None
    assert "is not pinned" in found.words


def test_what_has_no_revisions_is_refused_one(tmp_path: Path) -> None:
    assert pin_revision("tiny-llama", None) == Pinned(None)
    assert pin_revision(str(tmp_path), None) == Pinned(None)
    with pytest.raises(ModelError, match="has no revisions"):
        pin_revision("tiny-llama", "main")


def tokenizer_folder(folder: Path, **config: Any) -> str:
    Tokenizer(
        models.BPE(vocab={"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, merges=[], unk_token="<unk>")
    ).save(str(folder / "tokenizer.json"))  # fmt: skip
    body = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(body))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 4, "eos_token_id": 2}))
    return str(folder)


def test_the_renamed_class_of_early_llama_conversions_is_named(tmp_path: Path) -> None:
    model = tokenizer_folder(tmp_path, tokenizer_class="LLaMATokenizer", eos_token="", bos_token="", unk_token="")
    with pytest.raises(ModelError, match=r"names the class LLaMATokenizer, .* since 4\.28 it is LlamaTokenizer"):
        build_tokenizer(model, [])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"eos_token": ""}, r"eos_token in tokenizer_config\.json is the empty text"),
        ({"eos_token": {"content": "", "__type": "AddedToken"}}, "is the empty text"),
        ({"eos_token": "<s>"}, r"eos_token is '<s>' \(id 1\), the token that begins texts; '</s>' \(id 2\) ends them"),
        ({"eos_token": "<unk>"}, r"eos_token is '<unk>' \(id 0\), the token that unknown text in them becomes; '</s>'"),
    ],
)
def test_a_stop_token_that_never_stops_is_named(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build_tokenizer(tokenizer_folder(tmp_path, **config), [])


def test_an_end_token_that_the_base_model_lacks_is_refused_beside_frozen_embeddings(tmp_path: Path) -> None:
    """Its row would be the mean of the others, and the mean of all logits is never the highest."""
    model = tokenizer_folder(tmp_path, eos_token="<|end|>")
    words = r"ends answers with id 4, and its embeddings have 4 rows: .* or set lora\.train_embeddings: true"
    with pytest.raises(ModelError, match=words):
        build_job_tokenizer(TrainSpec(model=model, method="lora"), [])
    for fine in ({"method": "full"}, {"method": "lora", "lora": {"train_embeddings": True}}):
        files = build_job_tokenizer(TrainSpec.model_validate({"model": model, **fine}), [])
        assert load_tokenizer(files).eos_id == 4


def test_a_tokenizer_that_only_sentencepiece_reads_is_refused_with_a_way_round(tmp_path: Path) -> None:
    """transformers says that tiktoken is missing; with it, it would fail all the same."""
    model = tokenizer_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    assert load_tokenizer(build_tokenizer(model, [])).eos_id == 2  # beside a fast one it is not looked at
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(
        ModelError, match=r"as tokenizer\.model alone, which sentencepiece reads.* Write tokenizer\.json"
    ):
        build_tokenizer(model, [])


def test_an_empty_stop_token_in_the_special_tokens_map_is_named(tmp_path: Path) -> None:
    model = tokenizer_folder(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": ""}')
    with pytest.raises(ModelError, match=r"eos_token in special_tokens_map\.json is the empty text"):
        build_tokenizer(model, [])


def test_a_configuration_that_stops_elsewhere_is_said_and_training_goes_by_the_tokenizer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tokenizer_folder(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')
    files = build_tokenizer(model, [])
    assert "generation_config.json says that id [0, 1] ends an answer, its tokenizer says 2" in caplog.text
    assert load_tokenizer(files).eos_id == 2


def test_a_sound_tokenizer_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(build_tokenizer("tiny-llama", ["a text"]), tmp_path)
    build_tokenizer(str(tokenizer_folder(tmp_path)), [])
    assert caplog.text == ""


def test_quantised_weights_are_refused_at_launch_and_before_they_are_read(tmp_path: Path) -> None:
    """Their codes have the names and shapes of weights (fp8), and would be taken for numbers."""
    from alpaca_jobs.training.model import build_trial

    config = {
        "model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "quantization_config": {"quant_method": "fp8"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = r"whose weights are quantised \(fp8\); training needs them as plain numbers\. Name the model"
    with pytest.raises(ModelError, match=words):
        pin_revision(str(tmp_path), None)
    with pytest.raises(ModelError, match=words):
        build_trial(TrainSpec(model=str(tmp_path)))
