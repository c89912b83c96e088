"""Who waits for a teacher, told by the actors that ask it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from alpaca_jobs.generation.completer import Absence, TeacherRequest
from alpaca_jobs.spec import DataSpec, TeacherSpec
from cluster.node import asking
from cluster.node.asking import LiveAsking

AWAY = Absence(1000.0, "HTTP 503: overloaded", 1004.0)


class TwoActors:
    """A runtime whose actors never answer a request, and tell of themselves what they were given; in place of Ray's."""

    absences: tuple[Absence | None, ...] = (AWAY, None)

    def actors(self, factory: type, count: int, *args: Any, **kwargs: Any) -> list[Any]:
        return list(range(count))

    def peer(self, actor: Any) -> Any:
        return actor

    def call(self, actor: Any, method: str, *args: Any) -> Any:
        return (actor, method, *(request.number for request in args))

    def wait(self, calls: Any, *, timeout_s: float) -> tuple[list[Any], list[Any]]:
        done = [call for call in calls if call[1] == "absence"]
        return done, [call for call in calls if call not in done]

    def result(self, call: Any) -> Any:
        return self.absences[call[0]]


@pytest.mark.parametrize(("numbers", "told"), [((0, 2), AWAY), ((0, 1), None)])
def test_an_actor_with_nothing_to_ask_hides_no_absence_and_one_that_is_being_answered_does(
    numbers: tuple[int, ...], told: Absence | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_SILENCE_S", 0.0)
    data = DataSpec(num_rows=8, teacher="offline", num_actors=2)
    ctx: Any = SimpleNamespace(job=SimpleNamespace(data=data), store_uri="", run_id="", attempt=1)
    ledger: Any = SimpleNamespace(reserve=lambda requests: None)
    live = LiveAsking(ctx, TwoActors(), TeacherSpec(model="m", base_url="http://127.0.0.1/v1"), ledger)  # type: ignore[arg-type]
    live.send([TeacherRequest(number, "", 16, 1.0, 1.0, (), "") for number in numbers])
    live.waiting()
    assert live.waiting() == told
