"""One line of a training command's progress file (docs/COMMAND.md), as the run takes it. Pure.

The program is the user's own: what it tells is shown and counted, so a number that is none must not get that far.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, Final

from alpaca_jobs.training.metrics import StepMetrics

_NUMBERS: Final = frozenset(field.name for field in fields(StepMetrics)) | {
    "total_steps", "position", "stall_s", "bytes", "stored_bytes", "lag_steps",
}  # fmt: skip
_COUNTS: Final = frozenset({"step", "total_steps", "epoch", "tokens", "target_tokens", "position"})
_NEEDED: Final = {"save": ("position", "stall_s", "seconds", "bytes")}


def parse_fact(line: bytes) -> dict[str, Any] | None:
    """Return what a line tells, its kind (`step` if it names none) among the fields; None for a line that is no fact.

    A field that should be a number and is none is left out, and so is `t`: when it was told is the run's to say. A step
    may be told as 12.0, as programs do that log every value as a float.
    """
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or not isinstance(told.get("kind", "step"), str):
        return None
    fact = {"kind": "step", **{name: _count(name, value) for name, value in told.items() if _is_good(name, value)}}
    needed = _NEEDED.get(fact["kind"], ())
    return fact if all(fact.get(name) is not None for name in needed) else None


def _count(name: str, value: Any) -> Any:
    return int(value) if name in _COUNTS and isinstance(value, float) and value.is_integer() else value


def _is_good(name: str, value: Any) -> bool:
    return name != "t" and (name not in _NUMBERS or value is None or _is_number(value))


def _is_number(value: Any) -> bool:
    """Whether it can be counted with: an int of 400 digits, which JSON allows, cannot."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**63
