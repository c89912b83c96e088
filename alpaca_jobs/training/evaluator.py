"""The loss of held-out rows, computed with the model that is being trained.

It changes nothing: no gradient, no dropout, no generator of random numbers, and every forward pass of training seeds
its own (exact.py). So a run with evaluation trains to the same bits as one without.
"""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from alpaca_jobs.training.batching import split_over_ranks
from alpaca_jobs.training.collate import Layout, collate, lay_out, target_loss
from alpaca_jobs.training.data import TrainingData
from alpaca_jobs.training.engines import Engine
from alpaca_jobs.training.loss import LossHead


class Evaluator:
    """Computes the loss of held-out rows with the model as it is. Every rank has one and calls `run` together.

    Args:
        micro_batch_size: most rows of one forward pass.
    """

    def __init__(
        self,
        data: TrainingData,
        engine: Engine,
        *,
        layout: Layout,
        loss_head: LossHead | None,
        pad_id: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        self._rows = data.of_epoch(0)
        self._engine, self._layout, self._head, self._pad_id = engine, layout, loss_head, pad_id
        self._device = device
        self.num_rows = len(self._rows.lengths)
        self.target_tokens = int(self._rows.target_counts.sum())
        ranks = split_over_ranks(
            range(self.num_rows), self._rows.lengths, micro_batch_size=micro_batch_size, world_size=world_size
        )
        self._micros = ranks[rank]

    def run(self) -> tuple[float, float]:
        """The mean loss over all target tokens, the same on every rank, and the seconds it took. Collective."""
        begin = time.perf_counter()
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        with self._engine.evaluating():
            for micro in self._micros:
                inputs = lay_out(
                    collate(self._rows, micro), layout=self._layout, pad_id=self._pad_id,
                    mask_dtype=self._engine.mask_dtype,
                )  # fmt: skip
                total += target_loss(self._engine.model, inputs.to(self._device), head=self._head).double()
        dist.all_reduce(total)
        return float(total) / max(1, self.target_tokens), time.perf_counter() - begin
