"""Which architectures transformers here has classes for, read from its tables without importing it (and torch)."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Architectures(NamedTuple):
    """`model_type`s that transformers knows: all, and those with a class for causal language modelling."""

    known: frozenset[str]
    causal: frozenset[str]


@cache
def architectures_here() -> Architectures | None:
    """What transformers on this machine knows; None where it is not installed, or keeps its tables otherwise than 5.17:
    models/auto/auto_mappings.py and modeling_auto.py.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "models" / "auto"
    known = _keys(folder / "auto_mappings.py", "CONFIG_MAPPING_NAMES")
    causal = _keys(folder / "modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    return Architectures(known | causal, causal) if known and causal else None


def _keys(path: Path, name: str) -> frozenset[str]:
    """The keys of `name = OrderedDict([(key, value), ...])` in a module."""
    try:
        module = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return frozenset()
    for node in module.body:
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == name for one in node.targets):
            pairs = [one for one in ast.walk(node.value) if isinstance(one, ast.Tuple) and len(one.elts) == 2]
            keys = [pair.elts[0] for pair in pairs]
            return frozenset(key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
    return frozenset()
