"""List prices of teachers, from a dated table in this package (teacher_prices.json); a job's own prices go first.

A model that the table does not hold has no price, which is not a price of zero.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")  # gpt-4o-mini-2024-07-18 costs what gpt-4o-mini does


@dataclass(frozen=True)
class ListPrice:
    """US dollars per million tokens, the day the list was read, and where."""

    input_usd: float
    output_usd: float
    as_of: str
    source: str


def list_price(model: str, base_url: str | None) -> ListPrice | None:
    """Return a model's list price at the address where it is asked; None when the table does not hold it."""
    table = _table()
    if base_url is not None and urlsplit(base_url).hostname != table["host"]:
        return None  # the same name elsewhere is another offer
    price = table["usd_per_million_tokens"].get(_SNAPSHOT.sub("", model))
    return price and ListPrice(price["input"], price["output"], table["as_of"], table["source"])


@cache
def _table() -> Any:
    text = resources.files("alpaca_jobs").joinpath("teacher_prices.json").read_text(encoding="utf-8")
    return json.loads(text)
