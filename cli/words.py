"""How numbers read: money, times, sizes and shares, each with its unit; a missing one is a dash, never a zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cluster.duration import duration_words

MISSING = "-"


def money(usd: float | None) -> str:
    """Dollars: `$12.30`; below ten cents with enough digits to say something, `$0.0042`."""
    if usd is None:
        return MISSING
    if usd == 0 or abs(usd) >= 0.1:
        return f"${usd:,.2f}"
    return f"${usd:.4f}"


def rate(usd_per_hour: float | None) -> str:
    """A price for one hour."""
    return MISSING if usd_per_hour is None else f"{money(usd_per_hour)}/h"


def duration(seconds: float | None) -> str:
    """`0.4 s`, `42 s`, `3 min 20 s`, `2 h 05 min`, `3 d 04 h`."""
    return MISSING if seconds is None else duration_words(seconds)


def size(num_bytes: float | None) -> str:
    """`512 B`, `12.1 MiB`, `75.3 GiB`."""
    if num_bytes is None:
        return MISSING
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log2(max(abs(num_bytes), 1)) // 10), len(units) - 1)
    return f"{num_bytes / 1024**power:,.{1 if power else 0}f} {units[power]}"


def share(part: float | None, whole: float | None = 1.0) -> str:
    """A share of a whole as per cent."""
    if part is None or not whole:
        return MISSING
    return f"{100 * part / whole:.1f} %"


def number(value: float | None, digits: int = 0) -> str:
    """A count or a measure, thousands set apart."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def tokens(counted: Mapping[str, int] | None) -> str:
    """What a teacher was asked and has answered: `1,500: 1,000 prompt + 500 completion`."""
    if not counted:
        return MISSING
    text = f"{counted['prompt'] + counted['completion']:,}: "
    text += f"{counted['prompt']:,} prompt + {counted['completion']:,} completion"
    return text + (f"; of {plural(counted['untold'], 'answer')} the server did not say" if counted["untold"] else "")


def teacher_wait(waited: Mapping[str, Any]) -> str:
    """That a teacher is waited for, and when it is asked again: in so many seconds, or at a time; empty if it is not.

    Args:
        waited: `words`, with since when and why, and `next_try_in_s` or `next_try_at`, where they are known.
    """
    text, at = str(waited.get("words") or ""), str(waited.get("next_try_at") or "")
    if text and waited.get("next_try_in_s") is not None:
        return f"{text}; next try in {waited['next_try_in_s']:.0f} s"
    return f"{text}; next try at {at[11:19]}" if text and at else text


def saving(under_way: Mapping[str, Any]) -> str:
    """That a save is under way: `step`, and for how long (`for_s`)."""
    return f"step {number(under_way['step'])} is being saved, for {duration(under_way['for_s'])}"


def drops(counted: Mapping[str, int]) -> str:
    """What was not kept, the commonest reason first: `too_short 30, similar 12`."""
    most = sorted(counted.items(), key=lambda drop: (-drop[1], drop[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in most if count)


def yes_no(value: bool | None) -> str:
    """A claim that holds, does not hold, or was not tested."""
    return MISSING if value is None else ("yes" if value else "no")


def plural(count: int, thing: str) -> str:
    """`1 row`, `3 rows`."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def speed(tokens_per_second: float | None, mfu: float | None) -> str:
    """Real tokens a second, and what share of the GPUs' peak the model's arithmetic is, where that is known."""
    return f"{number(tokens_per_second)} tokens/s" + ("" if mfu is None else f", MFU {share(mfu)}")


def memory(peak_bytes: float) -> str:
    """The most memory that any rank has had."""
    return f"{size(peak_bytes)} at most on one rank"


def evaluation(fields: Mapping[str, Any]) -> str:
    """The loss of held-out rows, as last measured and at its best."""
    step, best_step = fields.get("step"), fields.get("best_step")
    text = f"loss {number(fields.get('loss'), 4)} on held-out rows after step {number(step)}"
    if best_step is None or best_step == step:
        return text
    return f"{text}; the lowest was {number(fields.get('best_loss'), 4)} after step {number(best_step)}"
