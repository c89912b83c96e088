"""RAW seen as TUNED is: in its type, under its names, with as many rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alpaca_jobs.errors import ModelError
from alpaca_jobs.weights.record import Padding
from alpaca_jobs.weights.shards import spans
from alpaca_jobs.weights.sources import DTYPES, TensorInfo, WeightSource, read_config

CHUNK = 2**20
"""Elements worked on at a time: 4 MiB of float32, whatever the model's size. Four times as many took 368 MB
where every element needs a correction (2026-11-21)."""

_ROTARY = "rotary_emb.inv_freq"
_OUTPUT = "lm_head.weight"
_SHOWN = 3


class BaseTensors:
    """Reads RAW for the tensors of a tuned model or a difference.

    Three things may differ. Embeddings may have grown: the rows that RAW lacks are the mean of its rows (as Stanford
    Alpaca resizes them, in its diff and in its training) or zeros (as Vicuna's delta v0 does). An output embedding that
    is tied to the input's may be stored on one side alone. And transformers once stored LLaMA's rotary frequencies,
    which today's files leave out: they follow from config.json.

    Args:
        padding: None where nobody said; then grown rows are refused.

    Raises:
        ModelError: a tensor that RAW lacks, or another shape; all of them are looked at before the first byte is read.
    """

    def __init__(
        self, raw: WeightSource, wanted: Mapping[str, TensorInfo], *, padding: Padding | None, names: tuple[str, str]
    ) -> None:
        self._raw, self._wanted, self._padding = raw, wanted, padding
        self._config = read_config(raw)
        self._rows: dict[str, Tensor] = {}
        self.grown: tuple[str, ...] = ()
        self._check(*names)

    def read(self, name: str, start: int, count: int) -> Tensor:
        """Elements [start, start + count) of RAW's counterpart of a wanted tensor, in that one's type: (count,)."""
        dtype = DTYPES[self._wanted[name].dtype]
        source = self._source(name)
        if source is None:
            return self._frequencies(name)[start : start + count].to(dtype)
        held = self._raw.tensors[source].count
        there = min(max(held - start, 0), count)
        part = self._raw.read(source, start, there).to(dtype)
        if there == count:
            return part
        row = self._extra_row(source).to(dtype)
        columns = (torch.arange(count - there) + max(start, held) - held) % row.numel()
        return torch.cat([part, row[columns]])

    def _source(self, name: str) -> str | None:
        """RAW's name for a wanted tensor; None for what is computed.

        Raises:
            KeyError: there is none.
        """
        if name in self._raw.tensors:
            return name
        if name.endswith(_ROTARY) and self._head_size() is not None:
            return None
        if name == _OUTPUT and self._config.get("tie_word_embeddings"):
            for other in self._raw.tensors:
                if other.endswith(("embed_tokens.weight", "wte.weight")):
                    return other
        raise KeyError(name)

    def _check(self, raw_words: str, wanted_words: str) -> None:
        missing, shapes, grown = [], [], []
        for name, info in self._wanted.items():
            try:
                source = self._source(name)
            except KeyError:
                missing.append(name)
                continue
            found = info.shape if source is None else self._raw.tensors[source].shape
            if found == info.shape:
                continue
            if self._has_grown(found, info.shape):
                grown.append(name)
            else:
                shapes.append(f"{name} is {list(found)} there and {list(info.shape)} here")
        extra = [name for name in self._raw.tensors if name not in self._wanted and not self._may_lack(name)]
        problems = []
        if missing:
            problems.append(f"{raw_words} lacks {_some(missing)}")
        if extra:
            problems.append(f"{wanted_words} lacks {_some(extra)}")
        if shapes:
            problems.append(f"shapes differ: {_some(shapes, '; ')}")
        if problems:
            raise ModelError(
                f"{raw_words} is not the base of {wanted_words}: {'. '.join(problems)}. Name the base model that "
                f"{wanted_words} was trained from."
            )
        if grown and self._padding is None:
            raise ModelError(
                f"{grown[0]} has more rows than {raw_words}, and this difference does not say what they were taken "
                "against. Say it: --padding mean (Stanford Alpaca), or --padding zero (Vicuna v0)."
            )
        self.grown = tuple(grown)

    def _has_grown(self, old: tuple[int, ...], new: tuple[int, ...]) -> bool:
        """Whether only rows of a vocabulary were added."""
        vocabulary = self._config.get("vocab_size", old[0] if old else 0)
        return 1 <= len(old) <= 2 and len(old) == len(new) and old[1:] == new[1:] and vocabulary == old[0] < new[0]

    def _may_lack(self, name: str) -> bool:
        return name.endswith(_ROTARY) or (name == _OUTPUT and bool(self._config.get("tie_word_embeddings")))

    def _extra_row(self, source: str) -> Tensor:
        """One of the rows that RAW lacks: shape (columns,), float64."""
        if source not in self._rows:
            info = self._raw.tensors[source]
            columns = info.shape[1] if len(info.shape) == 2 else 1
            row = torch.zeros(columns, dtype=torch.float64)
            if self._padding == "mean":
                for start, count in spans(info.count, max(CHUNK // columns, 1) * columns):
                    row += self._raw.read(source, start, count).view(-1, columns).sum(dim=0, dtype=torch.float64)
                row /= info.shape[0]
            self._rows[source] = row
        return self._rows[source]

    def _head_size(self) -> int | None:
        sizes: list[Any] = [self._config.get(key) for key in ("hidden_size", "num_attention_heads")]
        return sizes[0] // sizes[1] if all(isinstance(size, int) and size for size in sizes) else None

    def _frequencies(self, name: str) -> Tensor:
        """theta ** (-2 i / head size), i from 0; float32. Source: RoFormer, arXiv:2104.09864, equation 15."""
        size = self._head_size()
        assert size is not None, name
        newer = self._config.get("rope_parameters")  # where transformers 5 writes it
        theta = float({**self._config, **(newer if isinstance(newer, dict) else {})}.get("rope_theta", 10000.0))
        return 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size))


def _some(names: list[str], joint: str = ", ") -> str:
    more = f"{joint}and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return joint.join(names[:_SHOWN]) + more
