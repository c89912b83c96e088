"""Events fold into how a run stands, and read as lines."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest

from cli.event_lines import Thinning, line_of, log_line
from cli.follow import follow
from cli.progress import Progress, after, panel_rows
from cluster.events import Event


def event(kind: str, *, t: str = "2026-11-20T10:00:00.000Z", attempt: int = 1, **fields: Any) -> Event:
    return Event(t, kind, attempt, "node", fields)


def started(attempt: int, region: str) -> Event:
    return event("attempt", attempt=attempt, number=attempt, placement={"infra": "local", "region": region})


def fold(*events: Event) -> Progress:
    return reduce(after, events, Progress())


def test_generation_shows_rows_and_accept_rate() -> None:
    progress = fold(started(1, "a"), event("generation", rows=120, target=160, accept_rate=0.615, usd=0.0))
    assert progress.phase == "generation"
    assert ("rows kept", "120 of 160, 61.5 % of what the teacher wrote") in panel_rows(progress)


def test_generation_shows_what_was_dropped_and_how_long_it_takes_at_the_rate_of_this_attempt() -> None:
    drops = {"similar": 12, "too_short": 30, "malformed": 0}
    first = event("generation", rows=100, target=400)
    later = event("generation", t="2026-11-20T10:00:20.000Z", rows=200, target=400, drops=drops)
    shown = dict(panel_rows(fold(started(1, "a"), event("phase", phase="generation"), first, later)))
    assert shown["dropped"] == "too_short 30, similar 12"
    assert shown["to go"] == "40 s at 5.0 rows/s"
    assert "to go" not in dict(panel_rows(fold(started(1, "a"), first)))
    resumed = event("generation", t="2026-11-20T11:00:00.000Z", attempt=2, rows=200, target=400)
    moved = fold(started(1, "a"), first, later, started(2, "b"), event("phase", phase="generation"), resumed)
    assert moved.rows_per_s is None, "the hour between two attempts is not the teacher's slowness"


def test_tokens_are_shown_beside_rows_drops_and_dollars_also_while_it_trains() -> None:
    told = {"prompt": 1_200_000, "completion": 34_567, "untold": 0}
    asked = event("generation", rows=10, target=20, tokens=told, usd=1.5)
    assert dict(panel_rows(fold(asked)))["tokens"] == "1,234,567: 1,200,000 prompt + 34,567 completion"
    assert dict(panel_rows(fold(asked, event("step", step=1))))["teacher"] == "$1.50"
    silent = event("generation", rows=10, tokens={"prompt": 0, "completion": 0, "untold": 1})
    assert dict(panel_rows(fold(silent)))["tokens"].endswith("; of 1 answer the server did not say")
    assert "tokens" not in dict(panel_rows(fold(event("generation", rows=10)))), "a node of an earlier version"


def test_an_unknown_price_and_a_teacher_that_is_waited_for_are_said() -> None:
    tokens = {"prompt": 10, "completion": 20, "untold": 0}
    words = "waiting for the teacher since 2026-11-20 10:00:00 UTC: HTTP 503"
    away = event("generation", rows=10, target=20, tokens=tokens, usd=None, waiting=words)
    shown = dict(panel_rows(fold(started(1, "a"), away)))
    assert (shown["teacher"], shown["now"]) == ("its price is not known", words)
    assert words in (line_of(away) or "")
    again = event("generation", rows=10, waiting=words, next_try_at="2026-11-20T10:00:42.500Z")
    assert dict(panel_rows(fold(started(1, "a"), again)))["now"] == f"{words}; next try at 10:00:42"
    back = event("generation", rows=12, target=20, tokens=tokens, usd=0.0, waiting=None)
    assert not {"now", "teacher"} & dict(panel_rows(fold(started(1, "a"), away, back))).keys()


def test_training_shows_step_loss_speed_and_what_is_unsaved() -> None:
    step = event("step", step=12, total_steps=40, loss=3.25, tokens_per_second=15200.4)
    progress = fold(started(1, "a"), event("save", position=10, seconds=0.2, committed=True), step)
    shown = dict(panel_rows(progress))
    assert shown["step"] == "12 of 40"
    assert shown["loss"] == "3.2500"
    assert shown["speed"] == "15,200 tokens/s"
    assert shown["unsaved"] == "2 steps"


def test_training_shows_mfu_memory_and_what_it_stood_still_for_as_far_as_the_node_says() -> None:
    told = {"mfu": 0.4321, "peak_memory_bytes": 3 * 2**30, "data_wait_s": 0.01, "seconds": 2.0}
    step = event("step", step=12, total_steps=40, loss=3.25, tokens_per_second=15200.4, **told)
    saved = event("save", position=10, seconds=4.2, stall_s=0.31, committed=True)
    shown = dict(panel_rows(fold(started(1, "a"), saved, step)))
    assert shown["speed"] == "15,200 tokens/s, MFU 43.2 %"
    assert shown["memory"] == "3.0 GiB at most on one rank"
    assert shown["stood still"] == "0.5 % of the step for rows, 0.31 s for the last save"
    before = dict(panel_rows(fold(event("step", step=12, tokens_per_second=1.0))))
    assert not {"memory", "stood still"} & set(before), "a node of an earlier version"


def test_everything_is_unsaved_before_the_first_checkpoint() -> None:
    assert fold(event("step", step=7)).lag_steps == 7


def test_a_save_that_was_given_up_does_not_count() -> None:
    progress = fold(event("save", position=5, committed=True), event("save", position=10, committed=False))
    assert progress.saved_step == 5


def test_a_new_attempt_moves_the_run_to_its_region() -> None:
    progress = fold(started(1, "a"), event("step", step=7), started(2, "b"))
    assert (progress.attempt, progress.place, progress.phase) == (2, "local/b", "starting")


def test_an_attempt_that_goes_on_says_from_where() -> None:
    resumed = event("base", attempt=2, stage="train", position=15)
    assert line_of(resumed) == "attempt 2 goes on after step 15"
    assert fold(started(2, "b"), resumed).lag_steps == 0
    assert line_of(event("base", stage="train", position=0)) is None


def test_an_older_attempts_late_word_changes_nothing() -> None:
    assert fold(started(2, "b"), started(1, "a")).place == "local/b"


def test_the_end_is_kept() -> None:
    progress = fold(event("end", exit_code=0, reason="done", words="The run is done."))
    assert progress.end is not None
    assert progress.end["exit_code"] == 0
    assert progress.last_words == "The run is done."


def decision(words: str) -> Event:
    return event("decision", action="relaunch", words=words)


def test_that_a_run_was_launched_or_resumed_is_no_news_once_it_is_at_work() -> None:
    launched = [decision("Starting; going to local/a."), started(1, "a")]
    assert dict(panel_rows(fold(*launched)))["last"] == "Starting; going to local/a."
    assert "last" not in dict(panel_rows(fold(*launched, event("generation", rows=1))))
    lost = [*launched, event("step", step=1), decision("Attempt 1 lost; going to local/b."), started(2, "b")]
    assert dict(panel_rows(fold(*lost, event("step", step=1))))["last"] == "Attempt 1 lost; going to local/b."
    ended = [*lost, event("end", exit_code=130, words="Cancelled.")]
    assert dict(panel_rows(fold(*ended)))["last"] == "Cancelled."
    assert "last" not in dict(panel_rows(fold(*ended, decision("Starting."), started(3, "a"), event("step", step=2))))


def test_who_begins_to_follow_later_sees_how_the_run_stands_and_hears_only_what_is_new(
    capsys: pytest.CaptureFixture[str],
) -> None:
    t = "2026-11-20T10:00:{}.000Z"
    before = [
        started(1, "a"),
        event("save", t=t.format("05"), position=20),
        event("step", t=t.format("06"), step=24, total_steps=60),
        event("end", t=t.format("07"), exit_code=130, words="Cancelled."),
    ]
    new = event("step", t=t.format("20"), step=60, total_steps=60)
    end = event("end", t=t.format("21"), exit_code=0, words="The run is done.")
    now = follow([*before, new, end], "demo", since=t.format("10"))
    assert (now.attempt, now.lag_steps, now.end and now.end["exit_code"]) == (1, 40, 0)
    assert capsys.readouterr().err == "step 60 of 60\nThe run is done.\n"
    assert follow(before, "demo", since=t.format("10")).end is None, "that end was before"
    assert follow([*before, new], "demo", since=t.format("10")).end is None, "and nothing has ended since"
    again = event("attempt", t=t.format("15"), attempt=2, number=2, placement={"infra": "local", "region": "b"})
    resumed = follow([*before, again, new], "demo", since=t.format("10"))
    assert "last" not in dict(panel_rows(resumed)), "that it was resumed is no news"
    assert follow(before, "demo").end == before[-1].fields


def test_an_unknown_kind_of_event_changes_nothing() -> None:
    assert fold(event("weather", sky="blue")) == Progress()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (started(2, "b"), None),
        (event("attempt", state="adopted", number=2, place="local/b"), "attempt 2 still runs in local/b"),
        (event("decision", action="finish", words="The run is done."), None),
        (event("end", exit_code=0, words="The run is done."), "The run is done."),
        (event("generation", rows=50, target=160, accept_rate=0.5), "50 of 160 rows kept, 50.0 % accepted"),
        (
            event("step", step=3, total_steps=40, loss=1.5, tokens_per_second=99.6),
            "step 3 of 40, loss 1.5000, 100 tokens/s",
        ),
        (event("save", position=10, seconds=0.25), "step 10 saved in 0.2 s"),
        (
            event(
                "save",
                position=10,
                seconds=42,
                stall_s=0.3,
                stored_bytes=2**30,
                lag_steps=7,
                interval_steps=120,
                interval_by="losses",
            ),
            "step 10 saved in 42 s, 1.0 GiB stored, training stood still 0.30 s and went on 7 steps meanwhile; the "
            "next in 120 steps (by losses)",
        ),
        (event("decision", action="relaunch", words="Lost; going to local/b."), "Lost; going to local/b."),
        (event("log", level="warning", message="slow"), "warning: slow"),
        (event("log", level="info", message="talk"), None),
        (
            event("save", position=10, committed=False),
            "step 10 was not saved: the save before it is still under way",
        ),
    ],
)
def test_lines(given: Event, line: str | None) -> None:
    assert line_of(given) == line


def test_logs_leave_nothing_out() -> None:
    shown = log_line(event("log", level="info", logger="cluster.node.main", message="Ray is up"))
    assert shown == "2026-11-20T10:00:00.000Z [1] info       Ray is up"
    assert "sky=blue" in log_line(event("weather", sky="blue"))
    assert log_line(event("decision", action="finish", words="It is done.", wait_s=0.0)).endswith(" It is done.")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"placement": {"infra": "aws", "region": "us-east-1"}}, "attempt 1 is at work in aws/us-east-1"),
        ({"state": "started", "place": "local/a", "placement": {"infra": "local"}}, "attempt 1 in local/a: started"),
        ({"state": "refused", "place": "local/b", "detail": "no capacity"}, "local/b refused attempt 1: no capacity"),
        (
            {"state": "ended", "place": "local/a", "seconds": 42.0, "reason": "preempted", "detail": "A notice came."},
            "attempt 1 in local/a ended after 42 s: preempted. A notice came.",
        ),
    ],
)
def test_logs_say_what_became_of_an_attempt(fields: dict[str, Any], text: str) -> None:
    assert log_line(event("attempt", number=1, **fields)).endswith(f"attempt    {text}")


def test_a_step_that_tells_only_its_number_is_that() -> None:
    assert line_of(event("step", step=3, total_steps=6)) == "step 3 of 6"


def test_steady_lines_are_thinned_and_others_are_not() -> None:
    thinning = Thinning(gap_s=5)
    times = ["10:00:00.000Z", "10:00:04.000Z", "10:00:05.000Z"]
    steps = [event("step", t=f"2026-11-20T{t}", step=n) for n, t in enumerate(times)]
    assert [thinning.lets_through(step) for step in steps] == [True, False, True]
    assert thinning.lets_through(event("decision", t="2026-11-20T10:00:05.001Z", words="x"))


def test_a_line_that_says_the_same_again_comes_once_a_minute() -> None:
    thinning = Thinning()
    away = [event("generation", t=f"2026-11-20T10:{s // 60:02}:{s % 60:02}.000Z", rows=9) for s in range(0, 125, 5)]
    assert [at for at, one in enumerate(away) if thinning.lets_through(one)] == [0, 12, 24]
    assert thinning.lets_through(event("generation", t="2026-11-20T10:02:05.000Z", rows=10))
