"""What a hub's list of files and small files tell of a base model, before a machine is paid for: refused in words."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

import huggingface_hub.constants
import pytest
from pretend_hub import COMMIT, LLAMA, Repository, pretend_hub, sound

from alpaca_jobs.errors import ModelError
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import job_from_dict
from alpaca_jobs.training.base_look import Look, look_at_base
from checkpoints.attempts import AttemptLog

PICTURES = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": LLAMA}


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Serves models on a hub of this test's own, which the library is told to use."""
    with ExitStack() as stack:

        def start(models: dict[str, Repository], hangs: Event | None = None) -> None:
            address = stack.enter_context(pretend_hub(models, hangs=hangs))
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
            template = address + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

        yield start


def job(model: str = "acme/base", **changes: Any) -> JobSpec:
    """A job on AWS; dotted keys as a__b."""
    body: dict[str, Any] = {
        "name": "look",
        "store": "s3://bucket/runs",
        "data": {"from": "s3://bucket/rows.jsonl"},
        "train": {"model": model},
        "compute": {"infra": ["aws"], "gpus": "A100-80GB:8"},
    }
    for key, value in changes.items():
        part, _, name = key.partition("__")
        if name:
            body[part][name] = value
        else:
            body[part] = value
    return job_from_dict(body)


def look(serve: Any, files: dict[str, bytes | int], spec: JobSpec | None = None, **facts: Any) -> Look:
    serve({"acme/base": Repository(files, **facts)})
    return look_at_base(spec or job())


def without(files: dict[str, bytes | int], *names: str, **more: bytes | int) -> dict[str, bytes | int]:
    return {name: body for name, body in files.items() if name not in names} | more


def test_a_sound_model_is_pinned_counted_and_weighed_in_one_look(serve: Any) -> None:
    found = look(serve, {**sound(), "consolidated.safetensors": 500_000, "onnx/model.safetensors": 70_000})
    assert found.base is not None
    assert found.words == ()
    assert found.base.revision == COMMIT
    size = found.base.size
    assert size is not None
    assert size.num_parameters == 2 * (4 * 64**2 + 3 * 64 * 160 + 2 * 64) + 64 + 2 * 64 * 1000
    small = sum(len(body) for body in sound().values() if isinstance(body, bytes))
    assert found.base.fetched_bytes == 500_100 + small, "what other programs read is not fetched"
    told = "0.223 M parameters, a context of 2,048 tokens, 0.5 MB for each machine to fetch"
    assert str(found.base) == f"acme/base at cccccccccccc: {told}"


FAULTS: list[tuple[dict[str, bytes | int], str]] = [
    (sound(quantization_config={"quant_method": "gptq"}), r"weights are quantised \(gptq\)"),
    ({**sound(), "quantize_config.json": b"{}"}, "weights are quantised"),
    (
        sound(model_type="t5", is_encoder_decoder=True, architectures=["T5ForConditionalGeneration"]),
        r"an encoder with a decoder \(T5ForConditionalGeneration\); training needs a decoder-only",
    ),
    (sound(model_type="roberta", architectures=["RobertaForMaskedLM"]), r"an encoder \(RobertaForMaskedLM\)"),
    (sound(architectures=["LlamaForSequenceClassification"]), r"made for another task \(LlamaForSequenceClassific"),
    (
        sound(model_type="internlm2", architectures=["InternLM2ForCausalLM"], auto_map={"AutoConfig": "x.Y"}),
        r"architecture \(InternLM2ForCausalLM\) is code that comes with the model",
    ),
    (sound(model_type="llama9"), "of model_type llama9, which transformers here does not know"),
    (sound(model_type="vit"), "of model_type vit, which transformers here has no class for language modelling"),
    ({**sound(), "config.json": json.dumps(PICTURES).encode()}, "a model of text and of something else"),
    (without(sound(), "model.safetensors", **{"model-q4.gguf": 9}), r"no weights that transformers reads, only GGUF"),
    (without(sound(), "model.safetensors"), r"no weights that transformers reads \(README\.md, config\.json"),
    (
        without(sound(), "config.json", **{"consolidated.00.pth": 9}),
        r"no config\.json, only weights in LLaMA's own layout \(\.pth\)",
    ),
    (
        without(sound(), "config.json", **{"adapter_config.json": b'{"base_model_name_or_path": "acme/one"}'}),
        r"holds adapters alone \(of acme/one\); a whole model is wanted",
    ),
    ({**sound(), "config.json": b"<html>"}, r"its config\.json is no JSON object"),
    (without(sound(), "tokenizer.json"), r"holds no tokenizer: tokenizer\.json or tokenizer\.model is wanted"),
    ({**sound(), "tokenizer_config.json": b'{"eos_token": ""}'}, "is the empty text"),
    (
        {**sound(), "model.safetensors.index.json": json.dumps(
            {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}).encode()},
        r"names 1 files that are not there \(model-2\.safetensors\)\. It is not complete",
    ),
    (sound(max_position_embeddings=256), r"max_length is 512, but acme/base was trained for 256 and no rope_scaling"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "words"), FAULTS)
def test_what_a_machine_could_not_train_is_refused(serve: Any, files: dict[str, bytes | int], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        look(serve, files)


@pytest.mark.parametrize(
    "files",
    [
        sound(text_config=LLAMA),  # beside the whole configuration
        without(sound(), "tokenizer.json", **{"sentencepiece.bpe.model": 9}),
        sound(rope_parameters={"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}),
        {},  # a mirror that lists no files
    ],
)
def test_what_a_machine_might_train_is_let_through(serve: Any, files: dict[str, bytes | int]) -> None:
    found = look(serve, files)
    assert found.base is not None
    assert (found.base.revision, found.words) == (COMMIT, ())


def test_a_hub_that_tells_no_sizes_is_not_taken_to_have_small_files(serve: Any) -> None:
    found = look(serve, {**sound(), "model.safetensors": 0}).base
    assert found is not None
    assert found.fetched_bytes is None


def test_codes_in_the_weights_are_refused_whatever_the_configuration_says(serve: Any) -> None:
    with pytest.raises(ModelError, match=r"quantised \(F8_E4M3\)"):
        look(serve, sound(), stored={"F8_E4M3": 900, "BF16": 100})


def test_what_a_command_of_ones_own_trains_is_looked_for_and_not_judged(serve: Any) -> None:
    spec = job(train={"model": "acme/base", "method": "command", "command": "python train.py"})
    found = look(serve, sound(model_type="t5"), spec)
    assert found.base is not None
    assert found.base.revision == COMMIT


def test_a_stretched_context_is_left_alone_and_one_stretched_too_little_is_not(serve: Any) -> None:
    files = sound(max_position_embeddings=256)
    assert look(serve, files, job(train__rope_scaling={"type": "linear", "factor": 2})).base is not None
    with pytest.raises(ModelError, match=r"factor 1\.5 makes that 384\. Set the factor to 2"):
        look(serve, files, job(train__rope_scaling={"type": "linear", "factor": 1.5}))


def test_a_model_without_the_chat_template_that_a_job_asks_for_is_refused(serve: Any) -> None:
    asked = job(train__template="chat")
    for files in (sound(), without(sound(), "tokenizer_config.json")):
        assert look(serve, files).base is not None
        with pytest.raises(ModelError, match=r"acme/base: train\.template is chat, but .* has no chat template"):
            look(serve, files, asked)
    named = {"tokenizer_config.json": b'{"eos_token": "</s>", "chat_template": "{{ messages }}"}'}
    for there in (named, {"chat_template.jinja": b"{{ messages }}"}):
        assert look(serve, {**sound(), **there}, asked).words == ()


def test_adapters_for_layers_that_the_model_lacks_are_refused_or_warned_of(serve: Any) -> None:
    files = sound(model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"])
    with pytest.raises(ModelError, match=r"q_proj, v_proj, but acme/base \(gpt_neox\) has no layers of those names"):
        look(serve, files, job(train__method="lora"))
    some = job(train__method="lora", train__lora={"target_modules": ["query_key_value", "dence"]})
    found = look(serve, files, some)
    assert "has dence, but acme/base has no layers of that name" in found.words[0]
    assert "called query_key_value, dense, dense_h_to_4h, dense_4h_to_h." in found.words[0]


def test_a_gated_model_is_refused_by_who_asks(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"gated": "manual", "token": "hf_good"}
    with pytest.raises(ModelError, match=r"people who accepted its terms, and nobody is signed in here\. Accept them"):
        look(serve, sound(), **facts)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(ModelError, match=r"and the account that is signed in here has not\. Accept them"):
        look(serve, sound(), **facts)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    with pytest.raises(ModelError, match=r"run's machines would ask without a token\. Add HF_TOKEN to the job's sec"):
        look(serve, sound(), **facts)
    assert look(serve, sound(), job(secrets=["HF_TOKEN"]), **facts).base is not None
    here = job(compute={"workers": 1}, store="file://./runs")
    with pytest.raises(ModelError, match="would ask without a token"):  # a local node inherits no secret variable
        look(serve, sound(), here, **facts)


def test_a_login_on_this_machine_is_enough_for_a_local_run(serve: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "token").write_text("hf_good")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    here = job(compute={"workers": 1}, store="file://./runs")
    assert look(serve, sound(), here, is_private=True, token="hf_good").base is not None
    with pytest.raises(ModelError, match="would ask without a token"):
        look(serve, sound(), is_private=True, token="hf_good")


def test_a_name_that_is_wrong_or_private_and_a_token_that_is_refused(serve: Any, monkeypatch: Any) -> None:
    serve({"acme/hidden": Repository(sound(), is_private=True, token="x"), "acme/shut": Repository(status=403)})
    with pytest.raises(ModelError, match=r"no such model on the Hugging Face hub \(did you mean Qwen/Qwen2\.5-7B\?\)"):
        look_at_base(job("Qwen/Qwen2.5-7b-base"))
    with pytest.raises(ModelError, match="or it is private and nobody is signed in here"):
        look_at_base(job("acme/hidden"))
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(ModelError, match=r"does not hand it out \(403\): the account that is signed in here has not"):
        look_at_base(job("acme/shut"))


@pytest.mark.parametrize(("head", "is_whole"), [(b"PK\x03\x04", False), (b"\x80\x02\x8a\n", True)])
def test_of_pickled_weights_it_is_known_whether_they_can_be_read_in_parts(
    serve: Any, head: bytes, is_whole: bool
) -> None:
    found = look(serve, without(sound(), "model.safetensors", **{"pytorch_model.bin": head + b"\0" * 10_000}))
    assert found.base is not None
    assert found.base.is_whole is is_whole
    assert found.base.fetched_bytes is not None
    assert found.base.fetched_bytes > 10_000
    assert [("pickled as PyTorch did before 1.6" in words) for words in found.words] == [True] * is_whole


def test_a_hub_that_does_not_answer_is_given_up_soon_and_said(serve: Any) -> None:
    serve({}, Event())
    began = time.monotonic()
    found = look_at_base(job(), limit_s=0.5)
    assert time.monotonic() - began < 5
    assert found.base is None
    assert found.words == (
        "acme/base was not looked at: the hub cannot be reached from here. Whether it can be trained is known on the "
        "machine only.",
    )


@pytest.mark.parametrize(("status", "words"), [(503, "503"), (200, "is not the hub")])
def test_a_hub_that_fails_is_quoted_and_nothing_is_refused(serve: Any, status: int, words: str) -> None:
    serve({"acme/base": Repository(status=status)})
    found = look_at_base(job())
    assert found.base is None
    assert words in found.words[0]


def test_without_a_hub_the_cache_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--acme--base" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text(json.dumps(LLAMA))
    found = look_at_base(job())
    assert found.base is not None
    assert (found.base.revision, found.base.fetched_bytes) == (COMMIT, None)
    assert "looked at as this machine's cache has it, cccccccccccc: the hub cannot be reached" in found.words[0]
    (snapshot / "config.json").write_text(json.dumps({**LLAMA, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ModelError, match=r"quantised \(awq\)"):
        look_at_base(job())


def test_a_folder_is_judged_by_the_same_rules(tmp_path: Path) -> None:
    spec = job(str(tmp_path), compute={"workers": 1}, store="file://./runs")
    for name, body in sound().items():
        (tmp_path / name).write_bytes(body if isinstance(body, bytes) else bytes(body))
    found = look_at_base(spec).base
    assert found is not None
    assert found.fetched_bytes == 0
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights that transformers reads"):
        look_at_base(spec)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert "before 1.6" in look_at_base(spec).words[0]
    assert look_at_base(job("/not/here")).words == (
        "What /not/here holds was not looked at: it is not on this machine.",
    )


def test_a_run_s_model_is_judged_by_the_same_rules(tmp_path: Path) -> None:
    uri = exported(tmp_path / "run", sound(max_position_embeddings=256))
    with pytest.raises(ModelError, match=r"was trained for 256 and no rope_scaling"):
        look_at_base(job(uri))
    found = look_at_base(job(uri, train__max_length=256)).base
    assert found is not None
    assert found.fetched_bytes is not None
    assert found.fetched_bytes > 500_000


def exported(folder: Path, files: dict[str, bytes | int]) -> str:
    """A run that has exported these files; its URI."""
    from alpaca_jobs.run_layout import LAYOUT
    from checkpoints.keys import CommitRef
    from checkpoints.store import Store
    from checkpoints.writer import CommitWriter

    store = Store.open(f"file://{folder}")
    log = AttemptLog(store, LAYOUT)
    log.claim(1, {})
    log.put_base(1, None)
    writer = CommitWriter(store, LAYOUT, CommitRef("export", 0, 1))
    for name, body in files.items():
        writer.put(name, body if isinstance(body, bytes) else bytes(body))
    writer.publish(meta={})
    return store.uri


def test_nothing_is_asked_about_a_model_made_from_scratch() -> None:
    assert look_at_base(job("tiny-llama")) == Look()
