"""Engines on two ranks: one loss curve from all of them, the same bits after a resume and with evaluations between the
steps, and each other's checkpoints.

One start of two processes carries all trainings of this file (rank_worker.py); each test looks at its own. Largest
differences seen (2026-11-21, torch 2.13, gloo): float32 5e-7 of a loss over 5 steps, bfloat16 1.3e-3 between engines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints.keys import CommitRef, Layout, Stage
from checkpoints.reader import CommitReader
from checkpoints.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

LAYOUT = Layout((Stage("train", "checkpoints", "step-", 8),))
TINY = {
    "model": "tiny-llama", "global_batch_size": 7, "micro_batch_size": 2, "learning_rate": 2e-3, "max_length": 128,
    "dtype": "float32", "exactness": "bits", "max_steps": 5,
}  # fmt: skip
LORA = {"method": "lora", "learning_rate": 1e-2}
ENGINES: dict[str, dict[str, Any]] = {
    "fsdp": {"engine": "fsdp"},
    "hybrid": {"engine": "fsdp", "sharding": "hybrid"},
    "offload": {"engine": "fsdp", "cpu_offload": True},
    "all recomputed": {"engine": "fsdp", "gradient_checkpointing": True},
    "some recomputed": {"engine": "ddp", "gradient_checkpointing": "selective"},
    "ddp": {"engine": "ddp"},
    "zero2": {"engine": "deepspeed-zero2"},
    "zero3": {"engine": "deepspeed-zero3"},
    "zero2 offload": {"engine": "deepspeed-zero2", "cpu_offload": True},
    "zero3 offload": {"engine": "deepspeed-zero3", "cpu_offload": True},
    "fsdp bf16": {"engine": "fsdp", "dtype": "bfloat16"},
    "ddp bf16": {"engine": "ddp", "dtype": "bfloat16"},
    "zero2 bf16": {"engine": "deepspeed-zero2", "dtype": "bfloat16"},
    "lora fsdp": {"engine": "fsdp", **LORA},
    "lora ddp": {"engine": "ddp", **LORA},
    "lora zero3": {"engine": "deepspeed-zero3", **LORA},
    "lora fsdp bf16": {"engine": "fsdp", "dtype": "bfloat16", **LORA},
}
FLOAT32 = [
    "hybrid",
    "offload",
    "all recomputed",
    "some recomputed",
    "ddp",
    "zero2",
    "zero3",
    "zero2 offload",
    "zero3 offload",
]

EVALUATED = ["hybrid", "offload", "all recomputed", "ddp bf16", "zero2", "zero3", "lora fsdp", "lora zero3"]

Answers = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the stores of all trainings here."""
    return tmp_path_factory.mktemp("stores")


def _runs(stores: Path, tiny_opt: Path) -> list[dict[str, Any]]:
    def run(name: str, store: str, attempt: int, keys: dict[str, Any], **more: Any) -> dict[str, Any]:
        train = {**TINY, **keys}
        return {
            "name": name, "store": f"file://{stores / store}", "attempt": attempt, "train": train, "interval": 3,
            "num_rows": 35, "ranks_per_node": 1, **more,
        }  # fmt: skip

    runs = []
    for name, keys in ENGINES.items():
        runs.append(run(name, name, 1, keys))
        runs.append(run(f"{name}, stopped", f"{name}-2", 1, keys, stop_at=3))
        runs.append(run(f"{name}, resumed", f"{name}-2", 2, keys))
    evaluation = {"eval": {"file": "held-out.jsonl", "every_steps": 1}}
    runs += [
        run(f"{name}, evaluated", f"{name}-e", 1, {**ENGINES[name], **evaluation}, held_out=9) for name in EVALUATED
    ]
    for name in ("fsdp", "hybrid"):
        runs.append(run(f"{name}, each reduced", f"{name}-each", 1, ENGINES[name], held_bytes=0))
    opt = {"model": str(tiny_opt)}
    runs += [
        run(f"opt {name}", f"opt-{name}", 1, {**opt, **ENGINES[name]})
        for name in ("fsdp", "ddp", "zero2", "zero3", "zero3 offload", "lora fsdp", "lora ddp", "lora zero3")
    ]
    others = ["fsdp", "ddp", "zero3"]
    for first, second in [*zip(others, [*others[1:], others[0]], strict=True), ("lora ddp", "lora fsdp")]:
        runs.append(run(f"{first} before", f"{first}-{second}", 1, ENGINES[first], stop_at=3))
        runs.append(run(f"{second} after {first}", f"{first}-{second}", 2, ENGINES[second]))
    return runs


@pytest.fixture(scope="module")
def answers(stores: Path, tiny_opt: Path, train_on_two_ranks: Any) -> Answers:
    """What every training of this file said, by name; one answer per rank."""
    told: Answers = train_on_two_ranks(_runs(stores, tiny_opt), OMP_NUM_THREADS="1")
    return told


def _losses(answers: Answers, name: str) -> list[float]:
    told = answers[name][0]
    assert "error" not in told, told["text"]
    return [float.fromhex(loss) for loss in told["losses"]]


def _digests(stores: Path, store: str, attempt: int) -> list[str]:
    manifest = CommitReader.open(
        Store.open(f"file://{stores / store}"), LAYOUT, CommitRef("train", 5, attempt)
    ).manifest
    return [block.digest for entry in manifest.objects for block in entry.blocks]


@pytest.mark.parametrize("name", FLOAT32)
def test_every_engine_has_the_loss_curve_of_fsdp(name: str, answers: Answers) -> None:
    assert _losses(answers, name) == pytest.approx(_losses(answers, "fsdp"), abs=1e-5)
    norms = answers[name][0]["grad_norms"]
    assert norms == pytest.approx(answers["fsdp"][0]["grad_norms"], rel=1e-5)


@pytest.mark.parametrize("name", ["fsdp", "hybrid"])
def test_gradients_reduced_once_a_step_or_for_each_micro_batch_train_alike(name: str, answers: Answers) -> None:
    """Two micro batches a rank: the sums are the same, in another order."""
    each = answers[f"{name}, each reduced"][0]
    assert _losses(answers, f"{name}, each reduced") == pytest.approx(_losses(answers, name), abs=1e-5)
    assert each["grad_norms"] == pytest.approx(answers[name][0]["grad_norms"], rel=1e-5)


@pytest.mark.parametrize("name", ["ddp bf16", "zero2 bf16"])
def test_in_bfloat16_curves_agree_to_rounding(name: str, answers: Answers) -> None:
    assert _losses(answers, name) == pytest.approx(_losses(answers, "fsdp bf16"), abs=2e-2)
    assert _losses(answers, name) == pytest.approx(_losses(answers, "fsdp"), abs=5e-2)


@pytest.mark.parametrize("name", ENGINES)
def test_a_resume_on_the_same_ranks_has_the_same_bits(name: str, answers: Answers, stores: Path) -> None:
    whole, stopped, resumed = (answers[f"{name}{part}"][0] for part in ("", ", stopped", ", resumed"))
    assert (stopped["saved_step"], resumed["loaded"]) == (3, 3)
    assert stopped["losses"] + resumed["losses"] == whole["losses"]
    assert _digests(stores, f"{name}-2", 2) == _digests(stores, name, 1)


@pytest.mark.parametrize("name", EVALUATED)
def test_on_every_engine_evaluation_changes_no_bit(name: str, answers: Answers, stores: Path) -> None:
    plain, evaluated = answers[name][0], answers[f"{name}, evaluated"][0]
    assert "error" not in evaluated, evaluated["text"]
    assert evaluated["losses"] == plain["losses"]
    assert _digests(stores, f"{name}-e", 1) == _digests(stores, name, 1)
    assert [step for step, _ in evaluated["evaluations"]] == [1, 2, 3, 4, 5]
    losses, theirs = (
        [float.fromhex(loss) for _, loss in one["evaluations"]] for one in (evaluated, answers["zero2, evaluated"][0])
    )
    if "method" not in ENGINES[name]:
        assert losses == pytest.approx(theirs, abs=3e-2 if "dtype" in ENGINES[name] else 1e-5)


@pytest.mark.parametrize(
    ("first", "second"), [("fsdp", "ddp"), ("ddp", "zero3"), ("zero3", "fsdp"), ("lora ddp", "lora fsdp")]
)
def test_an_engine_goes_on_from_anothers_checkpoint(first: str, second: str, answers: Answers) -> None:
    after = _losses(answers, f"{second} after {first}")
    assert after == pytest.approx(_losses(answers, first)[3:], abs=1e-5)


@pytest.mark.parametrize("name", ["lora ddp", "lora zero3"])
def test_adapters_have_one_curve_on_all_engines_and_leave_the_base_alone(
    name: str, answers: Answers, stores: Path
) -> None:
    assert _losses(answers, name) == pytest.approx(_losses(answers, "lora fsdp"), abs=1e-5)
    assert _losses(answers, "lora fsdp")[-1] < _losses(answers, "lora fsdp")[0]
    reader = CommitReader.open(Store.open(f"file://{stores / name}"), LAYOUT, CommitRef("train", 5, 1))
    kept = json.loads(reader.read("state.json"))["tensors"]
    assert kept
    assert all("lora_" in tensor or tensor == "optimizer.steps" for tensor in kept)
    assert reader.manifest.meta["base"] == {"model": "tiny-llama", "weights": "made from seed 42"}


@pytest.mark.parametrize("name", ["fsdp", "zero2", "zero3", "zero3 offload"])
def test_a_base_model_is_the_same_on_every_engine_that_reads_it_in_parts(name: str, answers: Answers) -> None:
    assert _losses(answers, f"opt {name}") == pytest.approx(_losses(answers, "opt ddp"), abs=1e-5)


@pytest.mark.parametrize("name", ["lora fsdp", "lora zero3"])
def test_so_it_is_beside_adapters(name: str, answers: Answers) -> None:
    assert _losses(answers, f"opt {name}") == pytest.approx(_losses(answers, "opt lora ddp"), abs=1e-5)
