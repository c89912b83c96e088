"""A run's events folded into how it stands. Pure: the same events always read the same.

The kinds of events and their fields are listed in cluster/events.py. A field that another version leaves out is a dash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cli import words

if TYPE_CHECKING:
    from cluster.events import Event
    from cluster.runs.save_stats import SaveUnderWay

SAVE_WORTH_SAYING_S = 2.0
"""A save that is over sooner would only flicker."""


@dataclass(frozen=True)
class Progress:
    """How a run stands, as far as its events tell.

    Attributes:
        attempt, place: of the newest attempt; 0 and empty before the first.
        first_attempt: the one that the run was launched or resumed with.
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
        saving: the save that is under way; None without one.
        saved_step: step of the newest committed checkpoint; None before the first.
        skipped_step: step that was not saved since, as the save before it was still under way; None if none was.
        evaluated: fields of the last evaluation; empty before the first.
        last_words: the newest decision, in words.
        end: fields of the run's `end` event, once it is there.
    """

    attempt: int = 0
    first_attempt: int = 0
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
    saving: SaveUnderWay | None = None
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
    from cluster.runs.save_stats import save_under_way

    fields = event.fields
    progress = replace(progress, saving=save_under_way(progress.saving, event))
    match event.kind:
        case "attempt" if "placement" in fields and (number := fields.get("number", event.attempt)) >= progress.attempt:
            if progress.end is not None or not progress.attempt:
                progress = replace(progress, first_attempt=number)
            if number != progress.attempt:
                progress = replace(progress, phase="starting", first_rows=None, rows_per_s=None)
            return replace(progress, attempt=number, place=place_of(fields["placement"]), end=None)
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


def panel_rows(progress: Progress, *, now_s: float | None = None) -> list[tuple[str, str]]:
    """Name and value of everything worth watching now; `now_s`, seconds since 1970: to tell how long a save takes."""
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
        rows.append(("step", step_of(progress)))
        rows.append(("loss", words.number(progress.loss, 4)))
        rows.append(("speed", words.speed(progress.tokens_per_second, progress.mfu)))
        if progress.peak_memory_bytes:
            rows.append(("memory", words.memory(progress.peak_memory_bytes)))
        if still := _stood_still(progress):
            rows.append(("stood still", still))
        if progress.saving and now_s is not None and (for_s := now_s - progress.saving.since_s) >= SAVE_WORTH_SAYING_S:
            rows.append(("now", words.saving({"step": progress.saving.step, "for_s": for_s})))
        if progress.evaluated:
            rows.append(("evaluation", words.evaluation(progress.evaluated)))
        skipped = (
            "" if progress.skipped_step is None else f"; step {progress.skipped_step} was skipped: a save is under way"
        )
        rows.append(("unsaved", words.plural(progress.lag_steps or 0, "step") + skipped))
    is_on_its_way = progress.attempt == progress.first_attempt and progress.phase != "starting" and progress.end is None
    if progress.last_words and not is_on_its_way:  # that it starts is no news any more
        rows.append(("last", progress.last_words))
    return rows


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


def _rate(progress: Progress, event: Event) -> tuple[tuple[float, int] | None, float | None]:
    """When and with how many rows this attempt's generation was first heard of, and rows per second since."""
    from cluster.events import seconds_of

    now, rows = seconds_of(event.t), event.fields.get("rows") or 0
    first = progress.first_rows
    if first is None or rows < first[1]:
        return (now, rows), None
    seconds = now - first[0]
    return first, (rows - first[1]) / seconds if seconds > 0 else progress.rows_per_s


def step_of(progress: Progress) -> str:
    """`10 of 200`."""
    total = "" if progress.total_steps is None else f" of {progress.total_steps:,}"
    return f"{words.number(progress.step)}{total}"


def place_of(placement: Any) -> str:
    """`aws/us-east-1` of a placement as events have it."""
    if isinstance(placement, Mapping):
        return "/".join(str(part) for part in (placement.get("infra"), placement.get("region")) if part)
    return str(placement)
