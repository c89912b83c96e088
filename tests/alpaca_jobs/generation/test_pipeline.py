"""The pipeline: the same rows whatever the timing and however often it is taken up again."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from alpaca_jobs.data.rows import Row, parse_rows, render_rows
from alpaca_jobs.errors import DataError, TeacherGarbage
from alpaca_jobs.generation.completer import Completer, TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.offline_composer import compose_answer
from alpaca_jobs.generation.offline_spec import offline_teacher_spec
from alpaca_jobs.generation.offline_teacher import serve
from alpaca_jobs.generation.pipeline import Consumed, Pipeline
from alpaca_jobs.generation.recipe import Recipe, make_recipe
from alpaca_jobs.generation.seeds import SeedTask, load_seed_tasks
from alpaca_jobs.generation.statistics import GenerationStatistics
from alpaca_jobs.spec import DataSpec, TeacherSpec

SEEDS = load_seed_tasks("builtin")
DATA = DataSpec(teacher="offline", num_rows=100_000)


def _answer(request: TeacherRequest) -> TeacherAnswer:
    """The demo teacher's answer without the way over HTTP."""
    text, finish_reason = compose_answer(request.prompt, bytes.fromhex(request.digest))
    return TeacherAnswer(request.number, request.digest, text, finish_reason, None, None, None, 0)


def _consume_all(pipeline: Recipe, numbers: Sequence[int]) -> tuple[list[Row], list[dict[str, int]]]:
    rows: list[Row] = []
    drops = []
    for number in numbers:
        request = pipeline.request(number)
        assert request is not None
        consumed = pipeline.consume(_answer(request))
        rows += consumed.rows
        drops.append(dict(consumed.drops))
    return rows, drops


def test_requests_depend_on_seed_and_number_alone() -> None:
    one, other = Pipeline(DATA, SEEDS), Pipeline(DATA, SEEDS)
    _consume_all(other, range(1, 6))
    assert [one.request(n) for n in range(1, 50)] == [other.request(n) for n in range(1, 50)]
    assert len({one.request(n).digest for n in range(1, 200)}) == 200 - 1
    reseeded = Pipeline(DATA.model_copy(update={"seed": 43}), SEEDS)
    assert reseeded.request(1).prompt != one.request(1).prompt


def test_every_seed_is_shown_about_equally_often() -> None:
    pipeline = Pipeline(DATA, SEEDS)
    prompts = [pipeline.request(n).prompt for n in range(1, 1501)]
    shown = Counter(
        line for prompt in prompts for line in re.findall(r"^[123]\. Instruction: (.+)$", prompt, re.MULTILINE)
    )
    expected = 1500 * 3 / len(SEEDS)
    assert len(shown) == len(SEEDS)
    assert all(0.4 * expected < count < 1.8 * expected for count in shown.values())


def test_the_digest_covers_what_changes_the_answer() -> None:
    def digest(**teacher: object) -> str:
        spec = TeacherSpec.model_validate({"model": "m", "base_url": "http://127.0.0.1:1/v1", **teacher})
        return Pipeline(DATA.model_copy(update={"teacher": spec}), SEEDS).request(1).digest

    changes = [{"model": "n"}, {"temperature": 0.5}, {"top_p": 0.5}, {"max_tokens": 9}, {"api": "completions"}]
    assert len({digest(), *(digest(**change) for change in changes), digest(base_url="http://127.0.0.1:2/v1")}) == 7
    assert digest(timeout_s=5.0, max_retries=1) == digest()
    fewer = Pipeline(DATA.model_copy(update={"max_tasks_per_request": 10}), SEEDS).request(1)
    assert fewer.digest != Pipeline(DATA, SEEDS).request(1).digest


@pytest.mark.parametrize("part_requests", [1, 4, 7])
def test_a_run_resumed_at_every_part_has_the_rows_of_an_undisturbed_one(part_requests: int) -> None:
    numbers = range(1, 29)
    whole_rows, whole_drops = _consume_all(Pipeline(DATA, SEEDS), numbers)
    stored: list[bytes] = []  # parts as they are committed
    resumed_drops = []
    for start in range(1, 29, part_requests):
        kept = [row for part in stored for row in parse_rows(part, "part")]
        rows, drops = _consume_all(Pipeline(DATA, SEEDS, kept), range(start, min(start + part_requests, 29)))
        stored.append(render_rows(rows))
        resumed_drops += drops
    assert b"".join(stored) == render_rows(whole_rows)
    assert resumed_drops == whole_drops
    assert len(whole_rows) > 100


def test_the_target_is_met_exactly_also_after_a_resume() -> None:
    data = DATA.model_copy(update={"num_rows": 50})
    pipeline = Pipeline(data, SEEDS)
    rows, drops = _consume_all(pipeline, range(1, 21))
    assert (len(rows), pipeline.is_done) == (50, True)
    assert sum(count for part in drops for reason, count in part.items() if reason == "surplus") > 0
    for cut in range(1, 12):
        first, _ = _consume_all(Pipeline(data, SEEDS), range(1, cut))
        second, _ = _consume_all(Pipeline(data, SEEDS, first), range(cut, 21))
        assert first + second == rows


def test_rows_carry_where_they_come_from() -> None:
    rows, _ = _consume_all(Pipeline(DATA, SEEDS), range(1, 9))
    places = [(row.request, row.index) for row in rows]
    assert places == sorted(set(places))
    assert rows[0].most_similar is None


def test_neighbours_are_the_most_similar_seeds_and_earlier_rows() -> None:
    pipeline = Pipeline(DATA, SEEDS, num_neighbours=10)
    rows, _ = _consume_all(pipeline, range(1, 9))
    plain, _ = _consume_all(Pipeline(DATA, SEEDS), range(1, 9))
    assert [(row.instruction, row.output) for row in rows] == [(row.instruction, row.output) for row in plain]
    earlier = {seed.instruction for seed in SEEDS}
    for row in rows:
        assert row.most_similar is not None
        scores = [score for _, score in row.most_similar]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 10
        assert max(scores) <= 0.7
        assert {text for text, _ in row.most_similar} <= earlier
        assert row.average_similarity is not None
        assert 0 < row.average_similarity < scores[0]
        earlier.add(row.instruction)


def test_neighbours_that_the_job_asks_for_are_the_same_after_a_resume() -> None:
    data = DATA.model_copy(update={"neighbours": 3})
    whole, _ = _consume_all(make_recipe(data, SEEDS, (), ()), range(1, 9))
    first, _ = _consume_all(make_recipe(data, SEEDS, (), ()), range(1, 5))
    kept = parse_rows(render_rows(first), "rows.jsonl")
    rest, _ = _consume_all(make_recipe(data, SEEDS, kept, ()), range(5, 9))
    assert [*first, *rest] == list(whole)
    assert all(len(row.most_similar or ()) == 3 for row in whole)
    with pytest.raises(ValidationError, match="data dedupe --neighbours"):
        DataSpec.model_validate({"teacher": "offline", "recipe": "self-instruct", "neighbours": 10})


def test_the_same_rows_whatever_order_the_answers_arrive_in() -> None:
    """Over HTTP with random pauses: the answers arrive in any order, the rows do not."""

    async def run(base_url: str, shuffle_seed: int) -> tuple[list[Row], list[int]]:
        pipeline, rng, arrived = Pipeline(DATA, SEEDS), random.Random(shuffle_seed), []
        completer = Completer(offline_teacher_spec(base_url), api_key=None)

        async def one(number: int, pause_s: float) -> TeacherAnswer:
            await asyncio.sleep(pause_s)
            answer = await completer.complete(pipeline.request(number))
            arrived.append(number)
            return answer

        answers = await asyncio.gather(*(one(number, rng.random() / 5) for number in range(1, 31)))
        await completer.close()
        return [row for answer in answers for row in pipeline.consume(answer).rows], arrived

    results = []
    for shuffle_seed in (1, 2):
        with serve() as server:
            results.append(asyncio.run(run(server.base_url, shuffle_seed)))
    (rows_one, order_one), (rows_two, order_two) = results
    assert order_one != order_two
    assert rows_one == rows_two
    assert len(rows_one) > 100


def test_an_answer_out_of_order_is_our_mistake() -> None:
    pipeline = Pipeline(DATA, SEEDS)
    _consume_all(pipeline, [1, 2])
    with pytest.raises(ValueError, match="answer 2 comes after answer 2: consume in number order"):
        pipeline.consume(_answer(pipeline.request(2)))


def test_an_answer_to_another_job_is_refused_in_words() -> None:
    foreign = _answer(Pipeline(DATA.model_copy(update={"seed": 1}), SEEDS).request(1))
    with pytest.raises(DataError, match="the stored answer 1 belongs to another request"):
        Pipeline(DATA, SEEDS).consume(foreign)


def test_a_refused_request_gives_no_rows_and_is_counted() -> None:
    pipeline = Pipeline(DATA, SEEDS)
    request = pipeline.request(1)
    refusal = TeacherAnswer(1, request.digest, "", "content_filter", 1, 0, None, 0)
    assert pipeline.consume(refusal) == Consumed((), {"refused": 1})


def test_too_few_seeds_are_refused_in_words() -> None:
    with pytest.raises(DataError, match=r"there are 2 seed tasks, but every request shows 3 \(data.num_prompt_seeds\)"):
        Pipeline(DATA, [SeedTask("Do A", "", "a"), SeedTask("Do B", "", "b")])


def test_a_near_copy_of_a_seed_is_dropped() -> None:
    pipeline = Pipeline(DATA, SEEDS)
    request = pipeline.request(1)
    copy = SEEDS[5].instruction + " Please"
    text = f" {copy}\n4. Input:\n<noinput>\n4. Output:\nFine."
    answer = TeacherAnswer(1, request.digest, text, "stop", None, None, None, 0)
    assert pipeline.consume(answer) == Consumed((), {"similar": 1})


@given(
    st.lists(
        st.one_of(
            st.text(max_size=40),
            st.sampled_from(
                [
                    "###",
                    "\n4. Instruction:",
                    " 4. Input:\n",
                    "\n4. Output:",
                    "5. Instruction: a b c d",
                    "<noinput>",
                    "word ",
                ]
            ),
        ),
        max_size=25,
    ).map("".join),
    st.sampled_from(["stop", "length"]),
)
@settings(deadline=None)
def test_no_answer_breaks_the_pipeline_and_every_piece_is_accounted_for(text: str, finish_reason: str) -> None:
    pipeline = Pipeline(DATA, SEEDS[:3])
    answer = TeacherAnswer(1, pipeline.request(1).digest, text, finish_reason, None, None, None, 0)
    consumed = pipeline.consume(answer)
    pieces = sum(bool(piece.strip()) for piece in f"x{text}".split("###"))
    assert abs(len(consumed.rows) + sum(consumed.drops.values()) - pieces) <= 1, "the first or last piece may be blank"
    for row in consumed.rows:
        assert row.instruction == row.instruction.strip() != ""
        assert row.output


def test_statistics_add_up_and_a_barren_teacher_is_given_up() -> None:
    statistics = GenerationStatistics()
    assert statistics.accept_rate is None
    row = Row("a b c d", "", "e", 1, 0)
    statistics.add(Consumed((row, row), {"similar": 1, "too_short": 1}))
    assert statistics.to_json() == {
        "num_requests": 1,
        "num_rows": 2,
        "drops": {"similar": 1, "too_short": 1},
        "accept_rate": 0.5,
    }
    for _ in range(3):
        statistics.add(Consumed((), {"malformed": 1}))
    statistics.add(Consumed((), {"surplus": 4}))
    statistics.check_progress(limit=3)
    for _ in range(3):
        statistics.add(Consumed((), {"malformed": 1}))
    with pytest.raises(TeacherGarbage, match=r"last 3 answers gave no row that could be kept .*malformed 6"):
        statistics.check_progress(limit=3)
