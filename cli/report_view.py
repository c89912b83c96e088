"""A run's report, its attempts and how it stands, as tables. Pure; reads the JSON that `--json` prints."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from cli import render, words

_STATES = {"review": "waiting for your review"}


def report_grids(report: Mapping[str, Any]) -> list[render.Grid]:
    """The attempts, then what they came to."""
    goodput = report["goodput"]
    wall_s = goodput["wall_s"]
    rows = [
        ("outcome", _outcome(report["outcome"], report["words"])),
        ("attempts", f"{len(report['attempts'])}, in {', '.join(dict.fromkeys(report['regions']))}"),
        ("lost steps", f"{sum(report['lost_steps'])} in all, {report['lost_steps_max']} at most at once"),
    ]
    rows += _turns(report)
    if report["rows"] is not None:
        rows += _kept(report, words.number(report["rows"]))
    if report["step"] is not None:
        rows.append(("steps", words.number(report["step"])))
    rows += _pace(report.get("pace") or {}, goodput["saving_s"])
    if saves := report.get("saves"):
        rows.append(("saves", _saves(saves)))
    if evaluated := report.get("evaluated"):
        last = dict(zip(("step", "loss"), evaluated["losses"][-1], strict=True))
        rows.append(("evaluation", words.evaluation({**evaluated, **last})))
    if report["requests"]:
        asked, again = words.number(report["requests"]), words.number(report["requests_repeated"])
        rows.append(("requests", f"{asked}, {again} of them asked again"))
    rows.append(("time", words.duration(wall_s)))
    for name in ("useful", "lost", "waiting", "saving"):
        seconds = goodput[f"{name}_s"]
        shown = f"{words.duration(seconds)} ({words.share(seconds, wall_s)})"
        if name == "waiting" and goodput.get("teacher_wait_s"):
            shown += f", {words.duration(goodput['teacher_wait_s'])} of it for the teacher"
        rows.append((f"  {name}", shown))
    rows.append(
        (
            "cost",
            f"{words.money(report['cost_usd'])} (machines {words.money(report['compute_usd'])}, "
            f"teacher {words.money(report['teacher_usd'])})",
        )
    )
    return [attempts_grid(report["attempts"]), render.pairs(f"Report of {report['run_id']}", rows)]


def _outcome(outcome: str, said: str) -> str:
    """How a run ended and why; the one word is left out where the sentence has it."""
    return said if outcome in re.findall(r"\w+", said.lower()) else f"{outcome}: {said}"


def _kept(body: Mapping[str, Any], rows: str) -> list[tuple[str, str]]:
    """Rows that were kept, and what became of all else that the teacher wrote, of a report or a view."""
    rate, drops = body.get("accept_rate"), body.get("drops") or {}
    kept = [("rows kept", rows if rate is None else f"{rows}, {words.share(rate)} accepted")]
    return [*kept, ("dropped", words.drops(drops))] if any(drops.values()) else kept


def _pace(pace: Mapping[str, Any], saving_s: float) -> list[tuple[str, str]]:
    """How fast training was, what memory it took, and what it waited for; a report of an earlier version says less."""
    training = pace.get("training")
    if not training:
        return []
    seconds = training["seconds"]
    rows = [("speed", f"{words.speed(training['tokens'] / seconds, training.get('mfu'))} over all steps")]
    if memory := training.get("peak_memory_bytes"):
        rows.append(("memory", words.memory(memory)))
    still = f"{words.duration(saving_s)} for saves"
    if (waited := training.get("data_wait_s")) is not None:
        still = f"{words.share(waited, seconds)} of its steps for rows, {still}"
    return [*rows, ("stood still", still)]


def _saves(saves: Mapping[str, Any]) -> str:
    """How many there were, what they took as a rule, and what the slowest did."""
    usual = f"{words.size(round(saves['stored_bytes_median']))} in {words.duration(saves['seconds_median'])} as a rule"
    slowest = f"step {words.number(saves['slowest_step'])} in {words.duration(saves['seconds_max'])} at the slowest"
    still = f"training stood still {saves['stall_s_median']:.2f} s, {saves['stall_s_max']:.2f} s at most"
    behind = (
        f"; {words.plural(saves['lag_steps_max'], 'step')} trained meanwhile at most" if saves["lag_steps_max"] else ""
    )
    skipped = f"; {saves['skipped']} skipped, as the one before was under way" if saves["skipped"] else ""
    return f"{saves['committed']}: {usual}, {slowest}; {still}{behind}{skipped}"


def _turns(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What each recovery took, and why machines were on demand, of a report or a view."""
    rows = [("recovery", _recovery(one)) for one in body.get("recoveries", ())]
    for before, after in pairwise(body["attempts"]):
        sizes = before.get("micro_batch_size"), after.get("micro_batch_size")
        if None not in sizes and sizes[0] != sizes[1]:
            rows.append(("micro batch", f"{sizes[1]} rows in place of {sizes[0]} from attempt {after['number']} on"))
    bought = [one for one in body["attempts"] if one.get("on_demand")]
    return rows + [("on demand", f"attempt {one['number']}: {one['on_demand']}") for one in bought]


def _recovery(one: Mapping[str, Any]) -> str:
    names = {"notice_s": "noticed", "buy_s": "another machine", "set_up_s": "its set-up", "start_s": "our start"}
    parts = [f"{word} {words.duration(one[name])}" for name, word in names.items() if one[name] is not None]
    return f"attempt {one['attempt']} at work after {words.duration(one['total_s'])}: {', '.join(parts)}"


def attempts_grid(attempts: Sequence[Mapping[str, Any]]) -> render.Grid:
    """One line per attempt: where, from what to what, how it ended."""
    return render.Grid(
        (">attempt", "where", "started from", "came to", "ended by", ">after", ">cost"),
        tuple(
            (
                str(one["number"]),
                one["place"] or words.MISSING,
                _position(one["base"]),
                _reached(one["reached"]),
                one["stop_reason"] or "still running",
                words.duration(one["seconds"] or None),
                words.money(one["cost_usd"]),
            )
            for one in attempts
        ),
    )


def status_grids(view: Mapping[str, Any]) -> list[render.Grid]:
    """How a run stands now."""
    rows = [
        ("state", _STATES.get(view["state"], view["state"])),
        ("launched", view["launched_at"]),
        ("last word", view["updated_at"] or words.MISSING),
    ]
    if view["words"]:
        rows.append(("says", view["words"]))
    if view["place"]:
        rows.append(("in", view["place"]))
    if view["rows"] is not None:
        target = f" of {view['target_rows']:,}" if view["target_rows"] else ""
        rows += _kept(view, f"{view['rows']:,}{target}")
    if view.get("tokens"):
        rows.append(("tokens", words.tokens(view["tokens"])))
    if view.get("teacher_usd"):
        rows.append(("teacher", words.money(view["teacher_usd"])))
    if view.get("teacher_wait"):
        rows.append(("now", words.teacher_wait(view["teacher_wait"])))
    if view.get("saving"):
        rows.append(("now", words.saving(view["saving"])))
    if view["step"] is not None:
        total = f" of {view['total_steps']:,}" if view["total_steps"] else ""
        rows.append(("step", f"{view['step']:,}{total}, loss {words.number(view['loss'], 4)}"))
        rows.append(("speed", f"{words.speed(view['tokens_per_second'], view.get('mfu'))} in this step"))
        if view.get("peak_memory_bytes"):
            rows.append(("memory", words.memory(view["peak_memory_bytes"])))
        if view.get("data_wait_s") is not None and view.get("step_s"):
            waited = words.share(view["data_wait_s"], view["step_s"])
            rows.append(("stood still", f"{waited} of the step for rows"))
        rows.append(("unsaved", words.plural(view["lag_steps"] or 0, "step")))
    if view.get("evaluated"):
        rows.append(("evaluation", words.evaluation(view["evaluated"])))
    rows += _turns(view)
    if view["data_card"]:
        rows.append(("data card", view["data_card"]))
    rows.append(("committed", _position(view["newest_commit"])))
    rows.append(("store", f"{view['store_uri']}/{view['run_id']}"))
    grids = [render.pairs(view["run_id"], rows)]
    return [*grids, attempts_grid(view["attempts"])] if view["attempts"] else grids


def runs_grid(views: Sequence[Mapping[str, Any]]) -> render.Grid:
    """One line per run; a store that all of them are in is said once."""
    stores = {view["store_uri"] for view in views}
    return render.Grid(
        ("run", "state", "launched", ">attempts", "where", ">rows", ">step", *(("store",) if len(stores) > 1 else ())),
        tuple(
            (
                view["run_id"],
                _STATES.get(view["state"], view["state"]),
                view["launched_at"][:16].replace("T", " "),
                str(len(view["attempts"])),
                view["place"] or words.MISSING,
                words.number(view["rows"]),
                words.number(view["step"]),
                *((view["store_uri"],) if len(stores) > 1 else ()),
            )
            for view in views
        ),
        title=f"Runs in {next(iter(stores))}" if len(stores) == 1 else "",
    )


def _position(commit: Mapping[str, Any] | None) -> str:
    if commit is None:
        return "nothing"
    unit = {"train": "step", "generate": "part"}.get(commit["stage"])
    return f"{unit} {commit['position']}" if unit else str(commit["stage"])


def _reached(reached: Sequence[Any] | None) -> str:
    return words.MISSING if not reached else _position({"stage": reached[0], "position": reached[1]})
