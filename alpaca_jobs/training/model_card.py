"""README.md of an exported model: plain facts about where it comes from, and nothing it was not measured to be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from alpaca_jobs.data.lineage import lineage_in_words
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.spec_train import LoraSpec
from alpaca_jobs.training.base_lineage import BaseLineage, shown_base
from alpaca_jobs.training.hub import TINY_LLAMA

DATA_CARD = "data-card.html"
"""Name under which the page about the rows lies beside the weights."""

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]*")  # the hub refuses a head with another licence


@dataclass(frozen=True)
class CardFacts:
    """What only the run knows about the model.

    Attributes:
        data: in words, for example "52,000 rows written by gpt-4o-mini from 175 seed tasks".
        is_demo: the rows come from the built-in offline teacher, which writes by rule.
        weights_digest: of the exported folder.
        lineage: licence and lineage of the rows, as names and sentences (alpaca_jobs/data/lineage.py).
        base: licence and lineage of the base model.
        cost: of the run up to the export, in words; empty if nobody said.
        eval_loss: mean loss over held-out rows of this very state; None if it was not evaluated.
        data_card: a page about the rows, which goes with the model under the name data-card.html.
        adapter_ends: of adapters alone, which are no model without their base: ids that end an answer.
    """

    run_id: str
    data: str
    is_demo: bool
    num_rows: int
    step: int
    loss: float | None
    weights_digest: str
    lineage: Mapping[str, str] = field(default_factory=dict)
    base: BaseLineage = field(default_factory=BaseLineage)
    cost: str = ""
    eval_loss: float | None = None
    data_card: bytes | None = None
    adapter_ends: tuple[int, ...] = ()


def render_model_card(train: TrainSpec, facts: CardFacts) -> str:
    """The card as Markdown with the hub's YAML head."""
    shown = shown_base(train)
    base = f"base_model: {train.model}\n" if train.model == shown != TINY_LLAMA else ""
    licence = f"license: {facts.base.licence}\n" if _IDENTIFIER.fullmatch(facts.base.licence) else ""
    demo = (
        "> **Demo data.** The rows were composed by rule by the built-in offline teacher. This model shows that the "
        "path works; it knows nothing.\n\n"
        if facts.is_demo
        else ""
    )
    origin = "made from scratch" if train.model == TINY_LLAMA else "the base model's licence goes with these weights"
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n{base}{licence}tags: [alpaca-jobs, "
        f"{train.recipe}]\n---\n\n# {facts.run_id}\n\n{demo}"
        "| | |\n|---|---|\n"
        f"| base model | {shown} ({origin}) |\n"
        f"| data | {facts.data} ({facts.num_rows:,} rows) |\n"
        f"{_training(train, facts)}"
        f"{_cost(facts)}"
        f"| weights | SHA-256 {facts.weights_digest} (alpaca_jobs.training.weights.weights_digest) |\n\n"
        + (_how_to_load(train, facts.adapter_ends) if facts.adapter_ends else "")
        + _section("Where the base model comes from", facts.base.facts)
        + _section("Where the rows come from", facts.lineage)
        + _data_card(facts)
        + "Data written by a language model may carry its errors and its terms of use; see the data's own source.\n"
    )


def _training(train: TrainSpec, facts: CardFacts) -> str:
    """Rows of the table about how it was trained: by the recipe, or by a program of the user's own."""
    if train.method == "command":
        steps = f"| steps | {facts.step:,} |\n" if facts.step else ""
        return f"| recipe | a training program of its own (train.method: command), not this project's |\n{steps}"
    loss = "not recorded" if facts.loss is None else f"{facts.loss:.4f} nats per target token"
    held_out = "" if facts.eval_loss is None else f"| loss on held-out rows | {facts.eval_loss:.4f} nats per token |\n"
    return (
        f"| recipe | {train.recipe}, {_method(train)}, {_prompts(train)} |\n"
        f"| steps | {facts.step:,} of {train.global_batch_size} rows, rows of at most {train.max_length} tokens |\n"
        f"| learning rate | {train.learning_rate:g}, {train.lr_schedule}, warm-up {train.warmup_ratio:g} |\n"
        f"| optimizer | AdamW, betas {train.adam_beta1:g} and {train.adam_beta2:g}, eps {train.adam_eps:g}, "
        f"weight decay {train.weight_decay:g}, gradients clipped to {train.max_grad_norm:g} |\n"
        f"| seed | {train.seed} |\n"
        f"| training type | {train.dtype}, master weights float32 |\n"
        f"| last training loss | {loss} |\n{held_out}"
    )


def _method(train: TrainSpec) -> str:
    if train.method != "lora":
        return f"{train.method} fine-tuning"
    lora = train.lora or LoraSpec()
    modules = " ".join(lora.target_modules)
    return f"adapters of rank {lora.rank} (alpha {lora.alpha:g}, dropout {lora.dropout:g}) on {modules}"


def _prompts(train: TrainSpec) -> str:
    if train.recipe == "pretrain":
        return "running text, loss on every token"
    if train.template == "chat":
        return "prompts in the tokenizer's chat template"
    return "prompts of the job's own" if train.templates else f"prompts in the {train.recipe} format"


def _cost(facts: CardFacts) -> str:
    return f"| cost of the run | {facts.cost} |\n" if facts.cost else ""


def _how_to_load(train: TrainSpec, ends: tuple[int, ...]) -> str:
    """Adapters go on their base; its embeddings lack rows where the tokenizer here has more words than the base's, if
    only for padding, and its configuration may stop at another token than the one that was learned.
    """
    revision = f', revision="{train.revision}"' if train.revision else ""
    return (
        "## How to load it\n\nThese are adapters, to be put on their base model; `.` is the folder of this file.\n\n"
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained(".")\n'
        f'base = AutoModelForCausalLM.from_pretrained("{shown_base(train)}"{revision})\n'
        "if len(tokenizer) > base.get_input_embeddings().num_embeddings:\n"
        "    base.resize_token_embeddings(len(tokenizer))  # rows for padding and new words\n"
        'model = PeftModel.from_pretrained(base, ".")\n'
        f"model.generation_config.eos_token_id = {list(ends)}  # what ended every answer\n```\n\n"
    )


def _section(title: str, lines: Mapping[str, str]) -> str:
    return f"## {title}\n\n| | |\n|---|---|\n{lineage_in_words(lines)}\n" if lines else ""


def _data_card(facts: CardFacts) -> str:
    if facts.data_card is None:
        return ""
    return f"The rows in numbers (lengths, similarity, what they ask for): [{DATA_CARD}]({DATA_CARD}).\n\n"
