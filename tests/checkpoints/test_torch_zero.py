"""FlatShard's boxes, and DeepSpeed's ZeRO through them: saved on two ranks, going on at any world size and stage."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.errors import StateMismatch
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.store import Store
from checkpoints.torch_bridge import Checkpointer
from checkpoints.torch_flat import FlatShard, flat_boxes
from checkpoints.torch_state import flatten_state
from checkpoints.torch_zero import _make_moments, zero_state

RunRanks = Callable[..., list[tuple[str, str]]]


@given(st.lists(st.integers(1, 5), max_size=4), st.data())
def test_the_boxes_are_the_run_in_order_and_few(size: list[int], data: st.DataObject) -> None:
    numel = math.prod(size)
    start = data.draw(st.integers(0, numel))
    end = data.draw(st.integers(start, numel))
    whole, seen = torch.arange(numel).view(size), []
    boxes = list(flat_boxes(size, start, end))
    for offsets, sizes in boxes:
        box = whole
        for dimension, (offset, length) in enumerate(zip(offsets, sizes, strict=True)):
            box = box.narrow(dimension, offset, length)
        seen += box.reshape(-1).tolist()
    assert seen == list(range(start, end))
    assert len(boxes) <= max(1, 2 * len(size) - 1)


def test_a_flat_shard_is_saved_as_a_part_of_the_tensor_and_loaded_into_any_other_cut(memory_store: Store) -> None:
    made = Checkpointer(memory_store, TRAIN_ONLY, stage="train", attempt=1, fence=None)
    whole = torch.arange(5 * 3 * 2, dtype=torch.float32).view(5, 3, 2)
    made.save(1, {"w": FlatShard(whole.reshape(-1).clone(), size=whole.shape, start=0)}, meta={}, fingerprint="")
    made.wait()
    plain = torch.zeros(5, 3, 2)
    made.load(CommitRef("train", 1, 1), {"w": plain})
    assert torch.equal(plain, whole)
    piece = FlatShard(torch.zeros(16), size=(5, 3, 2), start=9)
    made.load(CommitRef("train", 1, 1), {"w": piece})
    assert torch.equal(piece.local, torch.arange(9.0, 25.0))
    made.close()


def test_a_moved_cut_is_another_structure() -> None:
    def structure(start: int) -> Any:
        return flatten_state({"w": FlatShard(torch.zeros(4), size=(9,), start=start)}).structure()

    assert structure(0) == structure(0)
    assert structure(0) != structure(1)


def test_what_is_no_run_of_elements_is_refused_and_nothing_can_be_computed() -> None:
    with pytest.raises(ValueError, match=r"elements 7 to 11 of one of size \(3, 3\), which has 9"):
        FlatShard(torch.zeros(4), size=(3, 3), start=7)
    shard = FlatShard(torch.zeros(4), size=(3, 3), start=1)
    assert repr(shard) == "FlatShard([1, 5) of (3, 3), torch.float32)"
    with pytest.raises(TypeError, match=r"use `\.local`"):
        torch.sum(shard)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"optimizer": SimpleNamespace()}, "partitions nothing. Please set zero_optimization.stage"),
        ({"has_moe_layers": True}, "mixture-of-experts"),
        ({"micro_steps": 7}, "3 micro batches of a step are in it. Please save after engine.step()"),
        ({"optimizer.optimizer": torch.optim.SGD([torch.zeros(1)])}, "its optimizer is SGD. Please use one of Adam"),
        ({"optimizer.swap_optimizer": True}, "its state lies on NVMe. Please offload to the CPU"),
    ],
)
def test_an_engine_whose_state_is_not_in_reach_is_refused_in_words(changed: dict[str, Any], words: str) -> None:
    adam = torch.optim.AdamW([torch.zeros(1)])
    zero = SimpleNamespace(
        fp32_partitioned_groups_flat=[], swap_optimizer=False, params_in_nvme_and_cpu=False, optimizer=adam
    )
    engine = SimpleNamespace(optimizer=zero, has_moe_layers=False, micro_steps=8, gradient_accumulation_steps=lambda: 4)
    for name, value in changed.items():
        owner, _, attribute = name.rpartition(".")
        setattr(zero if owner else engine, attribute, value)
    with pytest.raises(StateMismatch, match=words):
        zero_state(engine)


@pytest.mark.parametrize(("how", "place"), [({"fused": True}, "meta"), ({"capturable": True}, "meta"), ({}, "cpu")])
def test_steps_are_made_where_torchs_adam_reads_them(how: dict[str, bool], place: str) -> None:
    """The meta device stands for a GPU, where the first fused update refuses steps that lie on the CPU."""
    flat = torch.zeros(4, device="meta")
    adam = torch.optim.AdamW([flat], **how)  # type: ignore[arg-type]
    _make_moments(adam, flat)
    kept = adam.state[flat]
    assert {name: tensor.device.type for name, tensor in kept.items()} == {
        "step": place, "exp_avg": "meta", "exp_avg_sq": "meta"
    }  # fmt: skip


def _play(starts: dict[int, list[dict[str, Any]]], tmp_path: Path, run_ranks: RunRanks) -> list[list[dict[str, Any]]]:
    """Start DeepSpeed once for each number of ranks, in this order, with its jobs; what rank 0 said of each."""
    program = Path(__file__).parent / "programs" / "zero.py"
    told = json.dumps(
        [{"world": world, "meet": f"file://{tmp_path}/meet-{world}", "jobs": jobs} for world, jobs in starts.items()]
    )
    outputs = run_ranks([[sys.executable, str(program), str(rank), told] for rank in range(max(starts))], timeout=280)
    (line,) = (line for line in outputs[0][0].splitlines() if line.startswith("ANSWER "))
    answers: list[list[dict[str, Any]]] = json.loads(line.removeprefix("ANSWER "))
    return answers


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_zero_saved_on_two_ranks_goes_on_at_any_world_size_stage_and_in_one_process(
    tmp_path: Path, run_ranks: RunRanks
) -> None:
    """One start of DeepSpeed for each world size, in processes that have imported it once."""

    def job(name: str, stage: int, source: str | None, first: int, last: int, dtype: str = "fp32") -> dict[str, Any]:
        origin = None if source is None else [str(tmp_path / source), 3]
        return {
            "uri": str(tmp_path / name), "stage": stage, "from": origin, "steps": [first, last], "dtype": dtype
        }  # fmt: skip

    on_two = [
        job("whole-2", 2, None, 1, 5),
        job("saved-2", 2, None, 1, 3),
        job("on-2", 2, "saved-2", 4, 5),
        job("saved-3", 3, None, 1, 3),
        job("on-3", 3, "saved-3", 4, 5),
        job("half", 2, None, 1, 3, "bf16"),
        job("half-on", 2, "half", 4, 5, "bf16"),
        job("half-whole", 2, None, 1, 5, "bf16"),
    ]
    elsewhere = {
        world: [job(f"saved-3-on-{world}", 2, "saved-3", 4, 5), *others]
        for world, others in ((1, []), (3, [job("saved-2-on-3", 3, "saved-2", 4, 5)]), (4, []))
    }  # to the other stage, once, is enough
    two, *told = _play({2: on_two, **elsewhere}, tmp_path, run_ranks)
    whole, saved_2, on_2, saved_3, on_3, half, half_on, half_whole = two
    assert on_2["loaded"] == saved_2["trained"]
    assert on_2["trained"] == whole["trained"], "the same bits as if nothing had happened"
    assert on_3["loaded"] == saved_3["trained"]
    assert half_on["loaded"] == half["trained"]
    assert half_on["trained"] == half_whole["trained"]
    assert half_on["global_steps"] == 3
    for world, answers in zip(elsewhere, told, strict=True):
        for answer, saved in zip(answers, (saved_3, saved_2), strict=False):
            assert answer["loaded"] == saved["trained"], f"on {world} ranks"
            assert answer["global_steps"] == 3
            assert len(answer["losses"]) == 2
    assert [len(answers) for answers in told] == [1, 2, 1]
    _check_one_process(tmp_path / "saved-3", saved_3["trained"])


def _check_one_process(folder: Path, trained: dict[str, str]) -> None:
    """Without DeepSpeed, into plain tensors."""
    model = {
        "0.weight": torch.zeros(13, 7),
        "0.bias": torch.zeros(13),
        "2.weight": torch.zeros(11, 13),
        "1.seen": torch.zeros(3),
    }
    made = Checkpointer(Store.open(str(folder)), TRAIN_ONLY, stage="train", attempt=1, fence=None)
    made.load(CommitRef("train", 3, 1), {"model": model})
    made.close()

    def digest(name: str) -> str:
        return hashlib.sha256(model[name].numpy().tobytes()).hexdigest()[:16]

    assert digest("0.weight") == trained["0.weight"]
    assert digest("0.bias") == trained["0.bias"]
    assert digest("2.weight") == trained["2.weight as computed with"], "frozen, in pieces, whole again"
    assert digest("1.seen") == trained["seen"]
