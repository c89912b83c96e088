"""What tables say, from the values behind them; and how they are drawn."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import pytest

from cli import estimate_view, render, report_view
from cli.drill import drill_grid
from cli.plan_view import plan_grids, question
from cluster.launch.planner import offers_for, plan_launch
from cluster.price.simulation import Quantiles

ATTEMPT: dict[str, Any] = {
    "number": 1, "place": "local/a", "pricing": "spot", "started_at": "2026-11-20T10:00:00Z", "ended_at": "",
    "stop_reason": "lost", "detail": "killed by SIGKILL", "base": None, "reached": ["train", 16], "seconds": 31.0,
    "cost_usd": 0.0,
}  # fmt: skip
REPORT: dict[str, Any] = {
    "run_id": "demo-x3fkd", "outcome": "done", "exit_code": 0, "words": "The run is done.",
    "attempts": [ATTEMPT, {**ATTEMPT, "number": 2, "place": "local/b", "stop_reason": "done",
                           "base": {"stage": "train", "position": 15, "attempt": 1}, "reached": ["train", 40]}],
    "regions": ["local/a", "local/b"], "lost_steps": [1], "lost_steps_max": 1,
    "goodput": {"useful_s": 75.0, "lost_s": 5.0, "saving_s": 1.0, "waiting_s": 19.0, "wall_s": 100.0},
    "rows": 160, "step": 40, "requests": 22, "requests_repeated": 2, "compute_usd": 1.5, "teacher_usd": 0.0042,
    "cost_usd": 1.5042,
}  # fmt: skip
DRILL: dict[str, Any] = {
    "run_ids": {"undisturbed": "demo-aaaaa", "killed": "demo-bbbbb"}, "kills": 2,
    "kills_by_phase": {"step": 1, "save": 1}, "attempts": 3, "regions": ["local/a", "local/b", "local/c"],
    "lost_steps": [1, 5], "lost_steps_max": 5, "rows": 160, "rows_lost": 0, "rows_duplicated": 0,
    "requests_repeated": 0, "corrupt_resumes": 0, "final_loss": 5.14281,
    "weights_digest": {"undisturbed": "a" * 64, "killed": "a" * 64}, "bit_identical": True,
}  # fmt: skip


def cells(grid: render.Grid) -> dict[str, str]:
    return {row[0]: row[1] for row in grid.rows}


def drawn(grid: render.Grid, width: int = 100) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    console.print(render.draw(grid, console=console))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


VIEW: dict[str, Any] = {
    "run_id": "demo-x3fkd", "state": "running", "words": "", "launched_at": "2026-11-20T10:00:00Z", "updated_at": "",
    "place": "local/a", "attempts": [ATTEMPT], "newest_commit": None, "rows": 50, "target_rows": 160,
    "accept_rate": 0.5, "drops": {"similar": 49, "too_short": 1}, "teacher_usd": 0.5,
    "tokens": {"prompt": 9000, "completion": 1500, "untold": 0}, "step": None, "total_steps": None, "loss": None,
    "tokens_per_second": None, "lag_steps": None, "data_card": None, "store_uri": "file:///s",
}  # fmt: skip


def test_status_shows_rows_drops_tokens_and_dollars_of_the_generation() -> None:
    shown = dict(report_view.status_grids(VIEW)[0].rows)
    assert shown["rows kept"] == "50 of 160, 50.0 % accepted"
    assert shown["dropped"] == "similar 49, too_short 1"
    assert (shown["tokens"], shown["teacher"]) == ("10,500: 9,000 prompt + 1,500 completion", "$0.50")
    before = dict(report_view.status_grids({**VIEW, "drops": None, "tokens": None, "teacher_usd": None})[0].rows)
    assert not {"dropped", "tokens", "teacher"} & set(before)


def test_runs_fit_a_narrow_terminal_and_the_store_is_a_column_only_where_there_are_several() -> None:
    done = {**VIEW, "state": "done", "rows": 52_000, "step": 1_218}
    one = report_view.runs_grid([done, {**done, "run_id": "demo-bcdfg"}])
    assert (one.title, one.columns[-1]) == ("Runs in file:///s", ">step")
    assert "demo-x3fkd   done" in drawn(one, width=80)
    two = report_view.runs_grid([done, {**done, "store_uri": "s3://b"}])
    assert (two.title, two.columns[-1], [row[-1] for row in two.rows]) == ("", "store", ["file:///s", "s3://b"])


def test_status_says_which_step_is_being_saved_and_for_how_long() -> None:
    view = {**VIEW, "saving": {"step": 1200, "for_s": 65.0}}
    assert cells(report_view.status_grids(view)[0])["now"] == "step 1,200 is being saved, for 1 min 05 s"
    assert "now" not in cells(report_view.status_grids({**VIEW, "saving": None})[0])


def test_status_says_since_when_a_teacher_is_waited_for_and_when_it_is_asked_again() -> None:
    said = "waiting for the teacher since 2026-11-20 10:00:00 UTC: HTTP 429, too many requests"
    view = {**VIEW, "teacher_wait": {"words": said, "next_try_in_s": 11.6}}
    assert cells(report_view.status_grids(view)[0])["now"] == f"{said}; next try in 12 s"
    view = {**VIEW, "teacher_wait": {"words": said, "next_try_in_s": None}}
    assert cells(report_view.status_grids(view)[0])["now"] == said
    assert "now" not in cells(report_view.status_grids({**VIEW, "teacher_wait": None})[0])


def test_report_splits_time_and_cost() -> None:
    attempts, summary = report_view.report_grids(REPORT)
    written = cells(report_view.report_grids({**REPORT, "accept_rate": 0.64, "drops": {"similar": 90}})[1])
    assert (cells(summary)["rows kept"], "dropped" in cells(summary)) == ("160", False)
    assert (written["rows kept"], written["dropped"]) == ("160, 64.0 % accepted", "similar 90")
    shown = cells(summary)
    assert shown["attempts"] == "2, in local/a, local/b"
    same = cells(report_view.report_grids({**REPORT, "regions": ["local/a", "local/a"]})[1])
    assert same["attempts"] == "2, in local/a"
    assert shown["lost steps"] == "1 in all, 1 at most at once"
    assert shown["outcome"] == "The run is done."
    unsaid = cells(report_view.report_grids({**REPORT, "outcome": "budget", "words": "Enough was spent."})[1])
    assert unsaid["outcome"] == "budget: Enough was spent."
    assert shown["  useful"] == "1 min 15 s (75.0 %)"
    assert shown["  waiting"] == "19 s (19.0 %)"
    away = {**REPORT, "goodput": {**REPORT["goodput"], "teacher_wait_s": 12.0}}
    assert cells(report_view.report_grids(away)[1])["  waiting"] == "19 s (19.0 %), 12 s of it for the teacher"
    assert shown["cost"] == "$1.50 (machines $1.50, teacher $0.0042)"
    assert attempts.rows[0] == ("1", "local/a", "nothing", "step 16", "lost", "31 s", "$0.00")
    assert attempts.rows[1][2:5] == ("step 15", "step 40", "done")


def test_report_and_status_show_speed_mfu_memory_and_what_training_waited_for() -> None:
    pace = {"ranks": 8, "steps": 9, "tokens": 5000, "seconds": 10.0}
    full = {**pace, "mfu": 0.41, "peak_memory_bytes": 2**30, "data_wait_s": 0.2}
    shown = cells(report_view.report_grids({**REPORT, "pace": {"training": full, "generation": None}})[1])
    assert shown["speed"] == "500 tokens/s, MFU 41.0 % over all steps"
    assert shown["memory"] == "1.0 GiB at most on one rank"
    assert shown["stood still"] == "2.0 % of its steps for rows, 1.0 s for saves"
    older = cells(report_view.report_grids({**REPORT, "pace": {"training": pace, "generation": None}})[1])
    assert (older["speed"], older["stood still"]) == ("500 tokens/s over all steps", "1.0 s for saves")
    assert "memory" not in older
    assert "speed" not in cells(report_view.report_grids(REPORT)[1])
    at_work = {"step": 3, "loss": 2.0, "tokens_per_second": 500.0, "lag_steps": 1}
    view = {**VIEW, **at_work, "mfu": 0.41, "peak_memory_bytes": 2**30, "step_s": 2.0, "data_wait_s": 0.1}
    live = cells(report_view.status_grids(view)[0])
    assert (live["speed"], live["memory"]) == ("500 tokens/s, MFU 41.0 % in this step", "1.0 GiB at most on one rank")
    assert live["stood still"] == "5.0 % of the step for rows"


def test_status_and_report_split_each_recovery_and_say_why_a_machine_was_on_demand() -> None:
    recovery = {
        "attempt": 2, "notice_s": 8.0, "buy_s": 13.0, "set_up_s": 58.0, "start_s": 32.0, "ray_s": 3.0, "total_s": 111.0
    }  # fmt: skip
    bought = {**REPORT["attempts"][1], "on_demand": "58 min are left until the deadline"}
    body = {**REPORT, "recoveries": [recovery], "attempts": [ATTEMPT, bought]}
    view = {**VIEW, "recoveries": [recovery], "attempts": body["attempts"]}
    for grid in (report_view.report_grids(body)[1], report_view.status_grids(view)[0]):
        assert cells(grid)["recovery"] == (
            "attempt 2 at work after 1 min 51 s: noticed 8.0 s, another machine 13 s, its set-up 58 s, our start 32 s"
        )
        assert cells(grid)["on demand"] == "attempt 2: 58 min are left until the deadline"


def test_report_and_status_say_from_where_on_the_micro_batch_was_smaller() -> None:
    attempts = [{**ATTEMPT, "micro_batch_size": 4}, {**REPORT["attempts"][1], "micro_batch_size": 2}]
    for grid in (
        report_view.report_grids({**REPORT, "attempts": attempts})[1],
        report_view.status_grids({**VIEW, "attempts": attempts})[0],
    ):
        assert cells(grid)["micro batch"] == "2 rows in place of 4 from attempt 2 on"
    assert "micro batch" not in cells(report_view.report_grids(REPORT)[1]), "nodes of an earlier version"


def test_an_unknown_price_is_a_dash_not_zero() -> None:
    _, summary = report_view.report_grids({**REPORT, "cost_usd": None, "compute_usd": None})
    assert cells(summary)["cost"] == "- (machines -, teacher $0.0042)"


def test_drill_table_ends_with_the_verdict() -> None:
    grid = drill_grid(DRILL)
    assert grid.rows[-1] == ("bit-identical", "yes")
    assert cells(grid)["regions"] == "local/a -> local/b -> local/c"
    assert cells(grid)["kills"] == "2 (1 in step, 1 in save)"
    assert drill_grid({**DRILL, "bit_identical": False}).rows[-1] == ("bit-identical", "no")
    assert "not moved every time" in cells(drill_grid({**DRILL, "regions": ["local/a", "local/a"]}))["regions"]


EXAMPLES = [
    "demo",
    "alpaca-7b",
    "alpaca-13b",
    "alpaca-lora",
    "opt-6.7b",
    "trl-sft",
    "vicuna-7b",
    "zh-alpaca",
    "zh-pretrain",
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_shows_a_plan_with_its_price(example: str) -> None:
    from alpaca_jobs.examples import example_text
    from alpaca_jobs.spec_io import parse_job

    job = parse_job(example_text(example), example)
    plan = plan_launch(job, run_id=f"{job.name}-x3fkd", offers=offers_for(job))
    summary, places = plan_grids(plan)
    assert summary.title == f"Plan for {job.name}-x3fkd"
    assert all("$" in row[-1] and row[-1].endswith("/h") for row in places.rows)
    assert places.rows[0][-1] in question(plan)
    assert len(places.rows) <= 10


def test_cells_are_text_and_never_markup() -> None:
    assert "[red]x[/red]" in drawn(render.Grid(("a",), (("[red]x[/red]",),)))


PLACES = render.Grid(
    ("try", "where", "machine", ">time p10", ">p50", ">cost p10", ">p50"),
    (
        (
            "1",
            "aws/eu-central-1-az2",
            "p4de.24xlarge (A100-80GB:8)",
            "43 min 09 s",
            "53 min 47 s",
            "$1,007.64",
            "$1,010.17",
        ),
    ),
    title="Estimate",
)


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 150])
def test_no_number_and_no_name_is_cut_off_in_a_narrow_terminal(width: int) -> None:
    shown = drawn(PLACES, width)
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    together = "".join(shown.split())
    assert all(number in shown for number in ("$1,007.64", "$1,010.17"))
    assert "43min09s" in together
    if width < 80:
        assert "machinep4de.24xlarge(A100-80GB:8),timep1043min09s,p5053min47s" in together


def test_titles_do_not_wrap_to_the_width_of_the_table() -> None:
    assert "A title that is longer than its table" in drawn(
        render.pairs("A title that is longer than its table", [("a", "b")])
    )


def test_json_has_null_for_a_number_that_json_has_no_word_for(capsys: pytest.CaptureFixture[str]) -> None:
    body = {"town": "Łódź", "losses": [(1, float("nan")), (2, float("inf"))], "loss": 0.5}
    render.out_json(body)
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"town": "Łódź", "losses": [[1, None], [2, None]], "loss": 0.5}
    assert "Łódź" in shown
    assert json.loads(render.json_line(body)) == json.loads(shown)


@pytest.mark.parametrize(("max_usd", "is_told"), [(None, False), (9.9, True), (10.0, False)])
def test_a_budget_that_the_rows_would_use_up_before_training_is_told_before(
    max_usd: float | None, is_told: bool
) -> None:
    stages = [SimpleNamespace(name="rows", cost_usd=Quantiles(3.0, 4.0, 5.0))]
    stages.append(SimpleNamespace(name="training", cost_usd=Quantiles(5.0, 6.0, 9.0)))
    job = SimpleNamespace(limits=SimpleNamespace(max_usd=max_usd))
    found: Any = SimpleNamespace(plan=SimpleNamespace(job=job), candidates=[SimpleNamespace(stages=stages)])
    told = estimate_view.training_limit_words(found)
    assert bool(told) == is_told
    assert not told or "$9.90, less the $4.00 that the rows are expected to cost, does not pay the $6.00" in told[0]
    stages[1] = SimpleNamespace(name="training", cost_usd=None)
    assert estimate_view.training_limit_words(found) == [], "a price that is not known"
