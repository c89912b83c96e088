"""Parts of `train` that say how text becomes tokens, and which of it is held out: templates, a larger vocabulary, a
longer context, evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from alpaca_jobs.spec_base import PositiveWhole, SpecPart, refuse, want

_PLACES = ("{instruction}", "{input}")


def _with_input(value: str) -> str:
    if any(value.count(place) != 1 for place in _PLACES) or value.index("{instruction}") > value.index("{input}"):
        want("a text with {instruction} and then {input}, once each, is wanted")
    return value


def _without_input(value: str) -> str:
    if value.count("{instruction}") != 1 or "{input}" in value:
        want("a text with {instruction} once, and without {input}, is wanted")
    return value


class TemplateSpec(SpecPart):
    """A prompt template in the form of alpaca-lora's JSON files; the answer follows right after it."""

    description: str = ""
    """What it is for; nothing depends on it."""
    prompt_input: Annotated[str, AfterValidator(_with_input)]
    """Prompt of a row with an input: {instruction} and {input} are replaced."""
    prompt_no_input: Annotated[str, AfterValidator(_without_input)]
    """Prompt of a row without an input."""
    response_split: str = ""
    """The last words of the prompt, after which whoever uses the model finds the answer."""


def read_templates(value: Sequence[Any], folder: Path) -> Any:
    """Put the contents of JSON files in place of their names, so that a job carries its templates with it."""
    return tuple(_read(folder / Path(one).expanduser()) if isinstance(one, str) else one for one in value)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        want(
            f"{path.name:.60} cannot be read as JSON ({why}); a file like alpaca-lora's templates/alpaca.json is wanted"
        )


def _templates(value: Any, info: ValidationInfo) -> Any:
    several = value if isinstance(value, list | tuple) else (value,)
    return read_templates(several, Path((info.context or {}).get("folder", ".")))


Templates = Annotated[tuple[TemplateSpec, ...], BeforeValidator(_templates)]


class TokenizerSpec(SpecPart):
    """Changes to the base model's tokenizer."""

    extend: str = Field(min_length=1)
    """Tokenizer whose words are added: a tokenizer.json, a folder that holds one, or a run's URI (its model's)."""


class RopeScalingSpec(SpecPart):
    """How rotary positions are stretched over more tokens than the base model was trained for."""

    type: Literal["linear", "dynamic", "yarn"] = "linear"
    """linear divides positions by the factor, as longer Vicunas do; dynamic and yarn are as transformers has them."""
    factor: Annotated[float, Field(gt=1)]
    """How many times the base model's context."""


class EvalSpec(SpecPart):
    """Rows that are never trained on, whose loss is measured while training; the state with the lowest stays."""

    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the rows that is held out, chosen by the seed and what each row says; 0.01 is a hundredth."""
    file: str | None = Field(default=None, min_length=1)
    """Rows of your own in place of a share: a path or URI, in the format of the rows trained on."""
    every_steps: PositiveWhole | None = None
    """Optimizer steps between evaluations; null means once an epoch. The last step is evaluated as well."""
    stop_after: PositiveWhole | None = None
    """Stop training after this many evaluations in a row without a lower loss; null never does."""

    @model_validator(mode="after")
    def _one_source(self) -> EvalSpec:
        if (self.fraction is None) == (self.file is None):
            given = "neither is given" if self.fraction is None else "both are given"
            refuse("fraction", f"and file say where held-out rows come from, and {given}. Set one, such as 0.01")
        return self
