"""A GPU that torch cannot use is named with the reason."""

from __future__ import annotations

import pytest
import torch

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.training.cuda_here import refuse_without_cuda


@pytest.mark.parametrize(
    ("built_for", "why"), [(None, "is built without CUDA"), ("13.0", r"CUDA 13\.0, which its driver does not support")]
)
def test_a_gpu_that_torch_cannot_use_is_refused_with_the_reason(
    built_for: str | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    with pytest.raises(TrainingError, match=rf"{why}.*compute\.image"):
        refuse_without_cuda()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    refuse_without_cuda()
