"""From numbered teacher answers to rows: pure, so that the same answers always give the same rows.

    pipeline = Pipeline(data, seeds, kept=rows of the parts committed so far)
    request = pipeline.request(7)          # depends on the data spec, the seeds and the number alone
    consumed = pipeline.consume(answer)    # in the order of numbers, whatever order the answers arrived in

There is no other state than the kept rows, so a new attempt continues from the rows that earlier ones committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from alpaca_jobs.data.rows import Row
from alpaca_jobs.generation.completer import UNUSABLE, TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.encode import encode_prompt, stop_sequences
from alpaca_jobs.generation.filters import drop_reason
from alpaca_jobs.generation.json_tasks import TASKS_SCHEMA, encode_json_prompt, parse_json_answer
from alpaca_jobs.generation.parse import parse_answer
from alpaca_jobs.generation.request_maker import RequestMaker, check_answer, sample
from alpaca_jobs.generation.seeds import SeedTask, check_enough
from alpaca_jobs.generation.similarity import SimilarityIndex
from alpaca_jobs.generation.teacher_reply import CONTENT_FILTER
from alpaca_jobs.generation.tries import TOO_LONG
from alpaca_jobs.spec import DataSpec

SIMILAR = "similar"
SURPLUS = "surplus"
REFUSED = "refused"


def why_empty(answer: TeacherAnswer) -> str | None:
    """Return the reason under which a whole answer is dropped, or None for one that is worth reading."""
    return {CONTENT_FILTER: REFUSED, UNUSABLE: UNUSABLE, TOO_LONG: TOO_LONG}.get(answer.finish_reason)


@dataclass(frozen=True)
class Consumed:
    """What one answer gave: new rows in order, and its drops by reason.

    Reasons: malformed, cut_off (parse.py); FILTERS (filters.py); similar; surplus (good, but num_rows was reached);
    unusable (none of the tries was an answer at all, or came in time; counted once per request);
    refused (the teacher's content filter spoke instead of the teacher; counted once per answer). `is_useful`: it gave
    no row, but something that rows will be made of.
    """

    rows: tuple[Row, ...]
    drops: Mapping[str, int] = field(default_factory=dict)
    is_useful: bool = False


class Pipeline:
    """Plans requests and turns their answers into rows. Not thread-safe: one process consumes, in number order."""

    replays_answers = False

    def __init__(
        self, data: DataSpec, seeds: Sequence[SeedTask], kept: Sequence[Row] = (), *, num_neighbours: int = 0
    ) -> None:
        """Start from the rows kept so far.

        Args:
            data: the job's data spec; `data.teacher` must be set.
            seeds: every seed task, in the order of its file.
            kept: every row committed so far, in order; consuming goes on after the last of their requests.
            num_neighbours: how many nearest instructions each row carries (Alpaca: 10); 0 leaves them out, which is
                faster, since only then can most comparisons be skipped.

        Raises:
            DataError: fewer seeds than one request shows.
        """
        check_enough(seeds, data)
        self._data = data
        self._seeds = tuple(seeds)
        self._maker = RequestMaker(data)
        self._num_neighbours = num_neighbours
        self._num_kept = len(kept)
        self._last_consumed = max((row.request for row in kept), default=0)
        self._index = SimilarityIndex(data.similarity_threshold)
        texts = [*(seed.instruction for seed in seeds), *(row.instruction for row in kept)]
        self._index.add_all(texts)
        self._texts = texts if num_neighbours else []  # by place in the index, to name neighbours

    @property
    def is_done(self) -> bool:
        """Whether `data.num_rows` rows are kept."""
        return self._num_kept >= self._data.num_rows

    def request(self, number: int) -> TeacherRequest:
        """Return request `number` (from 1): the same one in every attempt, whatever was kept meanwhile."""
        data = self._data
        shown = sample(self._seeds, data.num_prompt_seeds, seed=data.seed, number=number)
        if self._maker.wants_json:
            prompt = encode_json_prompt(shown, num_tasks=data.max_tasks_per_request)
            return self._maker.make(number, prompt, schema=TASKS_SCHEMA)
        prompt = encode_prompt(shown, num_tasks=data.max_tasks_per_request)
        return self._maker.make(number, prompt, stop=stop_sequences(data.max_tasks_per_request))

    def num_wanted(self, rows_per_request: float | None) -> int:
        """Return how many requests the missing rows need at the yield so far (one row each before any is known)."""
        return max(1, round((self._data.num_rows - self._num_kept) / (rows_per_request or 1.0)))

    def consume(self, answer: TeacherAnswer) -> Consumed:
        """Turn the next answer into rows, and compare everything later with them.

        Raises:
            DataError: the answer was given to another request than this job's request of that number.
        """
        if answer.number <= self._last_consumed:
            raise ValueError(
                f"answer {answer.number} comes after answer {self._last_consumed}: consume in number order"
            )
        check_answer(answer, self.request(answer.number))
        self._last_consumed = answer.number
        if (reason := why_empty(answer)) is not None:
            return Consumed((), {reason: 1})
        if self._maker.wants_json:
            parsed = parse_json_answer(answer.text)
        else:
            parsed = parse_answer(
                answer.text, num_shown=self._data.num_prompt_seeds, finish_reason=answer.finish_reason
            )  # fmt: skip
        rows, drops = [], dict(parsed.drops)
        for task in parsed.tasks:
            row = Row(task.instruction, task.input, task.output, answer.number, task.index)
            reason = drop_reason(task, self._data.filters) or (SURPLUS if self.is_done else None)
            kept = self._keep(row) if reason is None else None
            if kept is None:
                reason = reason or SIMILAR
                drops[reason] = drops.get(reason, 0) + 1
            else:
                rows.append(kept)
        return Consumed(tuple(rows), drops)

    def _keep(self, row: Row) -> Row | None:
        """Return the row as it is kept, or None if it is a duplicate."""
        if self._index.duplicate_of(row.instruction) is not None:
            return None
        if self._num_neighbours:
            found = self._index.neighbours(row.instruction, count=self._num_neighbours)
            nearest = tuple((self._texts[place], score) for place, score in found.nearest)
            row = replace(row, most_similar=nearest, average_similarity=found.average)
            self._texts.append(row.instruction)
        self._index.add(row.instruction)
        self._num_kept += 1
        return row
