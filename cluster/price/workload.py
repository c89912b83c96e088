"""What a job has to get through: parameters, rows, tokens, steps. Known from the job where it can be, else given."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alpaca_jobs.known_models import SizedModel, size_of
from alpaca_jobs.spec import JobSpec, TrainSpec
from cluster.errors import PlanError
from cluster.price.memory_fit import trained_parameters
from cluster.price.throughput import FLOPS_PER_PARAMETER_AND_TOKEN, flops_per_parameter

# Tokens of one row of Alpaca's data, template and EOS included. Source: the 52,002 rows hold 6.66 M tokens of the
# LLaMA tokenizer, 128 a row; 99 % of them are shorter than 363, so that a max_length of 512 cuts next to nothing.
ALPACA_TOKENS_PER_ROW = 6.66e6 / 52_002

FORWARD_SHARE = 1 / 3
"""Of a step, a forward pass alone: 2 of 6 FLOPs per parameter and token (PaLM, arXiv:2204.02311, appendix B)."""


@dataclass(frozen=True)
class Workload:
    """Training, counted.

    Attributes:
        num_parameters: of the model.
        steps: optimizer updates in all.
        tokens: real tokens (no padding) over all steps; those of held-out rows at what a forward pass alone takes.
        source: where the tokens of a row come from.
        given_s: seconds of training that the job itself states (train.hours), for a command that nobody can count into;
            steps and tokens are 0 then.
        row_tokens: mean tokens of a row; None where they are not counted.
        trained: parameters that training changes, which checkpoints hold; None for all.
        flops_per_parameter: and token (cluster/price/throughput.py).
        guess: how the model's size was guessed, in words; empty where it is known.
        active: parameters that a token goes through; None for all.
        base_bytes: of the base model, that each machine fetches; None where its files were not looked at.
    """

    num_parameters: int
    steps: int
    tokens: float
    source: str = ""
    given_s: float | None = None
    row_tokens: float | None = None
    trained: int | None = None
    flops_per_parameter: float = FLOPS_PER_PARAMETER_AND_TOKEN
    guess: str = ""
    active: int | None = None
    base_bytes: int | None = None

    @property
    def active_parameters(self) -> int:
        """Of all, or of those that a token goes through where a model has experts."""
        return self.num_parameters if self.active is None else self.active

    @property
    def trained_parameters(self) -> int:
        """Of all, or of LoRA's adapters."""
        return self.num_parameters if self.trained is None else self.trained


def workload_of(
    job: JobSpec,
    *,
    num_rows: int | None = None,
    tokens_per_row: float | None = None,
    num_parameters: int | None = None,
    source: str = "given",
    read: SizedModel | None = None,
    base_bytes: int | None = None,
) -> Workload:
    """Count a job's training.

    Args:
        num_rows: rows to train on (of recipe pretrain: documents); None for data.num_rows when they are generated.
        tokens_per_row: mean of real tokens; None for Alpaca's average when the rows are Alpaca's.
        num_parameters: None for what is known of the model by its name, or for what its name says.
        source: where `tokens_per_row` comes from.
        read: the model as its own files tell it; None where they were not looked at.
        base_bytes: as in Workload.

    Raises:
        PlanError: a number that neither the job nor the caller gives.
    """
    train = job.train
    model = size_of(train.model, num_parameters=num_parameters) if num_parameters is not None or read is None else read
    guess = model.guess if model is not None and num_parameters is None else ""
    if model is None:
        raise PlanError(
            f"The size of {train.model} is not known here, so its training cannot be priced. "
            "Say it: estimate --parameters 7e9"
        )
    if train.method == "command":
        if train.hours is None:
            raise PlanError(
                "train.method is command, and how long a program of your own trains is not known here, so it cannot be "
                "priced. Say it in the job, for the machines asked for: train.hours: 3"
            )
        return Workload(
            model.num_parameters, 0, 0.0, "train.hours", 3600 * train.hours, guess=guess, base_bytes=base_bytes
        )
    if num_rows is None:
        if job.data.from_ is not None:
            raise PlanError(
                f"The rows of {job.data.from_} are not counted, so their training cannot be priced. "
                "Say how many there are: estimate --rows 52000 --row-tokens 128"
            )
        num_rows = job.data.num_rows
    if tokens_per_row is None:
        if train.recipe != "alpaca":
            raise PlanError(
                f"The tokens of a {train.recipe} row are not known before they are counted. "
                "Say how many there are: estimate --row-tokens 1000"
            )
        tokens_per_row, source = ALPACA_TOKENS_PER_ROW, f"{ALPACA_TOKENS_PER_ROW:.0f} a row, as in Alpaca's own data"
    num_rows, tokens_per_row = _as_trained_on(train, num_rows, tokens_per_row)
    held_out = 0.0 if train.eval is None else num_rows * (train.eval.fraction or 0.0)
    num_rows = max(1, round(num_rows - held_out))
    steps_of_epoch = math.ceil(num_rows / train.global_batch_size)
    all_steps = max(1, math.ceil(train.epochs * steps_of_epoch))
    steps = all_steps if train.max_steps is None else min(all_steps, train.max_steps)
    tokens = num_rows * tokens_per_row * train.epochs * steps / all_steps
    if train.eval is not None:
        evaluations = math.ceil(steps / (train.eval.every_steps or steps_of_epoch))
        tokens += evaluations * held_out * tokens_per_row * FORWARD_SHARE
    return Workload(
        model.num_parameters, steps, tokens, source, row_tokens=tokens_per_row,
        trained=None if train.lora is None else trained_parameters(train, model),
        flops_per_parameter=flops_per_parameter(train), guess=guess,
        active=model.active_parameters if model.shape.idle_parameters else None, base_bytes=base_bytes,
    )  # fmt: skip


def _as_trained_on(train: TrainSpec, num_rows: int, tokens_per_row: float) -> tuple[int, float]:
    """Rows of training, and the mean of their tokens: what is longer than max_length is cut off, but the documents of
    recipe pretrain are cut into rows and packed, so that all of their tokens are trained on.
    """
    if train.recipe != "pretrain":
        return num_rows, min(tokens_per_row, train.max_length)
    tokens = num_rows * tokens_per_row
    packed = max(1, math.ceil(tokens / train.max_length))
    return packed, tokens / packed
