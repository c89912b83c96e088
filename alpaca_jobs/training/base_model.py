"""What is known of a base model without its weights: its list of files and what the small ones say. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from alpaca_jobs.config_shapes import size_by_config
from alpaca_jobs.known_models import SizedModel
from alpaca_jobs.training.revision import fetched_files

INDEXES: Final = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SMALL_FILES: Final = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "adapter_config.json")
"""What is read, beside the index of the weights."""
_ZIP: Final = b"PK"


@dataclass(frozen=True)
class BaseModel:
    """A base model as its files tell it.

    Attributes:
        name: as the job has it.
        sizes: bytes of every file; None where the list of files is not known (a cache holds what was asked for).
        texts: the small files that are there and were read.
        revision: the commit of the hub's that this is.
        is_closed: whether only accounts with leave get it: gated, or private.
        is_here: whether every machine of the job has the files already (a folder).
        stored: numbers in the weights by safetensors' name of their type, where somebody counted them.
        is_whole: whether the weights can only be read all at once; None where that was not looked at.
    """

    name: str
    sizes: Mapping[str, int] | None
    texts: Mapping[str, bytes]
    revision: str | None = None
    is_closed: bool = False
    is_here: bool = False
    stored: Mapping[str, int] = field(default_factory=dict)
    is_whole: bool | None = None

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json; empty where it is missing or broken."""
        return self.json("config.json")

    def json(self, name: str) -> Mapping[str, Any]:
        """A small file as an object; empty where it is not there or is none."""
        try:
            body = json.loads(self.texts.get(name, b"{}"))
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}

    @property
    def weight_files(self) -> list[str]:
        """The files that from_pretrained reads weights from: safetensors, or else .bin; none where none is known."""
        return weight_files(self.sizes or ())

    @property
    def size(self) -> SizedModel | None:
        """Parameters and shape; None where config.json does not tell."""
        counted = sum(self.stored.values()) or None
        size = size_by_config(self.config, stored=counted)
        return None if size is None else replace(size, is_whole=bool(self.is_whole))

    @property
    def fetched_bytes(self) -> int | None:
        """What each machine fetches before it trains; 0 where it is there already, None where that is not known."""
        if self.is_here:
            return 0
        sizes = self.sizes
        if sizes is None or not any(sizes[name] for name in self.weight_files):
            return None
        return sum(sizes[name] for name in fetched_files(sizes))

    def to_json(self) -> dict[str, Any]:
        """What there is to say about it, as plain values."""
        size = self.size
        return {
            "name": self.name,
            "revision": self.revision,
            "num_parameters": None if size is None else size.num_parameters,
            "active_parameters": None if size is None else size.active_parameters,
            "context_length": self.config.get("max_position_embeddings"),
            "fetched_bytes": self.fetched_bytes,
        }

    def __str__(self) -> str:
        size, fetched = self.size, self.fetched_bytes
        told = [] if size is None else [f"{_short(size.num_parameters)} parameters"]
        if size is not None and size.active_parameters != size.num_parameters:
            told[0] += f", {_short(size.active_parameters)} of them for each token"
        if isinstance(context := self.config.get("max_position_embeddings"), int):
            told.append(f"a context of {context:,} tokens")
        if fetched:
            told.append(f"{_short(fetched, 'G')}B for each machine to fetch")
        at = f" at {self.revision[:12]}" if self.revision else ""
        return f"{self.name}{at}: {', '.join(told) or 'its config.json does not tell its size'}"


def _short(count: float, thousand_millions: str = "B") -> str:
    return f"{count / 1e9:.3g} {thousand_millions}" if count >= 1e9 else f"{count / 1e6:.3g} M"


def weight_files(names: Any) -> list[str]:
    """Of a folder's files, those that from_pretrained reads weights from."""
    top = sorted(name for name in names if "/" not in name and not name.startswith(("consolidated", "adapter_")))
    tensors = [name for name in top if name.endswith(".safetensors")]
    return tensors or [name for name in top if name.startswith("pytorch_model") and name.endswith(".bin")]


def is_read_at_once(files: list[str], first_bytes: Callable[[str, int], bytes]) -> bool:
    """Whether weights can only be read all at once: pickled as PyTorch did before 1.6, when that was no zip file yet.

    Args:
        files: of `weight_files`.
        first_bytes: reads so many bytes of a file.
    """
    return bool(files) and files[0].endswith(".bin") and first_bytes(files[0], len(_ZIP)) != _ZIP
