"""Can torch use this machine's GPU? Asked before ranks meet, since what comes later says it in riddles."""

from __future__ import annotations

import torch

from alpaca_jobs.errors import TrainingError


def refuse_without_cuda() -> None:
    """Return if torch can use a GPU here.

    Raises:
        TrainingError: it cannot. A machine made from another image may.
    """
    if torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} is built without CUDA, which is installed where no driver was found"
    else:
        why = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, which its driver does not support"
    raise TrainingError(
        f"This machine's GPU cannot be used: {why}. `nvidia-smi` shows the driver. Take an image with a newer one "
        "(compute.image), or another cloud (compute.infra)."
    )
