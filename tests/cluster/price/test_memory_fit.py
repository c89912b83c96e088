"""Memory by engine, method and GPU, against figures worked out by hand; and that what is proposed instead does fit.

LLaMA-7B has 6.2757 GiB of parameters at a byte each (P); its adapters (rank 8 on q and v) are 4,194,304 parameters,
0.0039 GiB (A); a layer's matrices are 202,375,168 parameters, 0.1885 GiB (L), both embeddings 262,144,000, 0.2441 (E).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.known_models import KNOWN_MODELS, size_of
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.spec_io import parse_job
from alpaca_jobs.spec_train import TokenizerSpec
from alpaca_jobs.training.engines import fsdp
from alpaca_jobs.training.engines.choice import choose_engine
from alpaca_jobs.training.loss import GPU_CHUNK_ELEMENTS
from cluster.price import activations
from cluster.price.hardware import GPUS
from cluster.price.memory_advice import advice
from cluster.price.memory_check import model_of, words_added
from cluster.price.memory_fit import (
    HELD_SHARE,
    Machines,
    MemoryFit,
    engine_of,
    memory_fit,
    micro_batch_tokens,
    trained_parameters,
)

LLAMA = "huggyllama/llama-7b"
P, A, L, E = 6.2757, 0.0039, 0.1885, 0.2441
EMBEDDED = {"method": "lora", "lora": {"train_embeddings": True}}


def fit(gpus: str, *, nodes: int = 1, row_tokens: float | None = None, model: str = LLAMA, **train: Any) -> MemoryFit:
    name, _, count = gpus.partition(":")
    sized = size_of(model)
    assert sized is not None
    spec = TrainSpec.model_validate({"model": model, **train})
    found = memory_fit(spec, sized, Machines(name, int(count), nodes), row_tokens=row_tokens)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("gpus", "nodes", "train", "engine", "state", "gathered", "host"),
    [
        # 2 for computing, 4 of masters, 4 of gradients, 8 of moments.
        ("A100-80GB:1", 1, {}, "single", 18 * P, 0.0, 0.0),
        ("A100-80GB:1", 1, {"dtype": "float32"}, "single", 16 * P, 0.0, 0.0),
        # and 4 of gradients that are being added up over ranks.
        ("A100:8", 1, {"engine": "ddp"}, "ddp", 22 * P, 0.0, 0.0),
        ("A100:8", 1, {}, "fsdp", 16 * P / 8, 2 * (2 * L + E) + 6 * (L + E), 0.0),
        ("A100:8", 2, {}, "fsdp", 16 * P / 16, 2 * (2 * L + E) + 6 * (L + E), 0.0),
        ("A100:8", 2, {"sharding": "hybrid"}, "fsdp", 16 * P / 8, 2 * (2 * L + E) + 6 * (L + E), 0.0),
        ("A10G:4", 1, {"cpu_offload": True}, "fsdp", 0.0, 2 * (2 * L + E) + 6 * (L + E), 16 * P),
        ("A10G:4", 2, {"cpu_offload": True}, "fsdp", 0.0, 2 * (2 * L + E) + 6 * (L + E), 8 * P),
        # A bucket of 5e8 gradients in 2 + 4 bytes is 2.794 GiB; 1e9 parameters gathered in 2 bytes are 1.863.
        ("A100:8", 1, {"engine": "deepspeed-zero2"}, "deepspeed-zero2", 2 * P + 16 * P / 8, 2.794, 0.0),
        ("A100:8", 1, {"engine": "deepspeed-zero3"}, "deepspeed-zero3", 18 * P / 8, 2.794 + 1.863, 0.0),
        ("A10G:4", 1, {"engine": "deepspeed-zero2", "cpu_offload": True}, "deepspeed-zero2", 2 * P, 2.794, 16 * P),
        ("A10G:4", 1, {"engine": "deepspeed-zero3", "cpu_offload": True}, "deepspeed-zero3", 0.0, 4.657, 18 * P),
        # LoRA: the base in bfloat16, and everything of full training for the adapters alone.
        ("L4:1", 1, {"method": "lora"}, "single", 2 * P + 18 * A, 0.0, 0.0),
        ("L4:1", 1, {"method": "lora", "dtype": "float32"}, "single", 4 * P + 16 * A, 0.0, 0.0),
        ("L4:4", 1, {"method": "lora", "engine": "ddp"}, "ddp", 2 * P + 22 * A, 0.0, 0.0),
        ("L4:4", 1, {"method": "lora"}, "fsdp", (2 * P + 16 * A) / 4, 2 * (2 * L + E) + 4 * A, 0.0),
        # and for embeddings that are trained whole, which are no longer among the frozen.
        ("L4:1", 1, EMBEDDED, "single", 2 * P + 18 * A + 16 * E, 0.0, 0.0),
        ("L4:4", 1, EMBEDDED, "fsdp", (2 * P + 16 * A + 14 * E) / 4, 2 * (2 * L + E) + 6 * E + 4 * (A + E), 0.0),
        ("L4:4", 1, {"method": "lora", "engine": "deepspeed-zero3"}, "deepspeed-zero3", 0.5 * P + 4.5 * A, 2.81, 0.0),
    ],
)  # fmt: skip
def test_state_is_what_each_engine_keeps(
    gpus: str, nodes: int, train: dict[str, Any], engine: str, state: float, gathered: float, host: float
) -> None:
    found = fit(gpus, nodes=nodes, **train)
    kept = sum(gib for name, gib in found.parts_gib.items() if name not in ("gathered", "activations"))
    assert found.engine == engine
    assert kept == pytest.approx(state, rel=2e-3)
    assert found.parts_gib["gathered"] == pytest.approx(gathered, rel=2e-3)
    assert found.host_gib == pytest.approx(host, rel=2e-3)


@pytest.mark.parametrize(
    ("train", "kib_a_token"),
    [
        # bfloat16, h = q = kv = 4096, f = 11008. A layer: 8h + 2 (4h + 4h + 4f) = 182 KiB, 33 of them; 10h around.
        ({}, 33 * 182 + 40),
        ({"gradient_checkpointing": True}, 32 * 8 + 2 * 182 + 40),
        # 2 (3h + 4h + 2f) = 99 KiB.
        ({"gradient_checkpointing": "selective"}, 32 * 99 + 2 * 182 + 40),
        # 8h + 2 (4h + 3f) + 3 x 2h = 152.5 KiB.
        ({"method": "lora"}, 33 * 152.5 + 40),
        # float32: 8h + 4 (4h + 4h + 4f) = 332 KiB; 16h around.
        ({"dtype": "float32"}, 33 * 332 + 64),
    ],
)
def test_activations_are_so_many_kib_a_token(train: dict[str, Any], kib_a_token: float) -> None:
    """2048 tokens of the micro batch; beside them the loss: a chunk of all of them, the output embedding's gradient."""
    found = fit("A100-80GB:8", micro_batch_size=4, max_length=512, **train)
    each = 4 + (4 if "dtype" in train else 2)
    loss = each * 2048 * 32_000 / 2**30 + (0.0 if train.get("method") else each * E / 2)
    assert found.tokens == 2048
    assert found.parts_gib["activations"] - loss == pytest.approx(kib_a_token * 2048 / 2**20, rel=1e-3)


def test_the_loss_keeps_the_gradient_of_an_output_embedding_that_lora_trains() -> None:
    trained, frozen = (fit("L4:1", **train).parts_gib["activations"] for train in (EMBEDDED, {"method": "lora"}))
    assert trained - frozen == pytest.approx(6 * E / 2, rel=2e-3)


def test_words_that_a_tokenizer_adds_are_rows_of_both_embeddings(tmp_path: Path) -> None:
    vocabulary = {f"word{number}": number for number in range(20_000)}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary}}))
    job = parse_job(
        f"""
        name: zh
        store: file:///tmp/store
        data: {{from: rows.jsonl}}
        compute: {{workers: 1}}
        train: {{model: {LLAMA}, method: lora, tokenizer: {{extend: {tmp_path}}}}}
        """,
        "zh",
    )
    grown, plain = model_of(job, None), size_of(LLAMA)
    assert grown is not None
    assert plain is not None
    assert grown.num_parameters - plain.num_parameters == 2 * 20_000 * 4096
    assert trained_parameters(job.train, grown) == 4_194_304 + 2 * 52_000 * 4096
    elsewhere = job.train.model_copy(update={"tokenizer": TokenizerSpec(extend="s3://bucket/run")})
    assert words_added(elsewhere) == 0


def test_plain_cross_entropy_keeps_all_logits() -> None:
    chunked, plain = (fit("A100-80GB:8", cross_entropy=how).parts_gib["activations"] for how in ("chunked", "plain"))
    assert plain - chunked == pytest.approx(2048 * 32000 * (12 - 6) / 2**30)


@pytest.mark.parametrize(
    ("gpus", "train", "fits"),
    [
        ("A100:8", {"engine": "ddp", "micro_batch_size": 64, "max_length": 2048}, False),
        ("A100:8", {"engine": "ddp"}, False),
        ("A100:8", {}, True),
        ("A100:4", {"recipe": "vicuna", "micro_batch_size": 2}, True),  # FastChat's README: 7B on 4 x A100 (40 GB)
        ("A100-80GB:1", {"method": "lora"}, True),
        ("H100:1", {"method": "lora"}, True),
        ("L4:1", {"method": "lora", "gradient_checkpointing": True}, True),
        ("L4:1", {"method": "lora", "dtype": "float32"}, False),
        ("A10G:4", {}, False),
        ("A10G:4", {"cpu_offload": True, "gradient_checkpointing": True}, True),
        ("A100-80GB:1", {}, False),
        ("A100-80GB:8", {"model": "huggyllama/llama-65b", "gradient_checkpointing": True}, False),
        ("A100-80GB:8", {"model": "huggyllama/llama-65b", "method": "lora", "gradient_checkpointing": True}, True),
    ],
)
def test_what_is_known_to_fit_fits_and_what_cannot_does_not(gpus: str, train: dict[str, Any], fits: bool) -> None:
    assert fit(gpus, **train).fits is fits


def test_small_models_hold_whole_gradients_between_micro_batches() -> None:
    """TinyLlama-1.1B: 4.10 GiB of them, of 6 that an A100 has for it; offloaded, or of a 7B, there are none."""
    model = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    small, offloaded = (fit("A100:8", model=model, cpu_offload=away) for away in (False, True))
    assert small.parts_gib["gathered"] - offloaded.parts_gib["gathered"] == pytest.approx(4.098, abs=0.01)
    assert HELD_SHARE == fsdp.HELD_SHARE


def test_rows_that_are_counted_make_smaller_micro_batches() -> None:
    """Rows are spread by their tokens: none holds more than the mean and one longest row."""
    spec = TrainSpec(model=LLAMA, micro_batch_size=16, max_length=512)
    assert micro_batch_tokens(spec, None) == 16 * 512
    assert micro_batch_tokens(spec, 128.0) == 16 * 128 + 512
    assert micro_batch_tokens(spec, 511.0) == 16 * 512  # never more than all of them at their longest
    packed = TrainSpec(model=LLAMA, recipe="pretrain", max_length=512)
    assert micro_batch_tokens(packed, 128.0) == packed.micro_batch_size * 512


@pytest.mark.parametrize(
    ("gpus", "train"),
    [
        ("A100:8", {"engine": "ddp", "micro_batch_size": 64, "max_length": 2048}),
        ("L4:1", {"method": "lora", "micro_batch_size": 64}),
        ("A100-80GB:1", {}),
        ("A100-80GB:8", {"model": "huggyllama/llama-65b"}),
    ],
)
def test_every_change_that_is_proposed_does_fit(gpus: str, train: dict[str, Any]) -> None:
    assert not fit(gpus, **train).fits
    sized = size_of(train.get("model", LLAMA))
    assert sized is not None
    name, _, count = gpus.partition(":")
    ways = advice(TrainSpec.model_validate({"model": LLAMA, **train}), sized, Machines(name, int(count)))
    assert ways
    for way in ways:
        changes = dict(one.removeprefix("train.").split(": ") for one in way.split(" and "))
        read = {key: {"true": True}.get(value, value) for key, value in changes.items()}
        read |= {key: int(read[key]) for key in ("micro_batch_size",) if key in read}
        assert fit(gpus, **{**train, **read}).fits, way


def test_offload_is_not_proposed_where_the_machine_is_too_small() -> None:
    sized = size_of(LLAMA)
    assert sized is not None
    spec, machines = TrainSpec(model=LLAMA), Machines("A100-80GB", 1)
    assert "train.cpu_offload: true" in advice(spec, sized, machines, host_gib=200.0)
    assert "train.cpu_offload: true" not in advice(spec, sized, machines, host_gib=170.0)


def test_a_machine_holds_the_copy_that_saves_are_stored_from() -> None:
    """Masters and moments, 12 bytes of each trained parameter, over the machines."""
    whole, offloaded = fit("A100-80GB:8"), fit("A10G:4", cpu_offload=True)
    assert (whole.saved_gib, fit("A100-80GB:8", nodes=2).saved_gib) == pytest.approx((12 * P, 6 * P), rel=2e-3)
    assert fit("L4:1", **EMBEDDED).saved_gib == pytest.approx(12 * (A + E), rel=1e-2)
    assert (whole.fits_host(84.0), whole.fits_host(83.0)) == (True, False)
    assert (offloaded.fits_host(196.0), offloaded.fits_host(192.0)) == (True, False)


@pytest.mark.parametrize("engine", ["auto", "fsdp", "ddp", "deepspeed-zero2"])
@pytest.mark.parametrize("num_gpus", [1, 8])
@pytest.mark.parametrize("offload", [False, True])
def test_the_engine_is_the_one_that_training_takes(engine: str, num_gpus: int, offload: bool) -> None:
    spec = TrainSpec.model_validate({"model": LLAMA, "engine": engine, "cpu_offload": offload and engine != "ddp"})
    assert engine_of(spec, num_gpus) == choose_engine(spec, world_size=num_gpus)[0]


def test_the_loss_takes_chunks_of_the_size_that_training_takes() -> None:
    assert activations.CHUNK_ELEMENTS == GPU_CHUNK_ELEMENTS


def test_an_unknown_gpu_is_not_guessed() -> None:
    sized = size_of(LLAMA)
    assert sized is not None
    assert memory_fit(TrainSpec(model=LLAMA), sized, Machines("B9000", 8)) is None


@pytest.mark.parametrize("model", sorted(name for name, one in KNOWN_MODELS.items() if one.num_parameters < 9e9))
def test_adapters_of_every_model_up_to_9b_train_on_one_80_gib_gpu(model: str) -> None:
    assert "A100-80GB" in GPUS
    context = KNOWN_MODELS[model].context_length or 512
    assert fit("A100-80GB:1", model=model, method="lora", max_length=min(512, context)).fits
