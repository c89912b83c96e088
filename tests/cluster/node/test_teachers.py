"""Every kind of OpenAI-compatible server, asked by the real client through the whole stage: the same rows from each.

Each is the built-in server in another's clothes. Its answers depend on the request alone, so that a row too few or too
many, whatever the server did in between, shows.
"""

from __future__ import annotations

import json
import random
import runpy
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.data.rows import Row
from alpaca_jobs.errors import BudgetExceeded, TeacherUnreachable, TeacherWithoutSchemas
from alpaca_jobs.generation import offline_teacher
from alpaca_jobs.generation.offline_tasks import make_task
from alpaca_jobs.generation.offline_teacher import OfflineTeacher, running
from alpaca_jobs.generation.teacher_request import TeacherRequest
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from checkpoints.attempts import AttemptLog
from checkpoints.lineage import counting_commits
from checkpoints.reader import list_commits
from checkpoints.store import Store
from cluster.event_reading import read_events
from cluster.node import generate_stage
from cluster.node.generate_stage import GeneratedRows
from cluster.node.ledger import Ledger, count_asked
from cluster.node.limits import TeacherLimit
from cluster.node.teacher_waits import teacher_waits
from cluster.runs.report import newest_part

pytestmark = pytest.mark.process

Answer = tuple[int, dict[str, Any], dict[str, str]]
generate_rows = runpy.run_path(str(Path(__file__).with_name("row_driver.py")))["generate_rows"]
lay_down = runpy.run_path(str(Path(__file__).with_name("row_run.py")), run_name="row_run")["lay_down"]


class VllmTeacher(OfflineTeacher):
    """Flat error objects with a number for a code, more fields, no headers about limits."""

    def answer(self, body: dict[str, Any], *, is_chat: bool) -> Answer:
        status, reply, _ = super().answer(body, is_chat=is_chat)
        if status == 200:
            choice = reply["choices"][0]
            choice.update(stop_reason=None, prompt_logprobs=None)
            extra = {"prompt_tokens_details": None, "total_tokens": sum(reply["usage"].values())}
            return 200, {**reply, "usage": {**reply["usage"], **extra}, "kv_transfer_params": None}, {}
        words = reply["error"]["message"]
        return (
            status,
            {"object": "error", "message": words, "type": "BadRequestError", "param": None, "code": status},
            {},
        )


class SilentTeacher(OfflineTeacher):
    """No usage numbers."""

    def answer(self, body: dict[str, Any], *, is_chat: bool) -> Answer:
        status, reply, headers = super().answer(body, is_chat=is_chat)
        return status, {name: value for name, value in reply.items() if name != "usage"}, headers


class MoodyTeacher(OfflineTeacher):
    """Every request is first answered with nonsense: an error as a stream of events, a page, half an answer, null."""

    MOODS = (
        ("text/event-stream", b'data: {"error": {"message": "overloaded", "code": 503}}\n\ndata: [DONE]\n\n'),
        ("text/html", b"<html>502</html>"),
        ("application/json", b'{"choices": [{"text": "4. Instr'),
        ("application/json", b'{"choices": [{"text": null, "finish_reason": "stop"}]}'),
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(refuses_some=False, **options)
        self.RequestHandlerClass = _MoodyHandler
        self.seen: set[str] = set()

    def mood(self, body: dict[str, Any]) -> tuple[str, bytes] | None:
        """What to answer the first time a request comes."""
        key = json.dumps(body, sort_keys=True)
        if key in self.seen:
            return None
        self.seen.add(key)
        return self.MOODS[len(self.seen) % len(self.MOODS)]


class _MoodyHandler(offline_teacher._Handler):
    server: MoodyTeacher

    def _send(self, status: int, reply: dict[str, Any], headers: dict[str, str]) -> None:
        mood = self.server.mood(reply["choices"][0]) if status == 200 else None
        if mood is None:
            return super()._send(status, reply, headers)
        self.send_response(200)
        self.send_header("content-type", mood[0])
        self.send_header("content-length", str(len(mood[1])))
        self.end_headers()
        self.wfile.write(mood[1])


class StubbornTeacher(OfflineTeacher):
    """One request in three is answered with nothing but an empty text, however often it is asked."""

    def answer(self, body: dict[str, Any], *, is_chat: bool) -> Answer:
        status, reply, headers = super().answer(body, is_chat=is_chat)
        if status == 200 and int(reply["id"][-2:], 16) % 3 == 0:
            reply["choices"][0].update({"message": {"content": ""}} if is_chat else {"text": ""})
        return status, reply, headers


class JsonTeacher(OfflineTeacher):
    """Answers in the form of a JSON schema, as a chat model with structured output does, from the rule-based tasks."""

    def answer(self, body: dict[str, Any], *, is_chat: bool) -> Answer:
        form = body.pop("response_format", None)
        status, reply, headers = super().answer(body, is_chat=is_chat)
        if status != 200 or form is None:
            return status, reply, headers
        rng = random.Random(reply["id"])
        fields = form["json_schema"]["schema"]["properties"]
        tasks = [dict(zip(("instruction", "input", "output"), make_task(rng), strict=True)) for _ in range(8)]
        said: dict[str, Any] = {
            "tasks": tasks,
            "instructions": [task["instruction"] for task in tasks],
            "is_classification": rng.random() < 0.3,
            "instances": [{"input": task["input"], "output": task["output"]} for task in tasks[:2]],
        }
        reply["choices"][0]["message"]["content"] = json.dumps({name: said[name] for name in fields})
        reply["choices"][0]["finish_reason"] = "stop"
        return status, reply, headers


class ForgetfulTeacher(JsonTeacher):
    """Takes schemas for its first `patience` requests, then refuses every one that has any, as another model would."""

    patience = 3.0

    def answer(self, body: dict[str, Any], *, is_chat: bool) -> Answer:
        self.patience -= 1
        if self.patience < 0 and "response_format" in body:
            words = "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."
            return 400, {"error": {"message": words, "code": None, "param": None}}, {}
        return super().answer(body, is_chat=is_chat)


class AbsentTeacher(OfflineTeacher):
    """Says 503 to everybody from its 6th request on, for a few seconds and until `may_come_back`; or for ever."""

    away_s = 4.0
    requests = 0
    left_at = back_at = 0.0

    def may_come_back(self) -> bool:
        return True

    def answer(self, body: dict[str, Any], *, is_chat: bool) -> Answer:
        self.requests += 1
        self.left_at = self.left_at or (time.monotonic() if self.requests == 6 else 0.0)
        if self.left_at and not self.back_at:
            if time.monotonic() - self.left_at < self.away_s or not self.may_come_back():
                return 503, {"error": {"message": "overloaded", "code": None, "param": None}}, {}
            self.back_at = time.monotonic()
        return super().answer(body, is_chat=is_chat)


def generate(
    folder: Path, server: OfflineTeacher, *, api: str, recipe: str = "alpaca", **teacher: Any
) -> GeneratedRows:
    store = prepare(folder, server, api=api, recipe=recipe, **teacher)
    with running(server):
        state: GeneratedRows = generate_rows(store.uri, "run", 1, folder / "scratch")
    return state


def prepare(
    folder: Path,
    server: OfflineTeacher,
    *,
    api: str,
    recipe: str = "alpaca",
    max_usd: float | None = None,
    **teacher: Any,
) -> Store:
    """A store with one run in it, to be generated."""
    folder.mkdir()
    spec = {"model": "offline-demo", "base_url": server.base_url, "api": api, "api_key_env": None, **teacher}
    job = JobSpec.model_validate(
        {"name": "teachers", "train": {"model": "tiny-llama"}, "compute": {"workers": 1},
         "limits": {"teacher_max_usd": max_usd},
         "data": {"teacher": spec, "num_rows": 60, "recipe": recipe, "num_actors": 2, "concurrency": 2}}
    )  # fmt: skip
    store: Store = lay_down(job, folder)
    return store


def texts(rows: list[Row]) -> list[tuple[str, str, str]]:
    return [(row.instruction, row.input, row.output) for row in rows]


PRICED = {"price_per_million_input_usd": 1.0, "price_per_million_output_usd": 2.0}


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_every_kind_of_server_gives_the_same_rows(tmp_path: Path, api: str) -> None:
    built_in = generate(tmp_path / "built-in", OfflineTeacher(), api=api, **PRICED)
    assert len(built_in.rows) == 60
    for kind in (VllmTeacher, SilentTeacher, MoodyTeacher):
        other = generate(tmp_path / kind.__name__, kind(), api=api, **PRICED)
        assert texts(other.rows) == texts(built_in.rows), kind.__name__


def test_a_teacher_that_is_away_for_a_while_costs_time_and_nothing_else(tmp_path: Path) -> None:
    present = generate(tmp_path / "present", OfflineTeacher(), api="chat", **PRICED)
    store = Store.open(f"file://{tmp_path}/absent/store").child("run")

    class Unmissed(AbsentTeacher):
        """Comes back when it was said that it is away, however busy this machine is."""

        def may_come_back(self) -> bool:
            is_said = any(event.fields.get("waiting") for event in read_events(store))
            return is_said or time.monotonic() - self.left_at > 60

    server = Unmissed()
    absent = generate(tmp_path / "absent", server, api="chat", max_retries=1, **PRICED)
    assert server.left_at
    assert texts(absent.rows) == texts(present.rows)
    said = [event.fields.get("waiting") for event in read_events(store) if event.kind == "generation"]
    assert any("waiting for the teacher since" in (words or "") and "HTTP 503" in (words or "") for words in said)
    assert said[-1] is None
    next_tries = [event.fields.get("next_try_at") for event in read_events(store) if event.fields.get("waiting")]
    assert next_tries
    assert all(next_tries), "whoever looks can say when it is asked again"
    waited_s = sum(wait.end - wait.begin for wait in teacher_waits(read_events(store)))
    assert waited_s >= server.back_at - server.left_at - 1, (
        "from the first refusal on, not from the first word about it"
    )


def test_a_teacher_that_never_comes_back_ends_the_attempt_with_its_rows_committed(tmp_path: Path) -> None:
    server = AbsentTeacher()
    server.away_s = 1e9
    store = prepare(tmp_path / "gone", server, api="chat", patience_s=2, **PRICED)
    with running(server), pytest.raises(TeacherUnreachable, match="HTTP 503") as ended:
        generate_rows(store.uri, "run", 1, tmp_path / "gone" / "scratch")
    assert ended.value.had_given_rows
    run = store.child("run")
    parts = counting_commits(AttemptLog(run, LAYOUT).records(), list_commits(run, LAYOUT), LAYOUT)
    assert newest_part(run, parts)["rows_total"] > 0


def test_the_last_word_of_an_attempt_that_the_budget_ends_has_all_its_rows(tmp_path: Path) -> None:
    server = OfflineTeacher(refuses_some=False)
    store = prepare(tmp_path / "poor", server, api="chat", max_usd=0.035, **PRICED)
    with running(server), pytest.raises(BudgetExceeded):
        generate_rows(store.uri, "run", 1, tmp_path / "poor" / "scratch")
    run = store.child("run")
    parts = counting_commits(AttemptLog(run, LAYOUT).records(), list_commits(run, LAYOUT), LAYOUT)
    assert generation_events(run)[-1]["rows"] == newest_part(run, parts)["rows_total"] > 0


class HoldingTeacher(OfflineTeacher):
    """Keeps its first request until `goes_on` is set."""

    def __init__(self) -> None:
        super().__init__(refuses_some=False)
        self.held = threading.Lock()
        self.goes_on = threading.Event()

    def answer(self, body: dict[str, Any], *, is_chat: bool) -> Answer:
        if self.held.acquire(blocking=False):
            assert self.goes_on.wait(20)
        return super().answer(body, is_chat=is_chat)


def test_a_limit_that_falls_before_a_reservation_waits_for_what_is_under_way_and_loses_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rich = generate(tmp_path / "rich", OfflineTeacher(refuses_some=False), api="chat", **PRICED)
    server = HoldingTeacher()
    store = prepare(tmp_path / "falls", server, api="chat", **PRICED)
    worst_usd = 0.0257  # a little above what is reserved for one request, so that what is left over is less
    left = [4 * worst_usd]
    reserve, reserved = Ledger.reserve, []

    def falling(self: Ledger, requests: Sequence[TeacherRequest], **more: Any) -> None:
        reserved.append(len(requests))
        if len(reserved) == 2:
            left[0] -= worst_usd  # the machine was paid since the ledger was asked for its room
            server.goes_on.set()
        reserve(self, requests, **more)

    monkeypatch.setattr(Ledger, "reserve", falling)
    monkeypatch.setattr(
        generate_stage, "teacher_limits", lambda *_: lambda: TeacherLimit(left[0], "the limit is low", "Raise it.")
    )
    with running(server):
        state = generate_rows(store.uri, "run", 1, tmp_path / "falls" / "scratch")
    assert texts(state.rows) == texts(rich.rows)
    assert count_asked(store.child("run")).repeated == 0


def test_requests_that_stay_garbage_are_paid_for_and_lose_no_row(tmp_path: Path) -> None:
    state = generate(tmp_path / "stubborn", StubbornTeacher(), api="chat", **PRICED)
    assert len(state.rows) == 60
    assert state.statistics.drops["unusable"] > 0


@pytest.mark.parametrize("recipe", ["alpaca", "self-instruct"])
def test_both_recipes_work_with_structured_output(tmp_path: Path, recipe: str) -> None:
    state = generate(tmp_path / recipe, JsonTeacher(), api="chat", recipe=recipe, answer_format="json")
    assert len(state.rows) == 60
    assert state.statistics.drops["malformed"] == 0


def test_a_server_that_takes_no_schemas_ends_the_stage_in_one_sentence_and_nothing_is_lost(tmp_path: Path) -> None:
    server = ForgetfulTeacher()
    store = prepare(tmp_path / "refused", server, api="chat", answer_format="json", **PRICED)
    whole = generate(tmp_path / "whole", JsonTeacher(), api="chat", answer_format="json", **PRICED)
    with running(server):
        with pytest.raises(TeacherWithoutSchemas, match=r"Set data\.teacher\.answer_format: text"):
            generate_rows(store.uri, "run", 1, tmp_path / "scratch-1")
        kept = {key: store.child("run").get(key) for key in store.child("run").list("answers/")}
        assert len(kept) == 3, "what was paid for is stored"
        server.patience = float("inf")
        state = generate_rows(store.uri, "run", 2, tmp_path / "scratch-2")
    assert texts(state.rows) == texts(whole.rows)
    again = [key for key in store.child("run").list("answers/") if key.endswith("attempt-000002.json")]
    assert not {key.split("/")[1] for key in again} & {key.split("/")[1] for key in kept}, "none of them asked again"


def test_a_server_that_never_took_schemas_costs_nothing(tmp_path: Path) -> None:
    server = ForgetfulTeacher()
    server.patience = 0
    with pytest.raises(TeacherWithoutSchemas):
        generate(tmp_path / "never", server, api="chat", recipe="self-instruct", answer_format="json", **PRICED)
    assert Store.open(f"file://{tmp_path}/never/store/run").list("answers/") == []


def test_what_a_server_does_not_say_is_counted_at_its_worst_case(tmp_path: Path) -> None:
    generate(tmp_path / "silent", SilentTeacher(), api="completions", **PRICED)
    store = Store.open(f"file://{tmp_path}/silent/store/run")
    answers = [json.loads(store.get(key))["answer"] for key in store.list("answers/")]
    assert all(answer["cost_usd"] is None and answer["at_most_usd"] > 0.005 for answer in answers)


def test_without_a_price_the_spending_is_unknown_in_every_event(tmp_path: Path) -> None:
    generate(tmp_path / "unpriced", OfflineTeacher(), api="chat")
    store = Store.open(f"file://{tmp_path}/unpriced/store/run")
    told = generation_events(store)
    assert told
    assert {event["usd"] for event in told} == {None}


@pytest.mark.parametrize(("kind", "untold"), [(OfflineTeacher, False), (SilentTeacher, True)])
def test_tokens_are_told_as_the_server_counted_them(tmp_path: Path, kind: type[OfflineTeacher], untold: bool) -> None:
    state = generate(tmp_path / "counted", kind(), api="chat", **PRICED)
    store = Store.open(f"file://{tmp_path}/counted/store/run")
    bodies = [json.loads(store.get(key))["answer"] for key in store.list("answers/")]
    consumed = [body for body in bodies if body["number"] <= state.request]
    expected = {
        "prompt": sum(body["prompt_tokens"] or 0 for body in consumed),
        "completion": sum(body["completion_tokens"] or 0 for body in consumed),
        "untold": len(consumed) if untold else 0,
    }
    assert (expected["prompt"] > 0) is not untold
    assert generation_events(store)[-1]["tokens"] == expected == state.statistics.tokens.to_json()
    log = AttemptLog(store, LAYOUT)
    parts = counting_commits(log.records(), list_commits(store, LAYOUT), LAYOUT)
    assert newest_part(store, parts)["tokens_total"] == expected, "status reads it there once the run trains"


def generation_events(store: Store) -> list[dict[str, Any]]:
    events = [one for key in sorted(store.list("events/")) for one in json.loads(store.get(key))["events"]]
    return [event for event in events if event["kind"] == "generation"]
