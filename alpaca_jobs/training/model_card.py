"""README.md of an exported model: plain facts about where it comes from, and nothing it was not measured to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from alpaca_jobs.data.lineage import lineage_in_words
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.hub import TINY_LLAMA


@dataclass(frozen=True)
class CardFacts:
    """What only the run knows about the model.

    Attributes:
        data: in words, for example "52,000 rows written by gpt-4o-mini from 175 seed tasks".
        is_demo: the rows come from the built-in offline teacher, which writes by rule.
        weights_digest: of the exported folder.
        lineage: licence and lineage of the rows, as names and sentences (alpaca_jobs/data/lineage.py).
    """

    run_id: str
    data: str
    is_demo: bool
    num_rows: int
    step: int
    loss: float | None
    weights_digest: str
    lineage: Mapping[str, str] = field(default_factory=dict)


def render_model_card(train: TrainSpec, facts: CardFacts) -> str:
    """The card as Markdown with the hub's YAML head."""
    base = "" if train.model == TINY_LLAMA else f"base_model: {train.model}\n"
    demo = (
        "> **Demo data.** The rows were composed by rule by the built-in offline teacher. This model shows that the "
        "path works; it knows nothing.\n\n"
        if facts.is_demo
        else ""
    )
    origin = "made from scratch" if train.model == TINY_LLAMA else "the base model's licence goes with these weights"
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n{base}tags: [alpaca-jobs, "
        f"{train.recipe}]\n---\n\n# {facts.run_id}\n\n{demo}"
        "| | |\n|---|---|\n"
        f"| base model | {train.model} ({origin}) |\n"
        f"| data | {facts.data} ({facts.num_rows:,} rows) |\n"
        f"{_training(train, facts)}"
        f"| weights | SHA-256 {facts.weights_digest} (alpaca_jobs.training.weights.weights_digest) |\n\n"
        + _lineage_section(facts.lineage)
        + "Data written by a language model may carry its errors and its terms of use; see the data's own source.\n"
    )


def _training(train: TrainSpec, facts: CardFacts) -> str:
    """Rows of the table about how it was trained: by the recipe, or by a program of the user's own."""
    if train.method == "command":
        steps = f"| steps | {facts.step:,} |\n" if facts.step else ""
        return f"| recipe | a training program of its own (train.method: command), not this project's |\n{steps}"
    loss = "not recorded" if facts.loss is None else f"{facts.loss:.4f} nats per target token"
    return (
        f"| recipe | {train.recipe}, {train.method} fine-tuning, prompts in the {train.recipe} format |\n"
        f"| steps | {facts.step:,} of {train.global_batch_size} rows, rows of at most {train.max_length} tokens |\n"
        f"| learning rate | {train.learning_rate:g}, {train.lr_schedule}, warm-up {train.warmup_ratio:g} |\n"
        f"| training type | {train.dtype}, master weights float32 |\n"
        f"| last training loss | {loss} |\n"
    )


def _lineage_section(lineage: Mapping[str, str]) -> str:
    return f"## Where the rows come from\n\n| | |\n|---|---|\n{lineage_in_words(lineage)}\n" if lineage else ""
