"""Several prompt templates in one training: each row is shown in one of them, drawn anew in every epoch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from alpaca_jobs.training.data import Piece, TokenizedRows
from alpaca_jobs.training.stored import StoredRows

_STREAM = 0x7E3A  # keeps these draws apart from the order of rows, which has the same seed


@dataclass(frozen=True)
class MixedRows:
    """The same rows in several templates.

    Which template a row has follows from (seed, epoch, row) alone: since a row is seen once in an epoch, that is one
    draw for each (step, row), whatever the world size, the micro batch or the attempt.
    """

    variants: tuple[TokenizedRows | StoredRows, ...]
    seed: int

    def __len__(self) -> int:
        return len(self.variants[0])

    @property
    def num_truncated(self) -> int:
        """Rows that are cut in at least one of the templates, counted in the one with most."""
        return max(rows.num_truncated for rows in self.variants)

    @property
    def num_without_target(self) -> int:
        """Rows without an answer, in the template with most."""
        return max(rows.num_without_target for rows in self.variants)

    @property
    def digest(self) -> str:
        """Of all variants in order; the draws follow from the seed, which is in the job."""
        return hashlib.sha256(" ".join(rows.digest for rows in self.variants).encode()).hexdigest()

    def of_epoch(self, epoch: int) -> MixedEpoch:
        """The rows of an epoch, each in the template drawn for it."""
        return _epoch(self, epoch)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class MixedEpoch:
    """The rows of one epoch."""

    def __init__(self, rows: MixedRows, epoch: int) -> None:
        bits = np.random.PCG64(np.random.SeedSequence([rows.seed, epoch, _STREAM]))
        self.template = np.random.Generator(bits).integers(len(rows.variants), size=len(rows))
        self._variants = rows.variants
        every = np.arange(len(rows))
        self.lengths = np.stack([variant.lengths for variant in rows.variants])[self.template, every]
        self.target_counts = np.stack([variant.target_counts for variant in rows.variants])[self.template, every]
        self.squared_lengths = self.lengths**2

    def pieces(self, row: int) -> list[Piece]:
        """The tokens of a row in its template."""
        return self._variants[int(self.template[row])].pieces(row)


@lru_cache(maxsize=2)
def _epoch(rows: MixedRows, epoch: int) -> MixedEpoch:
    return MixedEpoch(rows, epoch)
