"""A machine that lacks the GPUs it was bought for says so."""

from __future__ import annotations

import shutil

import pytest

from cluster.errors import NodeLost
from cluster.node.gpus import check_gpus


def test_a_machine_with_the_gpus_it_was_bought_for_is_taken() -> None:
    check_gpus(None)
    check_gpus("A100-80GB:2", list_gpus=lambda: ["NVIDIA A100-SXM4-80GB"] * 2)


def test_missing_gpus_are_named_and_another_machine_may_help() -> None:
    with pytest.raises(
        NodeLost, match=r"bought with 8 x A100-80GB, but its driver shows 1 \(NVIDIA A100-SXM4-80GB\)"
    ) as exc:
        check_gpus("A100-80GB:8", list_gpus=lambda: ["NVIDIA A100-SXM4-80GB"])
    assert exc.value.retryable


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a driver")
def test_a_machine_without_a_driver_is_refused_in_words() -> None:
    with pytest.raises(NodeLost, match="no nvidia-smi, so no driver"):
        check_gpus("L4:1")
