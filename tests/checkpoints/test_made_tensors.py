"""Tensors that are made of others, as 8-bit optimizers keep their moments: saved as these, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from checkpoints.errors import StateMismatch
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.store import Store
from checkpoints.torch_bridge import Checkpointer
from checkpoints.torch_state import flatten_state


class Quantised(torch.Tensor):
    """Looks like float32 and is codes of 8 bits with a scale. Copied into a plain tensor it is dequantised, copied from
    one it is quantised anew, as torchao 0.18 does it (optim/subclass_8bit.py).
    """

    codes: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> Quantised:
        made: Quantised = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes, made.scale = codes, scale
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], meta: None, size: Any, stride: Any) -> Quantised:
        return Quantised(inner["codes"], inner["scale"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch's stub forgets that it is a class method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        target, *rest = args
        if func is torch.ops.aten.detach.default:
            return Quantised(target.codes, target.scale)
        if func is torch.ops.aten.view.default:
            return Quantised(target.codes.view(*rest), target.scale)
        if func is torch.ops.aten.copy_.default and isinstance(target, Quantised):
            target.scale.copy_(rest[0].abs().max())
            target.codes.copy_((rest[0] / target.scale * 127 + 128).round())
            return target
        if func is torch.ops.aten.copy_.default:
            source = rest[0]
            return target.copy_((source.codes.float() - 128) / 127 * source.scale)
        raise NotImplementedError(f"{func} is not needed here")


def test_a_tensor_made_of_others_comes_back_to_the_bit(memory_store: Store) -> None:
    moments = Quantised(torch.tensor([0, 1, 77, 200], dtype=torch.uint8), torch.tensor(0.3))
    made = Checkpointer(memory_store, TRAIN_ONLY, stage="train", attempt=1, fence=None)
    made.save(1, {"exp_avg": moments, "step": torch.tensor(3.0)}, meta={}, fingerprint="")
    made.wait()
    loaded = Quantised(torch.zeros(4, dtype=torch.uint8), torch.tensor(0.0))
    made.load(CommitRef("train", 1, 1), {"exp_avg": loaded, "step": torch.tensor(0.0)}, partial=False)
    made.close()
    assert torch.equal(loaded.codes, moments.codes)
    assert torch.equal(loaded.scale, moments.scale)


def test_two_entries_may_not_share_the_name_of_a_part() -> None:
    moments = Quantised(torch.zeros(4, dtype=torch.uint8), torch.tensor(0.0))
    with pytest.raises(StateMismatch, match=r"two entries of the state are both called 'w\.codes'"):
        flatten_state({"w": moments, "w.codes": torch.zeros(1)})


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """A process group in which only this rank is real."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def test_sharded_it_is_refused_before_anything_is_stored(two_ranks: None) -> None:
    moments = Quantised(torch.zeros(4, 4, dtype=torch.uint8), torch.tensor(0.0))
    mesh = init_device_mesh("cpu", (2,))
    sharded = DTensor.from_local(moments, mesh, [Shard(0)], run_check=False, shape=torch.Size([8, 4]), stride=(4, 1))
    with pytest.raises(StateMismatch, match="exp_avg is sharded, and each rank's part is a Quantised"):
        flatten_state({"exp_avg": sharded})
    plain = DTensor.from_local(torch.zeros(4, 4), mesh, [Shard(0)], run_check=False)
    assert list(flatten_state({"exp_avg": plain}).tensors) == ["exp_avg"]
