"""Translating a file with a real server: killed and started again, budgets that are kept, tries that are bounded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.data.record_files import Record
from alpaca_jobs.data.translate import make_units
from alpaca_jobs.errors import BudgetExceeded, DataError, TeacherGarbage
from alpaca_jobs.generation.offline_spec import OFFLINE_MODEL
from alpaca_jobs.generation.offline_teacher import OfflineTeacher, running, serve
from alpaca_jobs.spec import TeacherSpec
from cluster.launch.translating import Progress, Translated, expected_usd, translate_records

pytestmark = pytest.mark.process

ROWS = [
    {"id": number, "instruction": f"Tell me of {number + 100} in `code{number}`.", "input": "", "output": "It is nice."}
    for number in range(40)
]  # fmt: skip


def records() -> list[Record]:
    return [Record(f"rows.json item {place}", row) for place, row in enumerate(ROWS, start=1)]


def spec(url: str, price: float = 1000.0) -> TeacherSpec:
    return TeacherSpec(
        model=OFFLINE_MODEL, base_url=url, api_key_env=None, price_per_million_input_usd=price,
        price_per_million_output_usd=price,
    )  # fmt: skip


def run(state: Path, teacher: TeacherSpec | str, *, max_usd: float | None = None, **changes: Any) -> Translated:
    told: list[Progress] = []
    given = {"language": "pt", "source": "en", "concurrency": 4, "on_progress": told.append, **changes}
    found = translate_records(records(), teacher=teacher, state=state, max_usd=max_usd, **given)
    assert told[-1].done == told[-1].units
    return found


def asked(log: Path) -> list[str]:
    return [entry["digest"] for line in log.read_text().splitlines() if (entry := json.loads(line))["status"] == 200]


def test_rows_keep_their_order_ids_and_code_and_a_second_start_asks_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serve(log=log, refuses_some=False) as server:
        first = run(tmp_path / "state", spec(server.base_url, 0.0))
        sent = len(asked(log))
        again = run(tmp_path / "state", spec(server.base_url, 0.0))
    kept = [row["id"] for row in first.rows]
    assert kept == [row["id"] for row in ROWS if row["id"] not in {one.fields["id"] for one in first.dropped}]
    assert all(f"`code{row['id']}`" in row["instruction"] for row in first.rows)
    assert all("[demo Portuguese]" in row["instruction"] for row in first.rows)
    assert sum(first.progress.again.values()) > 0  # the demo teacher errs on purpose
    assert (again.rows, again.progress.asked, len(asked(log))) == (first.rows, 0, sent)


def test_answers_that_stay_bad_are_dropped_with_their_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alpaca_jobs.generation.offline_translation.FLAW_SHARE", 1.0)
    with serve(log=tmp_path / "log", refuses_some=False) as server:
        found = run(tmp_path / "state", spec(server.base_url, 0.0))
    assert found.rows == []
    assert len(found.dropped) == len(ROWS)
    assert {one.reason for one in found.dropped} <= {"empty", "cut_off", "untranslated", "malformed"}
    assert found.dropped[3].where == "rows.json item 4"
    assert len(asked(tmp_path / "log")) == 3 * len(ROWS)  # bounded


class RefusingTeacher(OfflineTeacher):
    """Refuses one text with a 400 of a real server's, however often it is asked."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(refuses_some=False)
        self.error, self.refused = error, 0

    def answer(self, body: dict[str, Any], *, is_chat: bool) -> tuple[int, dict[str, Any], dict[str, str]]:
        if "Tell me of 107 " in body["messages"][0]["content"]:
            self.refused += 1
            return 400, {"error": self.error}, {}
        return super().answer(body, is_chat=is_chat)


def test_a_row_that_the_provider_refuses_is_left_out_and_the_others_are_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alpaca_jobs.generation.offline_translation.FLAW_SHARE", 0.0)
    as_deepseek = {"message": "Content Exists Risk", "code": "invalid_request_error"}
    with running(RefusingTeacher(as_deepseek)) as server:
        found = run(tmp_path / "state", spec(server.base_url, 0.0))
    assert [(one.place, one.reason) for one in found.dropped] == [(7, "refused")]
    assert len(found.rows) == len(ROWS) - 1


def test_a_row_that_is_longer_than_the_models_context_is_left_out_and_the_others_are_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alpaca_jobs.generation.offline_translation.FLAW_SHARE", 0.0)
    as_vllm = {"message": "This model's maximum context length is 40 tokens", "code": 400}
    with running(RefusingTeacher(as_vllm)) as server:
        found = run(tmp_path / "state", spec(server.base_url, 1.0))
        refused = server.refused
        again = run(tmp_path / "state", spec(server.base_url, 1.0))
        assert server.refused == refused, "no prompt is shorter the second time, and none is asked again"
    assert [(one.place, one.where, one.reason) for one in found.dropped] == [(7, "rows.json item 8", "too_long")]
    assert len(found.rows) == len(ROWS) - 1
    assert (again.rows, again.dropped) == (found.rows, found.dropped)
    assert again.progress.spent_usd == pytest.approx(found.progress.spent_usd)


def test_a_teacher_that_translates_nothing_is_not_paid_for_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alpaca_jobs.generation.offline_translation.FLAW_SHARE", 1.0)
    monkeypatch.setattr("cluster.launch.translating.MAX_BARREN_ANSWERS", 20)
    with serve(log=tmp_path / "log", refuses_some=False) as server:
        for _ in range(2):
            with pytest.raises(TeacherGarbage, match=r"None of the first 20 answers of offline-demo is a translation"):
                run(tmp_path / "state", spec(server.base_url, 0.0))
            assert len(asked(tmp_path / "log")) <= 20 + 4, "and those under way; a second start finds them"


def test_the_budget_is_never_crossed_and_what_was_paid_is_kept(tmp_path: Path) -> None:
    log, limit = tmp_path / "log", 6.0
    with serve(log=log, refuses_some=False) as server:
        teacher = spec(server.base_url).model_copy(update={"max_tokens": 300})  # a chat reserves all of it
        with pytest.raises(BudgetExceeded, match=r"budget is used up.*--max-usd is 6\. Start it again"):
            run(tmp_path / "state", teacher, max_usd=limit)
        usage = [json.loads(line)["usage"]["total_tokens"] for line in log.read_text().splitlines()]
        assert 0 < sum(usage) * 1000 / 1e6 <= limit
        paid = len(usage)
        found = run(tmp_path / "state", teacher, max_usd=1000.0)
    assert found.progress.found == paid  # nothing is paid twice
    assert len(asked(log)) == len(set(asked(log)))


def test_without_a_price_a_budget_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with serve(log=tmp_path / "log") as server:
        teacher = TeacherSpec(model=OFFLINE_MODEL, base_url=server.base_url, api_key_env=None)
        with pytest.raises(BudgetExceeded, match="price of offline-demo is unknown"):
            run(tmp_path / "state", teacher, max_usd=1.0)
        assert not (tmp_path / "log").exists()
        assert expected_usd(make_units(records()), teacher, language="pt") is None
        assert expected_usd(make_units(records()), spec("http://127.0.0.1:1/v1"), language="pt") == pytest.approx(
            9.5, rel=0.5
        )


def test_a_folder_serves_one_translation(tmp_path: Path) -> None:
    with serve(refuses_some=False) as server:
        run(tmp_path / "state", spec(server.base_url, 0.0))
        with pytest.raises(DataError, match="another translation"):
            run(tmp_path / "state", spec(server.base_url, 0.0), language="ja")


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_file(tmp_path: Path) -> None:
    """Only what was under way at a kill is asked again: at most `concurrency` requests a kill."""
    log, kills, concurrency = tmp_path / "log", 2, 4
    source = tmp_path / "rows.json"
    source.write_text(json.dumps(ROWS[:24]))
    environ = {**os.environ, "ALPACA_JOBS_OFFLINE_LOG": str(log)}
    command = [
        sys.executable, "-c", "from cli.entry import run; run()", "data", "translate", str(source), "OUT",
        "--to", "pt", "--offline", "--json",
        "--concurrency", str(concurrency),
    ]  # fmt: skip

    def start(out: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(tmp_path / out) if word == "OUT" else word for word in command], env=environ, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    calm = start("calm.json")
    calm.communicate(timeout=120)
    assert calm.returncode == 0
    once = len(asked(log))
    for number in range(kills):
        rough = start("rough.json")
        target = once + 8 * (number + 1)
        until = time.monotonic() + 60
        while len(asked(log)) < target and rough.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        os.killpg(rough.pid, signal.SIGKILL)
        rough.communicate()
    rough = start("rough.json")
    said, _ = rough.communicate(timeout=120)
    assert rough.returncode == 0
    assert (tmp_path / "rough.json").read_bytes() == (tmp_path / "calm.json").read_bytes()
    assert json.loads(said)["from_before"] > 0
    assert len(asked(log)) - once <= once + kills * concurrency
