"""How transformers stores a model's tensors: which stored ones make which of the model's, and back, a group at a time.

Most tensors lie in a model's files as the model has them. Some models' do not: Mixtral's files have a matrix for each
expert where the model has one for all, GPT-2's lack a prefix, GPT-NeoX's head has another name. from_pretrained and
save_pretrained convert them by tables of renamings and operations (stack, concatenate, split, transpose). The same
tables are applied here, but to one group of tensors that belong together, so that a whole model is in memory nowhere.

Source: transformers 5.17, conversion_mapping.get_model_conversion_mapping, and core_model_loading's
convert_and_load_state_dict_in_model (which names go together when loading) and revert_weight_conversion (when saving).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

logger = logging.getLogger(__name__)

_OTHER_TABLES = (ImportError, AttributeError, TypeError)
"""What another version's tables would raise: they are no public interface."""
_MOVES = {"Chunk", "Concatenate", "Interleave", "MergeModulelist", "PermuteForRope", "SplitModulelist", "Transpose"}
"""Operations that put numbers elsewhere and change none."""
_BESIDE_ROWS = {"Chunk", "Concatenate", "Interleave"}


@dataclass(frozen=True)
class _Named:
    """What operations ask of the model that is converted: its configuration and its tensors' shapes."""

    config: Any
    tensors: Mapping[str, Tensor]

    def get_parameter(self, name: str) -> Tensor:
        """A tensor without memory."""
        return self.tensors[name]


@dataclass(frozen=True)
class Group:
    """Tensors that are converted together.

    Attributes:
        made: the first result's name.
        inputs: the pattern that a name matched -> the names, in the order they are put together.
    """

    made: str
    inputs: Mapping[str, tuple[str, ...]]
    _transform: Any
    _model: _Named

    @property
    def names(self) -> tuple[str, ...]:
        """Of all inputs."""
        return tuple(name for names in self.inputs.values() for name in names)

    @property
    def is_name_only(self) -> bool:
        """Whether the only input is the only result, perhaps under another name."""
        return self._transform is None

    @property
    def only_moves(self) -> bool:
        """Whether the results are the inputs' own numbers, in whichever type they are."""
        return self._transform is None or all(type(one).__name__ in _MOVES for one in self._transform.operations)

    @property
    def is_a_row_each(self) -> bool:
        """Whether row n of every result comes of the n-th input of each pattern alone, as with experts."""
        if self._transform is None:
            return False
        first, *others = self._transform.operations
        return (
            type(first).__name__ == "MergeModulelist"
            and first.dim == 0
            and all(type(one).__name__ in _BESIDE_ROWS and one.dim > 0 for one in others)
        )

    def convert(self, read: Callable[[str], Tensor], *, rows: slice = slice(None)) -> dict[str, Tensor]:
        """The results by name.

        Args:
            read: gives an input.
            rows: which rows of the results are wanted, of a group that `is_a_row_each`.
        """
        if self._transform is None:
            return {self.made: read(self.names[0])}
        transform = deepcopy(self._transform)
        for pattern, names in self.inputs.items():
            for name in names[rows]:
                transform.add_tensor(self.made, name, pattern, partial(read, name))
        made = transform.convert(self.made, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def groups_to_load(model: Any, stored: Iterable[str]) -> list[Group]:
    """What a model's files make of a model's tensors; names that the model has no place for are left out.

    Args:
        model: of transformers; no memory is needed.
        stored: the names in the files.
    """
    named, names = _named(model), list(stored)
    try:
        return _by_tables_to_load(model, names, named)
    except _OTHER_TABLES as exc:
        _tell_other_tables(exc)
        return [_as_it_is(name, named) for name in sorted(names) if name in named.tensors]


def groups_to_save(model: Any, names: Iterable[str]) -> list[Group]:
    """What a model's tensors make of its files, for a model that was not made by from_pretrained."""
    named, names = _named(model), list(names)
    try:
        return _by_tables_to_save(model, names, named)
    except _OTHER_TABLES as exc:
        _tell_other_tables(exc)
        return [_as_it_is(name, named) for name in sorted(names)]  # from_pretrained takes a model's own names as well


def _by_tables_to_load(model: Any, stored: Iterable[str], named: _Named) -> list[Group]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    have, prefix = dict(named.tensors), model.base_model_prefix
    found = _Grouping(get_model_conversion_mapping(model), named)
    for name in sorted(stored, key=dot_natural_key):
        made, pattern = rename_source_key(name, found.renamings, found.converters, prefix, have)
        if made not in have and name in have:
            made, pattern = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=have)
        if made in have:
            found.add(name, made, pattern)
    return found.groups()


def _by_tables_to_save(model: Any, names: Iterable[str], named: _Named) -> list[Group]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange, dot_natural_key, rename_source_key

    loading = [
        one for one in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(one, PrefixChange)
    ]
    found = _Grouping([one.reverse_transform() for one in reversed(loading)], named)
    for name in sorted(names, key=dot_natural_key):
        found.add(name, *rename_source_key(name, found.renamings, found.converters, reverse=True))
    return found.groups()


class _Grouping:
    """Names put together as they come; transformers' tables say which."""

    def __init__(self, transforms: Iterable[Any], model: _Named) -> None:
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        transforms = list(transforms)
        self.renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        self.converters = [one for one in transforms if isinstance(one, WeightConverter)]
        self._by_pattern = {pattern: one for one in self.converters for pattern in one.source_patterns}
        self._model = model
        self._found: dict[str, tuple[Any, dict[str, list[str]]]] = {}

    def add(self, name: str, made: str, pattern: str | None) -> None:
        transform = None if pattern is None else self._by_pattern[pattern]
        _, inputs = self._found.setdefault(made, (transform, {}))
        inputs.setdefault(pattern or "", []).append(name)

    def groups(self) -> list[Group]:
        return [
            Group(made, {pattern: tuple(names) for pattern, names in inputs.items()}, transform, self._model)
            for made, (transform, inputs) in self._found.items()
        ]


def _named(model: Any) -> _Named:
    return _Named(model.config, {name: tensor.to("meta") for name, tensor in model.state_dict().items()})


def _as_it_is(name: str, named: _Named) -> Group:
    return Group(name, {"": (name,)}, None, named)


def _tell_other_tables(exc: Exception) -> None:
    logger.warning(
        "This version of transformers keeps its conversions in another way than 5.17 (%s): tensors are taken by the "
        "names they have.", exc,
    )  # fmt: skip
