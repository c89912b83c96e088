"""The Self-Instruct recipe: new instructions, the classification test, then instances, each a numbered request. Pure.

    recipe = SelfInstruct(data, seeds, answers=those consumed by earlier attempts)
    request = recipe.request(7)        # None while the answers that decide about it are not consumed yet
    consumed = recipe.consume(answer)  # in the order of numbers

What request n asks depends on the answers consumed before it was planned, and on nothing else: every consumed answer
plans what follows from it at once, at the end of the plan. So the same answers always lead to the same requests,
however many are in flight. A new attempt replays the answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from alpaca_jobs.data.rows import Row
from alpaca_jobs.generation import self_instruct_forms as forms
from alpaca_jobs.generation.completer import TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.filters import drop_reason
from alpaca_jobs.generation.parse import CUT_OFF, MALFORMED, ParsedTask
from alpaca_jobs.generation.pipeline import SIMILAR, SURPLUS, Consumed, why_empty
from alpaca_jobs.generation.request_maker import RequestMaker, check_answer, sample
from alpaca_jobs.generation.seeds import SeedTask, check_enough
from alpaca_jobs.generation.similarity import SimilarityIndex
from alpaca_jobs.spec import DataSpec

ROWS_PER_LIST, ROWS_PER_INSTRUCTION = 4.0, 1.0
"""What a list of instructions and one instruction are expected to come to, low on purpose: too few are asked for
again. The original got 82 K instances from 52 K instructions."""

Kind = Literal["instructions", "classification", "instances"]


@dataclass(frozen=True)
class _Step:
    """One planned request; `instruction` is what it is about, "" for a list of new ones."""

    kind: Kind
    request: TeacherRequest
    instruction: str = ""
    is_classification: bool = False


class SelfInstruct:
    """Plans requests and turns their answers into rows. Not thread-safe: one process consumes, in number order."""

    replays_answers = True

    def __init__(self, data: DataSpec, seeds: Sequence[SeedTask], answers: Iterable[TeacherAnswer] = ()) -> None:
        """Start from the answers consumed so far, in order.

        Raises:
            DataError: fewer seeds than one request shows, or an answer to another request.
        """
        check_enough(seeds, data)
        self._data, self._seeds = data, tuple(seeds)
        self._maker = RequestMaker(data)
        self._index = SimilarityIndex(data.similarity_threshold)
        self._index.add_all(seed.instruction for seed in seeds)
        self._made: list[str] = []  # instructions the teacher made
        self._plan: list[_Step] = []
        self._num_consumed = self._num_rows = 0
        self._open_lists = self._open_instructions = 0
        self._plan_lists()
        for answer in answers:
            self.consume(answer)

    @property
    def is_done(self) -> bool:
        """Whether `data.num_rows` rows are kept."""
        return self._num_rows >= self._data.num_rows

    def request(self, number: int) -> TeacherRequest | None:
        """Return request `number` (from 1), or None while it is not planned."""
        return self._plan[number - 1].request if number <= len(self._plan) else None

    def num_wanted(self, rows_per_request: float | None) -> int:
        """Return how many requests are worth having under way: all that are planned."""
        return max(1, self._num_unanswered)

    def consume(self, answer: TeacherAnswer) -> Consumed:
        """Turn the next answer into rows, or into the requests that follow from it.

        Raises:
            DataError: the answer was given to another request than this job's request of that number.
        """
        if answer.number != self._num_consumed + 1:
            raise ValueError(f"answer {answer.number} comes after answer {self._num_consumed}: consume in number order")
        step = self._plan[answer.number - 1]
        check_answer(answer, step.request)
        self._num_consumed += 1
        if step.kind == "instructions":
            self._open_lists -= 1
            consumed = self._consume_instructions(answer)
        elif step.kind == "classification":
            consumed = self._consume_verdict(answer, step.instruction)
        else:
            self._open_instructions -= 1
            consumed = self._consume_instances(answer, step)
        self._plan_lists()
        return consumed

    def _consume_instructions(self, answer: TeacherAnswer) -> Consumed:
        if (reason := why_empty(answer)) is not None:
            return Consumed((), {reason: 1})
        found = forms.parse_instructions(answer.text, answer.finish_reason, as_json=self._maker.wants_json)
        # The piece that the length limit cut is left out by the parser (JSON that was cut is no JSON).
        is_cut = answer.finish_reason == "length" and not self._maker.wants_json
        if not found:
            return Consumed((), {CUT_OFF if is_cut else MALFORMED: 1})
        drops: dict[str, int] = {}
        for text in found:
            reason = drop_reason(ParsedTask(0, text, "", "-"), self._data.filters)  # its output comes later
            if reason is None and self._index.offer(text) is not None:
                reason = SIMILAR
            if reason is not None:
                drops[reason] = drops.get(reason, 0) + 1
                continue
            self._made.append(text)
            self._open_instructions += 1
            prompt = forms.classification_prompt(text, self._seeds, as_json=self._maker.wants_json)
            self._add("classification", prompt, forms.VERDICT_TOKENS, instruction=text, stop=())
        is_useful = len(found) > sum(drops.values())
        return Consumed((), {**drops, CUT_OFF: 1} if is_cut else drops, is_useful=is_useful)

    def _consume_verdict(self, answer: TeacherAnswer, instruction: str) -> Consumed:
        as_json = self._maker.wants_json
        reason = why_empty(answer)
        if reason is None and not forms.has_verdict(answer.text, as_json=as_json):
            reason = forms.NO_VERDICT
        is_classification = reason is None and forms.parse_classification(answer.text, as_json=as_json)
        prompt = forms.instances_prompt(
            instruction, self._seeds, is_classification=is_classification,
            max_instances=self._data.max_instances, as_json=self._maker.wants_json,
        )  # fmt: skip
        stop = (f"Example {self._data.max_instances + 1}", "Task:")
        self._add(
            "instances", prompt, forms.INSTANCE_TOKENS, instruction=instruction, stop=stop,
            is_classification=is_classification,
        )  # fmt: skip
        return Consumed((), {} if reason is None else {reason: 1}, is_useful=True)

    def _consume_instances(self, answer: TeacherAnswer, step: _Step) -> Consumed:
        if (reason := why_empty(answer)) is not None:
            return Consumed((), {reason: 1})
        instances, drops = forms.parse_instances(
            answer.text, answer.finish_reason, is_classification=step.is_classification,
            max_instances=self._data.max_instances, as_json=self._maker.wants_json, filters=self._data.filters,
        )  # fmt: skip
        rows = [
            Row(step.instruction, one.input, one.output, answer.number, index) for index, one in enumerate(instances)
        ]
        kept = rows[: self._data.num_rows - self._num_rows]
        self._num_rows += len(kept)
        surplus = {SURPLUS: len(rows) - len(kept)} if len(rows) > len(kept) else {}
        return Consumed(tuple(kept), {**drops, **surplus})

    def _plan_lists(self) -> None:
        """Plan as many lists of new instructions as the missing rows need, and no more than keep the teacher busy."""
        while self._num_unanswered < self._data.plan_ahead and self._num_expected < self._data.num_rows:
            number = len(self._plan) + 1
            made = sample(self._made, self._data.num_prompt_rows, seed=self._data.seed, number=-number)
            count = self._data.num_prompt_seeds + self._data.num_prompt_rows - len(made)
            people = sample(self._seeds, count, seed=self._data.seed, number=number)  # more while none are made yet
            shown = [*made, *(seed.instruction for seed in people)]
            shown = sample(shown, len(shown), seed=self._data.seed, number=number)
            limit = self._data.max_tasks_per_request
            prompt = forms.instructions_prompt(shown, num_tasks=limit, as_json=self._maker.wants_json)
            heat = self._maker.teacher.temperature
            # A chat model may leave a line blank between two items; one that continues a text ends with a blank line.
            stop = (f"\n{limit + 1}.", *(["\n\n"] if self._maker.teacher.api == "completions" else []))
            self._add("instructions", prompt, forms.INSTRUCTION_TOKENS, stop=stop, temperature=heat)
            self._open_lists += 1

    @property
    def _num_unanswered(self) -> int:
        return len(self._plan) - self._num_consumed

    @property
    def _num_expected(self) -> float:
        return (
            self._num_rows + ROWS_PER_LIST * self._open_lists + ROWS_PER_INSTRUCTION * self._open_instructions
        )  # fmt: skip

    def _add(
        self, kind: Kind, prompt: str, max_tokens: int, *, stop: tuple[str, ...], instruction: str = "",
        is_classification: bool = False, temperature: float = 0.0,
    ) -> None:  # fmt: skip
        is_chat = self._maker.teacher.api == "chat"
        request = self._maker.make(
            len(self._plan) + 1, prompt, stop=() if self._maker.wants_json else stop,
            max_tokens=None if is_chat else max_tokens,  # a chat model may think first, at the expense of this limit
            temperature=temperature, schema=forms.schema_of(kind),
        )  # fmt: skip
        self._plan.append(_Step(kind, request, instruction, is_classification))
