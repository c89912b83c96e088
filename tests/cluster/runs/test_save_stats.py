"""What saves took, in the report and on the screen; one that was skipped is seen."""

from __future__ import annotations

from typing import Any

from cli.event_lines import line_of, log_line
from cli.progress import Progress, after, panel_rows
from cli.report_view import _saves
from cluster.events import Event, seconds_of
from cluster.runs.save_stats import save_stats


def save(position: int, seconds: float, *, committed: bool = True, **more: Any) -> Event:
    fields = {"position": position, "stall_s": seconds / 10, "seconds": seconds, "bytes": 2048, "stored_bytes": 1024}
    return Event("2026-11-22T00:00:00.000Z", "save", 1, "node", {**fields, "committed": committed, **more})


def step(number: int) -> Event:
    return Event("2026-11-22T00:00:00.000Z", "step", 1, "node", {"step": number})


def test_the_report_tells_the_usual_save_the_slowest_and_what_was_skipped() -> None:
    events = [
        save(10, 2.0, lag_steps=1),
        save(20, 30.0, lag_steps=9, stored_bytes=2048),
        save(25, 0.0, committed=False),
        save(30, 3.0, lag_steps=1),
    ]
    stats = save_stats(events)
    assert stats is not None
    assert (stats.committed, stats.skipped, stats.lag_steps_max) == (3, 1, 9)
    assert (stats.seconds_median, stats.seconds_max, stats.slowest_step) == (3.0, 30.0, 20)
    assert (stats.stall_s_max, stats.stored_bytes_median, stats.stored_bytes_max) == (3.0, 1024, 2048)
    said = _saves(stats.to_json())
    for part in ("3: ", "in 3.0 s as a rule", "step 20 in 30 s", "0.30 s, 3.00 s at most", "9 steps", "1 skipped"):
        assert part in said


def test_a_save_that_takes_long_is_seen_while_it_does() -> None:
    begun = Event("2026-11-22T00:00:00.000Z", "saving", 1, "node", {"position": 10})
    at_s = seconds_of(begun.t)
    carried = {"step": 14, "saving": 10, "saving_since": begun.t}
    later = Event("2026-11-22T00:00:40.000Z", "step", 1, "node", carried)
    for progress in (after(after(Progress(), step(10)), begun), after(Progress(), later)):
        assert dict(panel_rows(progress, now_s=at_s + 65))["now"] == "step 10 is being saved, for 1 min 05 s"
        assert "now" not in dict(panel_rows(progress, now_s=at_s + 1)), "it would only flicker"
        skipped = after(progress, save(14, 0.0, committed=False))
        assert skipped.saving == progress.saving
        assert after(skipped, save(10, 70.0)).saving is None
        assert after(progress, step(15)).saving is None, "that step's node says that none is under way"
        assert after(progress, Event(later.t, "attempt", 2, "supervisor", {"state": "ended"})).saving is None
    assert line_of(begun) is None
    assert log_line(begun) == "2026-11-22T00:00:00.000Z [1] saving     step 10 is being saved"


def test_saves_of_a_command_of_the_users_own_say_less() -> None:
    stats = save_stats([save(10, 2.0)])
    assert stats is not None
    assert stats.lag_steps_max is None
    assert "meanwhile" not in _saves(stats.to_json())
    assert save_stats([]) is None
    assert save_stats([save(10, 0.0, committed=False)]) is None


def test_a_skipped_save_is_shown_until_the_next_one_is_committed() -> None:
    skipped = save(20, 0.0, committed=False)
    assert line_of(skipped) == "step 20 was not saved: the save before it is still under way"
    progress = after(after(Progress(step=21), save(10, 2.0)), skipped)
    assert dict(panel_rows(progress))["unsaved"] == "11 steps; step 20 was skipped: a save is under way"
    assert dict(panel_rows(after(progress, save(21, 2.0))))["unsaved"] == "0 steps"
