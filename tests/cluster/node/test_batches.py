"""The Batch API through the whole stage: killed at every awkward moment, cancelled, expired, refused; the same rows."""

from __future__ import annotations

import json
import os
import runpy
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.errors import BudgetExceeded, TeacherError, TeacherRateLimited
from alpaca_jobs.generation.offline_batches import OfflineBatches
from alpaca_jobs.generation.offline_teacher import OfflineTeacher, serve
from alpaca_jobs.spec import JobSpec
from checkpoints.store import Store
from cluster.exits import Notice
from cluster.node.attempt_context import Interruption
from cluster.node.inputs import freeze_inputs
from cluster.node.offline_server import offline_state
from cluster.recovery import StopReason

pytestmark = pytest.mark.process

_helper = runpy.run_path(str(Path(__file__).with_name("row_run.py")), run_name="row_run")
RowRun, read_log, billed_usd = (_helper[name] for name in ("RowRun", "read_log", "billed_usd"))
_driver = runpy.run_path(str(Path(__file__).with_name("row_driver.py")), run_name="row_driver")
generate_rows = _driver["generate_rows"]

ROWS = 40
CENT = 1e-9


class Provider(OfflineBatches):
    """The offline provider with a hand in it: `before` and `after` are called with every request's method and parts."""

    before: Callable[[tuple[str, ...], bytes], Any] = staticmethod(lambda what, raw: None)
    after: Callable[[tuple[str, ...]], None] = staticmethod(lambda what: None)

    def handle(self, method: str, path: str, query: Any, raw: bytes, content_type: str) -> Any:
        what = (method, *path.strip("/").split("/")[1:])
        instead = self.before(what, raw)
        found = instead if instead is not None else super().handle(method, path, query, raw, content_type)
        self.after(what)
        return found


@contextmanager
def providing(folder: Path, *, batch_s: float = 0.3) -> Iterator[tuple[OfflineTeacher, Provider]]:
    with serve(log=folder / "asked.jsonl", refuses_some=False) as server:
        server.batches = Provider(folder / "provider", server._answer_line, batch_s=batch_s)
        yield server, server.batches


def make_run(
    folder: Path,
    server: OfflineTeacher,
    name: str = "run",
    *,
    budget_usd: float = 9.0,
    num_rows: int = ROWS,
    **more: Any,
) -> Any:
    return RowRun(folder, name, server.base_url, num_rows, budget_usd, **{"batch_requests": 3, **more})


def here(run: Any) -> Any:
    """Run one attempt in this process."""
    run.attempts += 1
    return generate_rows(run.root, run.name, run.attempts, run.scratch)


def answered(folder: Path) -> list[str]:
    return [entry["prompt"] for entry in read_log(folder / "asked.jsonl") if entry["status"] == 200]


MOMENTS = {
    "the file is sent": ("after", ("POST", "files")),
    "the batch is asked for and not made": ("before", ("POST", "batches")),
    "the batch is made and its id not known": ("after", ("POST", "batches")),
    "the batch is looked at": ("after", ("GET", "batches")),
    "the output is read": ("before", ("GET", "files")),
    "the files are deleted": ("after", ("DELETE", "files")),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS, ids=[name.replace(" ", "-") for name in MOMENTS])
def test_killed_when(tmp_path: Path, moment: str) -> None:
    """Whatever was going on, the next attempt reads what there is, asks for the rest, and nothing is billed twice."""
    when, wanted = MOMENTS[moment]
    with providing(tmp_path) as (server, provider):
        run = make_run(tmp_path, server)
        kills: list[int] = []

        def kill(what: tuple[str, ...], raw: bytes = b"") -> Any:
            if not kills and what[: len(wanted)] == wanted:
                kills.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                return (500, {}) if when == "before" else None
            return None

        setattr(provider, when, kill)
        process = run.start()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "run.log").read_text()[-2000:]
        assert kills
        here(run)
        live = make_run(tmp_path, server, "live", batch_requests=0)
        asked = answered(tmp_path)
        here(live)
    assert run.rows() == live.rows()
    assert len(run.rows()) == ROWS
    assert len(asked) == len(set(asked)), "a request was paid twice"
    assert billed_usd(read_log(tmp_path / "asked.jsonl")[: len(asked)], share=0.5) <= run.spent_usd() + CENT


def test_a_batch_asked_for_by_a_killed_attempt_is_refused_when_it_comes_late(tmp_path: Path) -> None:
    """The request to make a batch is still on its way when the next attempt looks for it: its file is gone by then."""
    late: list[tuple[str, bytes]] = []
    with providing(tmp_path) as (server, provider):
        run = make_run(tmp_path, server)

        def hold(what: tuple[str, ...], raw: bytes) -> Any:
            if what == ("POST", "batches") and not late:
                late.append((json.loads(raw)["input_file_id"], raw))
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                return 500, {}
            return None

        provider.before = hold
        process = run.start()
        assert process.wait() == -signal.SIGKILL
        here(run)
        ((_, raw),) = late
        status, reply = provider.handle("POST", "/v1/batches", {}, raw, "application/json")
        asked = answered(tmp_path)
    assert status == 400
    assert "No such file" in reply["error"]["message"]
    assert len(asked) == len(set(asked))


def test_a_lost_answer_to_making_a_batch_makes_no_second_one(tmp_path: Path) -> None:
    with providing(tmp_path) as (server, provider):
        lost: list[str] = []
        make = provider.handle

        def lose(what: tuple[str, ...], raw: bytes) -> Any:
            if what == ("POST", "batches") and not lost:
                lost.append("")
                make("POST", "/v1/batches", {}, raw, "application/json")
                return 502, {"error": {"message": "bad gateway"}}
            return None

        provider.before = lose
        run = make_run(tmp_path, server)
        here(run)
        asked = answered(tmp_path)
    assert len(run.rows()) == ROWS
    assert len(asked) == len(set(asked))


def end_as(provider: Provider, status: str, **fields: Any) -> list[str]:
    """Have the first batch end in another way; returns a list that holds its id once it has."""
    ended: list[str] = []

    def look(what: tuple[str, ...], raw: bytes) -> Any:
        if len(what) == 3 and what[:2] == ("GET", "batches") and what[2] not in ended[1:]:
            if ended and ended[0] != what[2]:
                return None
            path = provider._batches / f"{what[2]}.json"
            body = json.loads(path.read_text())
            if not ended:
                ended.append(what[2])
                if status != "failed":
                    provider._work(body, share=0.4, status=status)
                path.write_text(json.dumps({**body, "status": status, **fields}))
        return None

    provider.before = look
    return ended


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_what_a_batch_leaves_unanswered_is_asked_again_and_only_that(tmp_path: Path, status: str) -> None:
    with providing(tmp_path, batch_s=0.1) as (server, provider):
        ended = end_as(provider, status)
        run = make_run(tmp_path, server)
        here(run)
        asked = answered(tmp_path)
    assert ended
    assert len(run.rows()) == ROWS
    assert len(asked) == len(set(asked))


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    problem = {"data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached.", "line": None}]}
    with providing(tmp_path, batch_s=0.1) as (server, provider):
        ended = end_as(provider, "failed", errors=problem)
        run = make_run(tmp_path, server)
        here(run)
    assert ended
    assert len(run.rows()) == ROWS


def test_a_batch_that_the_provider_will_not_have_ends_the_attempt_in_words_and_a_resume_asks_anew(
    tmp_path: Path,
) -> None:
    problem = {"data": [{"code": "invalid_model", "message": "No batches with this model.", "line": 1}]}
    with providing(tmp_path, batch_s=0.1) as (server, provider):
        end_as(provider, "failed", errors=problem)
        run = make_run(tmp_path, server, batch_requests=50)
        with pytest.raises(TeacherError, match=r"batch batch_\w+ failed: invalid_model: No batches with this model"):
            here(run)
        here(run)
    assert len(run.rows()) == ROWS


def test_a_queue_that_stays_full_is_a_rate_limit_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.node.batch_actor.FIRST_PAUSE_S", 0.0)
    problem = {"data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached.", "line": None}]}
    with providing(tmp_path, batch_s=0.1) as (server, provider):

        def look(what: tuple[str, ...], raw: bytes) -> Any:
            if len(what) == 3 and what[:2] == ("GET", "batches"):
                body = json.loads((provider._batches / f"{what[2]}.json").read_text())
                return 200, {**body, "status": "failed", "errors": problem}
            return None

        provider.before = look
        run = make_run(tmp_path, server, batch_requests=50)
        with pytest.raises(TeacherRateLimited, match=r"Enqueued token limit reached.*lower teacher.batch_requests"):
            here(run)
    assert answered(tmp_path) == []


def test_a_cancelled_run_cancels_its_batches_and_a_resume_pays_for_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interruption = Interruption()
    with providing(tmp_path, batch_s=60.0) as (server, provider):
        run = make_run(tmp_path, server)
        made = [0]

        def count(what: tuple[str, ...]) -> None:
            made[0] += what == ("POST", "batches")
            if what[:2] == ("GET", "batches") and made[0]:
                interruption.notify(Notice(StopReason.CANCELLED, 20.0))

        provider.after = count
        monkeypatch.setitem(generate_rows.__globals__, "Interruption", lambda: interruption)
        here(run)
        states = [json.loads(path.read_text())["status"] for path in provider._batches.glob("*.json")]
        assert states
        assert set(states) == {"cancelled"}
        provider.after, provider.batch_s = (lambda what: None), 0.1
        monkeypatch.setitem(generate_rows.__globals__, "Interruption", Interruption)
        here(run)
        asked = answered(tmp_path)
        live = make_run(tmp_path, server, "live", batch_requests=0)
        here(live)
    assert run.rows() == live.rows()
    assert len(asked) == len(set(asked))


def test_batches_are_reserved_at_half_the_price_and_the_budget_holds(tmp_path: Path) -> None:
    with providing(tmp_path, batch_s=0.1) as (server, _):
        run = make_run(tmp_path, server, budget_usd=0.06, num_rows=400)
        with pytest.raises(BudgetExceeded, match=r"limits\.teacher_max_usd is 0\.06"):
            here(run)
        bill = billed_usd(read_log(tmp_path / "asked.jsonl"), share=0.5)
    store = Store.open(f"file://{tmp_path}/store").child("run")
    first = json.loads(store.get("ledger/attempt-000001/batch-000001.json"))["requests"][0]
    assert 0.5 * 3 * 3072 * 2 / 1e6 < first["worst_case_usd"] < 0.5 * 3 * (3072 * 2 + 8000) / 1e6
    assert 0 < bill <= run.spent_usd() + CENT <= 0.06 + 2 * CENT
    assert run.rows(), "what was paid for is committed before the stage gives up"


def test_the_offline_word_works_end_to_end_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with serve() as server:
        job = make_run(tmp_path, server, "template").job.model_dump(mode="json", by_alias=True)
    job["data"]["teacher"] = "offline-batch"
    store = Store.open(f"file://{tmp_path}/words")
    name = f"word-{os.getpid()}"
    store.child(name).put_once("job.json", {"job": job})
    freeze_inputs(JobSpec.model_validate(job), store.child(name))
    state = generate_rows(store.uri, name, 1, tmp_path / "scratch")
    assert len(state.rows) == ROWS
    assert store.child(name).exists("ledger/attempt-000001/batch-000001.done.json")
    assert not offline_state(name).exists()
