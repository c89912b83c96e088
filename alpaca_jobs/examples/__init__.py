"""Job files that work as they are; `alpaca-jobs init` writes one of them, and a test validates and plans each."""

from __future__ import annotations

import difflib
from importlib import resources

from alpaca_jobs.errors import SpecError


def example_names() -> tuple[str, ...]:
    """Names of the examples, without .yaml, the demo first."""
    files = resources.files(__name__).iterdir()
    names = sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))
    return tuple(sorted(names, key=lambda name: name != "demo"))


def example_text(name: str) -> str:
    """Text of an example, comments included; works from a wheel too. Raises SpecError for a name that is none."""
    names = example_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(names)}."
        raise SpecError(f"{name} is not an example. {hint}")
    return (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")


def example_program(name: str) -> str:
    """Text of a program that an example's `train.files` names."""
    return (resources.files(__name__) / name).read_text(encoding="utf-8")
