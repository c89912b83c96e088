"""Starting without what a training never uses: a third of a rank's processor time before its first step.

FSDP2 and DTensor load `torch._dynamo`, the compiler, in every process: to ask it to leave some functions alone, and for
the numbers in its `config`; transformers does for a small class in a file beside it. Where nothing is compiled there is
nothing to leave alone, and those files can be had without the rest. So a package whose own code has not run stands in
for `torch._dynamo`; whoever asks it for anything that only the real one has gets the real one. torch 2.13.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

_COMPILER = "torch._dynamo"


class _StandIn(ModuleType):
    """What `torch._dynamo` is until somebody needs it."""

    def __init__(self) -> None:
        super().__init__(_COMPILER)
        self.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
        self.trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)  # called for every new process group

    @staticmethod
    def disable(function: Any = None, *_: Any, **__: Any) -> Any:
        """Leave a function alone, as nothing does anything to it; like torch's, also as a decorator with options."""
        return function if function is not None else lambda given: given

    @staticmethod
    def assume_constant_result(function: Any) -> Any:
        """Mark a function for a compiler that may be loaded later, as torch's own does."""
        function._dynamo_marked_constant = True
        return function

    @staticmethod
    def allow_in_graph(function: Any) -> Any:
        """Nothing: there are no graphs."""
        return function

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        """Nothing, as torch's own does outside of a graph."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_load(), name)


def _load() -> ModuleType:
    """The real one, in the stand-in's place."""
    if is_stood_in_for():
        del sys.modules[_COMPILER]
    real = importlib.import_module(_COMPILER)
    for key, module in list(sys.modules.items()):  # what was loaded beside the stand-in is the real one's from now on
        parent, _, child = key.rpartition(".")
        if parent == _COMPILER and not hasattr(real, child):
            setattr(real, child, module)
    return real


def stand_in_for_compiler() -> None:
    """Stand in for the compiler from now on, in this process; nothing where it is loaded already."""
    if _COMPILER not in sys.modules:
        sys.modules[_COMPILER] = torch.__dict__["_dynamo"] = _StandIn()
        torch.compile = _loading_first(torch.compile)


def _loading_first(compile_it: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile for a process that was not expected to compile: its parts want the real one to be there first."""

    @wraps(compile_it)
    def load_and_compile(*args: Any, **kwargs: Any) -> Any:
        _load()
        torch.compile = compile_it
        return compile_it(*args, **kwargs)

    return load_and_compile


def is_stood_in_for() -> bool:
    """Whether this process has no compiler but its stand-in."""
    return isinstance(sys.modules.get(_COMPILER), _StandIn)


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """Within the block a library that was not imported yet is not there: what it is optional for does without it."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
    try:
        yield
    finally:
        del sys.modules[name]


def demand_deterministic(*, is_demanded: bool) -> None:
    """`torch.use_deterministic_algorithms`, which loads the compiler to tell it as well; here only if there is one."""
    if is_stood_in_for():
        torch._C._set_deterministic_algorithms(is_demanded, warn_only=False)
    else:
        torch.use_deterministic_algorithms(is_demanded)
