"""Which of the teacher's tasks are dropped: every filter with the value that its recipe was published with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from alpaca_jobs.spec_base import PositiveWhole, SpecPart, one_or_more, refuse

SELF_INSTRUCT_WORDS = (
    "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot",
    "go to",
)  # fmt: skip
"""Words for things that a text model cannot see or make. Source: Self-Instruct, bootstrap_instructions.py."""
ALPACA_WORDS = (*SELF_INSTRUCT_WORDS, "video", "audio", "music", "flowchart", "diagram")
"""Source: Stanford Alpaca, generate_instruction.py."""

Words = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda value: () if value is None else one_or_more(value)),
]
Verdict = Literal["drop", "keep"]


class FiltersSpec(SpecPart):
    """What is dropped, counted by reason; similarity is data.similarity_threshold."""

    min_words: PositiveWhole = 4
    """Fewest words of an instruction; fewer is too_short (both recipes: 4)."""
    max_words: PositiveWhole = 150
    """Most words; more is too_long (both recipes: 150)."""
    banned_words: Words = ALPACA_WORDS
    """Words and phrases anywhere in it, in any case: banned_word (left out, those of the recipe; [] for none)."""
    banned_starts: Words = ("Write a program",)
    """Beginnings, to the letter: banned_start (both recipes: Write a program)."""
    punctuation_start: Verdict = "drop"
    """One that begins with an ASCII punctuation mark: starts_with_punctuation."""
    non_ascii_start: Verdict = "drop"
    """One that begins with another character than ASCII's: starts_with_non_ascii. keep for other languages."""
    empty_output: Verdict = "drop"
    """A task without an output: no_output (ours; 28 of Alpaca's 52,002 rows have none)."""
    output_is_input: Verdict = "drop"
    """Self-instruct: an instance whose output is its input: output_is_input."""
    ends_with_colon: Verdict = "drop"
    """Self-instruct: an instance whose input or output ends in a colon, and so was cut off: ends_with_colon."""
    repeated_instance: Verdict = "drop"
    """Self-instruct: an instance that is there already: repeated_instance."""
    contradictory: Verdict = "drop"
    """Self-instruct: all instances of an instruction if one input has two outputs: contradictory."""

    @model_validator(mode="after")
    def _leaves_something(self) -> FiltersSpec:
        if self.min_words > self.max_words:
            refuse(
                "min_words", f"is {self.min_words}, above max_words, {self.max_words}, which drops every row. Lower it"
            )
        return self


def filters_of_recipe(recipe: Any, given: Any) -> Any:
    """Return the `filters` of a job as it was written, with what it leaves out as its recipe has it."""
    if recipe != "self-instruct" or not (given is None or isinstance(given, dict)):
        return given
    return {"banned_words": SELF_INSTRUCT_WORDS, **(given or {})}
