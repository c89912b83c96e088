"""From numbered teacher answers to rows: pure, so that the same answers always give the same rows.

    pipeline = Pipeline(data, seeds, kept=rows of the parts committed so far)
    request = pipeline.request(7)          # depends on the data spec, the seeds and the number alone
    consumed = pipeline.consume(answer)    # in the order of numbers, whatever order the answers arrived in

There is no other state than the kept rows, so a new attempt continues from the rows that earlier ones committed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from alpaca_jobs.errors import DataError
from alpaca_jobs.generation.completer import TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.encode import encode_prompt, stop_sequences
from alpaca_jobs.generation.filters import drop_reason
from alpaca_jobs.generation.offline_spec import offline_teacher_spec
from alpaca_jobs.generation.parse import parse_answer
from alpaca_jobs.generation.seeds import SeedTask
from alpaca_jobs.generation.similarity import SimilarityIndex
from alpaca_jobs.rows import Row
from alpaca_jobs.spec import DataSpec, TeacherSpec

SIMILAR = "similar"
SURPLUS = "surplus"
REFUSED = "refused"


@dataclass(frozen=True)
class Consumed:
    """What one answer gave: new rows in order, and its drops by reason.

    Reasons: malformed, cut_off (parse.py); FILTERS (filters.py); similar; surplus (good, but num_rows was reached);
    refused (the teacher's content filter spoke instead of the teacher; counted once per answer).
    """

    rows: tuple[Row, ...]
    drops: Mapping[str, int] = field(default_factory=dict)


class Pipeline:
    """Plans requests and turns their answers into rows. Not thread-safe: one process consumes, in number order."""

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
        if len(seeds) < data.num_prompt_seeds:
            raise DataError(
                f"{data.seed_tasks}: there are {len(seeds)} seed tasks, but every request shows "
                f"{data.num_prompt_seeds} (data.num_prompt_seeds). Add tasks, or show {max(1, len(seeds))}."
            )
        self._data = data
        self._seeds = tuple(seeds)
        self._teacher = _resolve_teacher(data)
        self._num_neighbours = num_neighbours
        self._num_kept = len(kept)
        self._last_consumed = max((row.request for row in kept), default=0)
        self._index = SimilarityIndex(data.similarity_threshold)
        texts = [*(seed.instruction for seed in seeds), *(row.instruction for row in kept)]
        self._index.add_all(texts)
        self._texts = texts if num_neighbours else []  # by place in the index, to name neighbours

    @property
    def num_kept(self) -> int:
        """Rows kept so far, those of earlier attempts included."""
        return self._num_kept

    @property
    def is_done(self) -> bool:
        """Whether `data.num_rows` rows are kept."""
        return self._num_kept >= self._data.num_rows

    def request(self, number: int) -> TeacherRequest:
        """Return request `number` (from 1): the same one in every attempt, whatever was kept meanwhile."""
        data, teacher = self._data, self._teacher
        shown = _sample(self._seeds, data.num_prompt_seeds, seed=data.seed, number=number)
        prompt = encode_prompt(shown, num_tasks=data.max_tasks_per_request)
        stop = stop_sequences(data.max_tasks_per_request)
        decisive = {
            "api": teacher.api,
            "base_url": None if data.teacher == "offline" else teacher.base_url,  # its port differs on every start
            "max_tokens": teacher.max_tokens,
            "model": teacher.model,
            "prompt": prompt,
            "stop": stop,
            "temperature": teacher.temperature,
            "top_p": teacher.top_p,
        }
        return TeacherRequest(
            number=number,
            prompt=prompt,
            max_tokens=teacher.max_tokens,
            temperature=teacher.temperature,
            top_p=teacher.top_p,
            stop=stop,
            digest=hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest(),
        )

    def consume(self, answer: TeacherAnswer) -> Consumed:
        """Turn the next answer into rows, and compare everything later with them.

        Raises:
            DataError: the answer was given to another request than this job's request of that number.
        """
        if answer.number <= self._last_consumed:
            raise ValueError(
                f"answer {answer.number} comes after answer {self._last_consumed}: consume in number order"
            )
        if answer.digest != self.request(answer.number).digest:
            raise DataError(
                f"the stored answer {answer.number} belongs to another request (digest {answer.digest[:12]}): the data "
                "part of the job or the seed tasks changed since it was asked. Start a new run, or change them back."
            )
        self._last_consumed = answer.number
        if answer.finish_reason == "content_filter":
            return Consumed((), {REFUSED: 1})
        parsed = parse_answer(answer.text, num_shown=self._data.num_prompt_seeds, finish_reason=answer.finish_reason)
        rows, drops = [], dict(parsed.drops)
        for task in parsed.tasks:
            row = Row(task.instruction, task.input, task.output, answer.number, task.index)
            reason = drop_reason(task) or (SURPLUS if self.is_done else None)
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


def _resolve_teacher(data: DataSpec) -> TeacherSpec:
    if data.teacher is None:
        raise DataError("data.teacher is not set, so no rows can be generated. Set it, or use the rows of data.from.")
    return offline_teacher_spec() if data.teacher == "offline" else data.teacher


def _sample(seeds: Sequence[SeedTask], count: int, *, seed: int, number: int) -> list[SeedTask]:
    """Draw `count` different seeds in random order; hashes, because random.sample may change between Pythons."""
    order = list(range(len(seeds)))
    for place in range(count):
        drawn = hashlib.sha256(f"{seed}/{number}/{place}".encode()).digest()
        other = place + int.from_bytes(drawn[:8], "big") % (len(order) - place)
        order[place], order[other] = order[other], order[place]
    return [seeds[place] for place in order[:count]]
