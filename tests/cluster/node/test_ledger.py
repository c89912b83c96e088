"""Money for the teacher: reserved before it is spent, counted over attempts, never above the limit."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca_jobs.errors import BudgetExceeded
from alpaca_jobs.generation.completer import TeacherAnswer, TeacherRequest
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import LimitsSpec, TeacherSpec
from checkpoints.attempts import AttemptLog
from checkpoints.errors import Superseded
from checkpoints.fence import Fence
from checkpoints.store import Store
from cluster.events import seconds_of
from cluster.node.ledger import Ledger, batch_key, count_asked, store_answer, worst_case_usd
from cluster.node.limits import put_limits, read_limits, teacher_limits
from cluster.plan import Placement, Pricing

PRICED = TeacherSpec(
    model="m", api_key_env=None, price_per_million_input_usd=1.0, price_per_million_output_usd=10.0,
    max_billed_retries=0,
)  # fmt: skip
STARTED = "2026-01-01T00:00:00+00:00"
NOW_S = seconds_of(STARTED) + 3600
WORST = (1032 * 1.0 + 100 * 10.0) / 1e6  # of one try of `request`


def request(number: int, *, prompt: str = "x" * 1000, digest: str = "d") -> TeacherRequest:
    return TeacherRequest(
        number=number, prompt=prompt, max_tokens=100, temperature=1.0, top_p=1.0, stop=(), digest=f"{digest}{number}"
    )


def answer(
    number: int, *, cost_usd: float | None = 0.0005, digest: str = "d", at_most_usd: float | None = None
) -> TeacherAnswer:
    return TeacherAnswer(
        number=number, digest=f"{digest}{number}", text="t", finish_reason="stop", prompt_tokens=1,
        completion_tokens=1, cost_usd=cost_usd, retries=0, at_most_usd=cost_usd if at_most_usd is None else at_most_usd,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(str(tmp_path))


def ledger(
    store: Store,
    attempt: int,
    *,
    budget_usd: float | None = None,
    max_usd: float | None = None,
    teacher: TeacherSpec = PRICED,
    claim: dict[str, Any] | None = None,
) -> Ledger:
    log = AttemptLog(store, LAYOUT)
    log.claim(attempt, claim or {})
    limits = LimitsSpec(teacher_max_usd=budget_usd, max_usd=max_usd)
    made = Ledger(
        store, attempt=attempt, fence=Fence(log, attempt), teacher=teacher,
        limit=teacher_limits(read_limits(store, limits), log.records(), now_s=lambda: NOW_S),
    )  # fmt: skip
    made.load()
    return made


def test_worst_case_is_every_byte_a_token_and_the_longest_answer() -> None:
    assert worst_case_usd(request(1), PRICED) == pytest.approx(WORST)


def test_worst_case_holds_every_try_that_may_be_billed() -> None:
    patient = PRICED.model_copy(update={"max_billed_retries": 2, "max_retries": 6})
    assert worst_case_usd(request(1), patient) == pytest.approx(3 * WORST)
    hasty = PRICED.model_copy(update={"max_billed_retries": 5, "max_retries": 1})
    assert worst_case_usd(request(1), hasty) == pytest.approx(2 * WORST)


def test_tries_of_unknown_cost_count_at_their_worst_case_in_this_attempt_and_the_next(store: Store) -> None:
    first = ledger(store, 1, budget_usd=1.0)
    first.reserve([request(1)])
    unknown = answer(1, cost_usd=None, at_most_usd=0.0015)
    store_answer(store, 1, unknown)
    first.settle(unknown)
    assert first.spent_usd == pytest.approx(0.0015)
    assert ledger(store, 2, budget_usd=1.0).spent_usd == pytest.approx(0.0015)


def test_a_batch_that_could_cross_the_limit_is_not_reserved(store: Store) -> None:
    small = ledger(store, 1, budget_usd=0.005)
    small.reserve([request(1), request(2)])
    with pytest.raises(BudgetExceeded, match=r"0\.0041 USD spent or reserved.*limits\.teacher_max_usd is 0\.005"):
        small.reserve([request(3)])
    assert not store.exists(batch_key(1, 2))


def test_a_resume_raises_the_teachers_limit_and_the_ledger_of_the_next_attempt_keeps_the_new_one(store: Store) -> None:
    first = ledger(store, 1, budget_usd=0.003)
    first.reserve([request(1)])
    with pytest.raises(BudgetExceeded, match="alpaca-jobs resume RUN --teacher-budget USD"):
        first.reserve([request(2)])
    put_limits(store, max_usd=None, teacher_max_usd=0.005)
    second = ledger(store, 2, budget_usd=0.003)
    second.reserve([request(2)])
    with pytest.raises(BudgetExceeded, match=r"limits\.teacher_max_usd is 0\.005"):
        second.reserve([request(3)])
    put_limits(store, max_usd=None, teacher_max_usd=None)  # a resume without the option is back at the job's own
    with pytest.raises(BudgetExceeded, match=r"limits\.teacher_max_usd is 0\.003"):
        ledger(store, 3, budget_usd=0.003).reserve([request(3)])


def test_the_teacher_has_of_the_whole_limit_what_the_machines_left_of_it(store: Store) -> None:
    place = Placement("aws", "us-east-1", None, "m", Pricing.SPOT, 0.997, num_nodes=1)
    claim = {"placement": place.to_json(), "started_at": STARTED}
    one = ledger(store, 1, max_usd=1.0, claim=claim)  # an hour later 0.997 of it are the machine's
    one.reserve([request(1)])
    with pytest.raises(BudgetExceeded, match=r"machines have taken 0\.9970.*alpaca-jobs resume RUN --budget USD"):
        one.reserve([request(2)])
    assert one.room().take(request(2)) is False


def test_an_answer_frees_what_its_reservation_held_back(store: Store) -> None:
    small = ledger(store, 1, budget_usd=0.005)
    small.reserve([request(1), request(2)])
    small.settle(answer(1))
    small.settle(answer(2))
    assert small.spent_usd == pytest.approx(0.001)
    small.reserve([request(3)])


def test_the_next_attempt_counts_unanswered_reservations_at_their_worst_case(store: Store) -> None:
    first = ledger(store, 1, budget_usd=1.0)
    first.reserve([request(1), request(2)])
    store_answer(store, 1, answer(1))
    second = ledger(store, 2, budget_usd=1.0)
    assert second.spent_usd == pytest.approx(0.0005 + WORST)


def test_without_a_limit_of_its_own_the_teacher_is_still_counted_over_all_attempts(store: Store) -> None:
    first = ledger(store, 1)
    first.reserve([request(1), request(2)])
    store_answer(store, 1, answer(1))
    assert ledger(store, 2).spent_usd == pytest.approx(0.0005 + WORST), "limits.max_usd is kept by this number"


def test_a_stored_answer_is_found_by_number_and_digest_whoever_asked(store: Store) -> None:
    first = ledger(store, 1)
    first.reserve([request(1)])
    store_answer(store, 1, answer(1))
    second = ledger(store, 2)
    assert second.find(request(1)) == answer(1)
    assert second.find(request(1, digest="other")) is None
    assert second.find(request(2)) is None


def test_requests_asked_by_two_attempts_are_counted_as_repeated(store: Store) -> None:
    ledger(store, 1).reserve([request(1), request(2)])
    ledger(store, 2).reserve([request(2), request(3)])
    asked = count_asked(store)
    assert (asked.sent, asked.different, asked.repeated) == (4, 3, 1)


def test_a_zombie_reserves_nothing(store: Store) -> None:
    zombie = ledger(store, 1)
    ledger(store, 2)
    with pytest.raises(Superseded):
        zombie.reserve([request(1)])
    assert store.list("ledger/") == []


def test_a_limit_without_prices_is_refused_in_words(store: Store) -> None:
    unknown = TeacherSpec(model="mystery", api_key_env=None)
    with pytest.raises(BudgetExceeded, match="the price of mystery is unknown"):
        ledger(store, 1, budget_usd=1.0, teacher=unknown).reserve([request(1)])


def test_without_a_limit_an_unknown_price_is_said_and_not_taken_for_zero(store: Store) -> None:
    unknown = ledger(store, 1, teacher=TeacherSpec(model="mystery", api_key_env=None))
    unknown.reserve([request(1)])
    unknown.settle(answer(1, cost_usd=None))
    assert unknown.spent_usd is None
