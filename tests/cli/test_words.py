"""Numbers read well and carry their unit; a missing one is never a zero."""

from __future__ import annotations

import pytest

from cli import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (59.6, "1 min 00 s"),
        (42, "42 s"),
        (200, "3 min 20 s"),
        (3599.9, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (273600, "3 d 04 h"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("usd", "text"),
    [(None, "-"), (0, "$0.00"), (0.0042, "$0.0042"), (0.1, "$0.10"), (12.3, "$12.30"), (1234.5, "$1,234.50")],
)
def test_money(usd: float | None, text: str) -> None:
    assert words.money(usd) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1,023 B"), (1024, "1.0 KiB"), (12_742_056, "12.2 MiB"), (81e9, "75.4 GiB")],
)
def test_sizes(num_bytes: float | None, text: str) -> None:
    assert words.size(num_bytes) == text


def test_a_missing_value_is_a_dash() -> None:
    assert (words.rate(None), words.share(None), words.share(1, 0), words.number(None), words.yes_no(None)) == (
        "-",
    ) * 5


def test_counts_agree_with_their_noun() -> None:
    assert words.plural(1, "row") == "1 row"
    assert words.plural(0, "row") == "0 rows"
    assert words.plural(52002, "row") == "52,002 rows"
    assert words.share(1, 3) == "33.3 %"
