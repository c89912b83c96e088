"""A run's events as lines: of talk while it is followed, and of its log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cli import words
from cli.progress import Progress, after, place_of, step_of

if TYPE_CHECKING:
    from cluster.events import Event

MIN_LINE_GAP_S = 5.0
"""Between two lines about the same kind of steady progress, where nothing can be redrawn."""
MIN_REPEAT_GAP_S = 60.0
"""Between two that say the same: a teacher may be waited for for hours."""


def line_of(event: Event) -> str | None:
    """An event as a line of talk; None for one that is not worth a line."""
    fields = event.fields
    match event.kind:
        case "attempt" if fields.get("state") == "adopted":
            return f"attempt {fields.get('number')} still runs in {fields.get('place')}"
        case "generation":
            target = f" of {fields['target']:,}" if fields.get("target") else ""
            accepted = f", {words.share(rate)} accepted" if (rate := fields.get("accept_rate")) is not None else ""
            waiting = f"; {fields['waiting']}" if fields.get("waiting") else ""
            return f"{fields.get('rows', 0):,}{target} rows kept{accepted}{waiting}"
        case "step":
            now = after(Progress(), event)
            loss = None if now.loss is None else f"loss {words.number(now.loss, 4)}"
            speed = None if now.tokens_per_second is None else words.speed(now.tokens_per_second, now.mfu)
            return ", ".join(part for part in (f"step {step_of(now)}", loss, speed) if part)
        case "base" if fields.get("position"):
            what = "step" if fields.get("stage") == "train" else "part of the rows, number"
            return f"attempt {event.attempt} goes on after {what} {fields['position']}"
        case "eval":
            return f"evaluation: {words.evaluation(fields)}"
        case "save" if fields.get("committed", True):
            return _saved_words(fields)
        case "save":
            return f"step {fields.get('position')} was not saved: the save before it is still under way"
        case "decision" if fields.get("action") in ("finish", "give_up"):
            return None  # the end says it again
        case "stall":
            return f"warning: {fields.get('words', '')}"
        case "decision" | "end":
            return str(fields.get("words", "")) or None
        case "log" if fields.get("level") in ("warning", "error", "critical"):
            return f"{fields['level']}: {fields.get('message', '')}"
    return None


def _saved_words(fields: Mapping[str, Any]) -> str:
    """How a save went, and when the next one comes."""
    text = f"step {fields.get('position')} saved in {words.duration(fields.get('seconds'))}"
    if fields.get("stored_bytes") is not None:
        text += f", {words.size(fields['stored_bytes'])} stored"
    if fields.get("stall_s") is not None:
        text += f", training stood still {fields['stall_s']:.2f} s"
    if fields.get("lag_steps"):
        text += f" and went on {words.plural(fields['lag_steps'], 'step')} meanwhile"
    if fields.get("interval_by") not in (None, "fixed"):
        text += f"; the next in {words.plural(fields['interval_steps'], 'step')} (by {fields['interval_by']})"
    return text


def log_line(event: Event) -> str:
    """An event as `logs` shows it: when, which attempt, what; nothing is left out."""
    if event.kind == "log":
        level, text = str(event.fields.get("level", "")), str(event.fields.get("message", ""))
    else:
        level = event.kind
        plain = " ".join(f"{name}={value}" for name, value in event.fields.items())
        text = line_of(event) or _attempt_words(event) or str(event.fields.get("words", "")) or plain
    return f"{event.t} [{event.attempt}] {level:<10} {text}"


def _attempt_words(event: Event) -> str | None:
    """What became of an attempt or begins in it, for the log alone; None for other events."""
    fields = event.fields
    match event.kind:
        case "saving":
            return f"step {fields.get('position')} is being saved"
        case "ray":
            return f"Ray was started in {words.duration(fields.get('seconds'))}"
        case "ready":
            return f"the training workers were ready after {words.duration(fields.get('seconds'))}"
        case "base":
            return "training begins at its first step" if fields.get("stage") == "train" else "no rows are there yet"
    if event.kind != "attempt":
        return None
    number, place = f"attempt {fields.get('number')}", fields.get("place") or place_of(fields.get("placement"))
    match fields.get("state"):
        case None:
            return f"{number} is at work in {place}"
        case "refused":
            return f"{place} refused {number}: {fields.get('detail')}"
        case "ended":
            why = f"{fields.get('reason')}. {fields.get('detail') or ''}".rstrip()
            return f"{number} in {place} ended after {words.duration(fields.get('seconds'))}: {why}"
        case state:
            return f"{number} in {place}: {state}"


class Thinning:
    """Lets lines about steady progress through at most every few seconds of the run's own time; all others always."""

    _STEADY = ("generation", "step")

    def __init__(self, gap_s: float = MIN_LINE_GAP_S, repeat_gap_s: float = MIN_REPEAT_GAP_S) -> None:
        self._gap_s, self._repeat_gap_s = gap_s, repeat_gap_s
        self._last: dict[str, tuple[float, str | None]] = {}

    def lets_through(self, event: Event) -> bool:
        """Whether this event's line is shown."""
        from cluster.events import seconds_of

        if event.kind not in self._STEADY or _is_last(event.fields):
            return True
        now, line = seconds_of(event.t), line_of(event)
        then, said = self._last.get(event.kind, (float("-inf"), None))
        if now - then < (self._repeat_gap_s if line == said else self._gap_s):
            return False
        self._last[event.kind] = now, line
        return True


def _is_last(fields: Mapping[str, Any]) -> bool:
    """Whether this completes what it counts: all rows, or the last step."""
    pairs = (("rows", "target"), ("step", "total_steps"))
    return any(fields.get(count) is not None and fields.get(count) == fields.get(total) for count, total in pairs)
