"""The generators that training uses, as tensors: Python's, NumPy's, torch's on the CPU and on this rank's GPU.

    random_state()          -> {"python": (625,) int64, "python_rest": (3,) float64, ...}
    set_random_state(state)

Tensors only, because of plain values a checkpoint keeps rank 0's, and every rank's generators stand elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch


def random_state() -> dict[str, torch.Tensor]:
    """Where this process's generators stand.

    Returns:
        python: (625,) int64, `python_rest`: (3,) float64: the state's version, whether a Gaussian is kept, and that.
        numpy: (624,) int64, `numpy_rest`: (3,) float64: position, whether a Gaussian is kept, and that.
        torch: bytes, uint8; cuda: bytes, uint8, where there is a GPU.
    """
    import numpy as np

    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    _, keys, position, has_gauss, cached = legacy
    state = {
        "python": torch.tensor(numbers, dtype=torch.int64),
        "python_rest": torch.tensor([version, gauss is not None, gauss or 0.0], dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype("int64")),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """Let this process's generators go on from `state`."""
    import numpy as np

    version, has_gauss, gauss = state["python_rest"].tolist()
    random.setstate((int(version), tuple(state["python"].tolist()), gauss if has_gauss else None))
    position, has_cached, cached = state["numpy_rest"].tolist()
    np.random.set_state(("MT19937", state["numpy"].numpy().astype("uint32"), int(position), int(has_cached), cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
