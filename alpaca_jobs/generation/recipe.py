"""What a recipe is to whoever asks the teacher, and which one a job means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from alpaca_jobs.data.rows import Row
from alpaca_jobs.generation.completer import TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.pipeline import Consumed, Pipeline
from alpaca_jobs.generation.seeds import SeedTask
from alpaca_jobs.generation.self_instruct import SelfInstruct
from alpaca_jobs.spec import DataSpec


class Recipe(Protocol):
    """Plans numbered requests and turns their answers into rows. Pure: the same answers give the same rows."""

    @property
    def replays_answers(self) -> bool:
        """Whether a new attempt needs the answers consumed so far, not only the rows made of them."""

    def request(self, number: int) -> TeacherRequest | None:
        """Request `number` (from 1), the same in every attempt; None while it depends on answers not consumed yet."""

    def consume(self, answer: TeacherAnswer) -> Consumed:
        """Turn the next answer, in the order of numbers, into rows."""

    def num_wanted(self, rows_per_request: float | None) -> int:
        """How many requests are worth having under way or waiting, at the yield so far (None: not known yet)."""


def make_recipe(
    data: DataSpec, seeds: Sequence[SeedTask], kept: Sequence[Row], answers: Iterable[TeacherAnswer]
) -> Recipe:
    """Return the recipe of a job, as it stands after the rows and answers of earlier attempts.

    Raises:
        DataError: too few seeds, or answers to other requests than this job's.
    """
    if data.recipe == "self-instruct":
        return SelfInstruct(data, seeds, answers)
    return Pipeline(data, seeds, kept, num_neighbours=data.neighbours)
