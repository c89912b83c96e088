"""A run's events folded into how it stands, and into lines of talk. Pure: the same events always read the same.

The kinds of events and their fields are listed in cluster/events.py. A field that another version leaves out is a dash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cli import words

if TYPE_CHECKING:
    from cluster.events import Event

MIN_LINE_GAP_S = 5.0
"""Between two lines about the same kind of steady progress, where nothing can be redrawn."""


@dataclass(frozen=True)
class Progress:
    """How a run stands, as far as its events tell.

    Attributes:
        attempt, place: of the newest attempt; 0 and empty before the first.
        phase: generation, training or export; starting before any of them.
        rows, target_rows, accept_rate, usd: of the generation; accept_rate from 0 to 1.
        drops: what the teacher wrote and was not kept, by reason.
        waiting: that the teacher answers nobody, and since when, in words; empty while it answers.
        tokens: of the answers so far: prompt, completion, and how many answers do not say (untold).
        first_rows: seconds and rows at the first news of the attempt's generation; the rate counts from it.
        rows_per_s: since then; None before anything can be said.
        step, total_steps, loss, tokens_per_second: of the training.
        mfu, peak_memory_bytes: of its newest step; None where they are not known.
        data_wait: the share of that step in which it waited for its rows.
        stall_s: how long training stood still for the newest committed save.
        saved_step: step of the newest committed checkpoint; None before the first.
        skipped_step: step that was not saved since, as the save before it was still under way; None if none was.
        evaluated: fields of the last evaluation; empty before the first.
        last_words: the newest decision, in words.
        end: fields of the run's `end` event, once it is there.
    """

    attempt: int = 0
    place: str = ""
    phase: str = "starting"
    rows: int | None = None
    target_rows: int | None = None
    accept_rate: float | None = None
    usd: float | None = None
    waiting: str = ""
    drops: Mapping[str, int] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    first_rows: tuple[float, int] | None = None
    rows_per_s: float | None = None
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    peak_memory_bytes: int | None = None
    data_wait: float | None = None
    stall_s: float | None = None
    saved_step: int | None = None
    skipped_step: int | None = None
    evaluated: Mapping[str, Any] = field(default_factory=dict)
    last_words: str = ""
    end: Mapping[str, Any] | None = None

    @property
    def seconds_to_go(self) -> float | None:
        """Until the rows are complete at the rate so far; None while that is not known, or all are there."""
        if not self.rows_per_s or self.target_rows is None or self.rows is None or self.rows >= self.target_rows:
            return None
        return (self.target_rows - self.rows) / self.rows_per_s

    @property
    def lag_steps(self) -> int | None:
        """Steps that a kill right now would cost."""
        return None if self.step is None else self.step - (self.saved_step or 0)


def after(progress: Progress, event: Event) -> Progress:
    """How the run stands once this event has happened."""
    fields = event.fields
    match event.kind:
        case "attempt" if "placement" in fields and (number := fields.get("number", event.attempt)) >= progress.attempt:
            if number != progress.attempt:
                progress = replace(progress, phase="starting", first_rows=None, rows_per_s=None)
            return replace(progress, attempt=number, place=_place(fields["placement"]), end=None)
        case "phase":
            return replace(progress, phase=str(fields.get("phase", progress.phase)))
        case "generation":
            first, rate = _rate(progress, event)
            return replace(
                progress,
                phase="generation",
                drops=fields.get("drops") or {},
                first_rows=first,
                rows_per_s=rate,
                rows=fields.get("rows"),
                target_rows=fields.get("target", progress.target_rows),
                accept_rate=fields.get("accept_rate"),
                usd=fields.get("usd"),
                waiting=words.teacher_wait({"words": fields.get("waiting"), "next_try_at": fields.get("next_try_at")}),
                tokens=fields.get("tokens") or {},
            )
        case "step":
            return replace(
                progress,
                phase="training",
                step=fields.get("step"),
                total_steps=fields.get("total_steps", progress.total_steps),
                loss=fields.get("loss"),
                tokens_per_second=fields.get("tokens_per_second"),
                mfu=fields.get("mfu"),
                peak_memory_bytes=fields.get("peak_memory_bytes"),
                data_wait=data_wait(fields),
            )
        case "eval":
            return replace(progress, evaluated=fields)
        case "save" if fields.get("committed", True):
            return replace(
                progress, saved_step=fields.get("position"), stall_s=fields.get("stall_s"), skipped_step=None
            )
        case "save":
            return replace(progress, skipped_step=fields.get("position"))
        case "base" if fields.get("stage") == "train":
            return replace(progress, step=fields.get("position"), saved_step=fields.get("position"))
        case "decision":
            return replace(progress, last_words=str(fields.get("words", "")))
        case "end":
            return replace(progress, end=fields, last_words=str(fields.get("words", "")))
    return progress


def panel_rows(progress: Progress) -> list[tuple[str, str]]:
    """Name and value of everything worth watching now."""
    rows = [("phase", f"{progress.phase}, attempt {progress.attempt or words.MISSING} in {progress.place or '...'}")]
    if progress.rows is not None:
        kept = words.number(progress.rows)
        if progress.target_rows:
            kept += f" of {words.number(progress.target_rows)}"
        if progress.accept_rate is not None:
            kept += f", {words.share(progress.accept_rate)} of what the teacher wrote"
        rows.append(("rows kept", kept))
    if progress.phase == "generation" and any(progress.drops.values()):
        rows.append(("dropped", words.drops(progress.drops)))
    if progress.phase == "generation" and progress.seconds_to_go is not None:
        rows.append(("to go", f"{words.duration(progress.seconds_to_go)} at {progress.rows_per_s:.1f} rows/s"))
    if progress.tokens:
        rows.append(("tokens", words.tokens(progress.tokens)))
    if progress.usd:
        rows.append(("teacher", words.money(progress.usd)))
    elif progress.phase == "generation" and progress.tokens and progress.usd is None:
        rows.append(("teacher", "its price is not known"))
    if progress.waiting and progress.phase == "generation":
        rows.append(("now", progress.waiting))
    if progress.step is not None:
        rows.append(("step", _step_of(progress)))
        rows.append(("loss", words.number(progress.loss, 4)))
        rows.append(("speed", words.speed(progress.tokens_per_second, progress.mfu)))
        if progress.peak_memory_bytes:
            rows.append(("memory", words.memory(progress.peak_memory_bytes)))
        if still := _stood_still(progress):
            rows.append(("stood still", still))
        if progress.evaluated:
            rows.append(("evaluation", words.evaluation(progress.evaluated)))
        skipped = (
            "" if progress.skipped_step is None else f"; step {progress.skipped_step} was skipped: a save is under way"
        )
        rows.append(("unsaved", words.plural(progress.lag_steps or 0, "step") + skipped))
    if progress.last_words:
        rows.append(("last", progress.last_words))
    return rows


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
            return ", ".join(part for part in (f"step {_step_of(now)}", loss, speed) if part)
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


def data_wait(fields: Mapping[str, Any]) -> float | None:
    """The share of a step in which it waited for its rows; None where its event does not say."""
    waited, seconds = fields.get("data_wait_s"), fields.get("seconds")
    return None if waited is None or not seconds else float(waited) / float(seconds)


def _stood_still(progress: Progress) -> str:
    """What training waited for last: rows, and a save."""
    parts = []
    if progress.data_wait is not None:
        parts.append(f"{words.share(progress.data_wait)} of the step for rows")
    if progress.stall_s is not None:
        parts.append(f"{progress.stall_s:.2f} s for the last save")
    return ", ".join(parts)


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
        text = line_of(event) or _attempt_words(event) or plain
    return f"{event.t} [{event.attempt}] {level:<10} {text}"


def _attempt_words(event: Event) -> str | None:
    """What became of an attempt, for the log; None for other events."""
    fields = event.fields
    if event.kind != "attempt":
        return None
    number, place = f"attempt {fields.get('number')}", fields.get("place") or _place(fields.get("placement"))
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

    def __init__(self, gap_s: float = MIN_LINE_GAP_S) -> None:
        self._gap_s = gap_s
        self._last: dict[str, float] = {}

    def lets_through(self, event: Event) -> bool:
        """Whether this event's line is shown."""
        from cluster.events import seconds_of

        if event.kind not in self._STEADY or _is_last(event.fields):
            return True
        now = seconds_of(event.t)
        if now - self._last.get(event.kind, float("-inf")) < self._gap_s:
            return False
        self._last[event.kind] = now
        return True


def _is_last(fields: Mapping[str, Any]) -> bool:
    """Whether this completes what it counts: all rows, or the last step."""
    pairs = (("rows", "target"), ("step", "total_steps"))
    return any(fields.get(count) is not None and fields.get(count) == fields.get(total) for count, total in pairs)


def _rate(progress: Progress, event: Event) -> tuple[tuple[float, int] | None, float | None]:
    """When and with how many rows this attempt's generation was first heard of, and rows per second since."""
    from cluster.events import seconds_of

    now, rows = seconds_of(event.t), event.fields.get("rows") or 0
    first = progress.first_rows
    if first is None or rows < first[1]:
        return (now, rows), None
    seconds = now - first[0]
    return first, (rows - first[1]) / seconds if seconds > 0 else progress.rows_per_s


def _step_of(progress: Progress) -> str:
    total = "" if progress.total_steps is None else f" of {progress.total_steps:,}"
    return f"{words.number(progress.step)}{total}"


def _place(placement: Any) -> str:
    if isinstance(placement, Mapping):
        return "/".join(str(part) for part in (placement.get("infra"), placement.get("region")) if part)
    return str(placement)
