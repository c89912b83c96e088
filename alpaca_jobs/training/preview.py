"""Rows as the model will see them, token by token, and what is wrong with them before money is spent.

Everything comes from the code that trains: the recipe's reading, its tokenizer, its masks, its packing. Only the
sentences are this module's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from alpaca_jobs.data.record_files import Record
from alpaca_jobs.errors import DataError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.data import TrainingData
from alpaca_jobs.training.evaluation import held_out_bound, is_held_out
from alpaca_jobs.training.prompt_ends import count_joined_rows
from alpaca_jobs.training.reading import TrainingRow, read_training_rows
from alpaca_jobs.training.recipes import build_tokenizer, end_ids, prepare_rows
from alpaca_jobs.training.token_text import token_decoder, token_texts
from alpaca_jobs.training.tokenizer import RowTokenizer, load_tokenizer

MAX_TRUNCATED = 0.05
"""Share of rows cut at max_length above which a preview warns, if nothing else is said."""
MAX_JOINED = 0.01
"""Share of rows whose prompt and answer share a token above which a preview warns."""
_WHOLE = 2**30  # longer than any row
_TEMPLATES = re.compile(
    r"^### (?:Instruction|Response):|Below is an instruction that describes a task|<\|im_start\|>|<\|start_header_id\|>"
    r"|\[INST\]|<start_of_turn>|^(?:USER|ASSISTANT): ",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Warned:
    """One thing that is wrong: a name for programs, how many rows it concerns, and a sentence that says what to do."""

    name: str
    num_rows: int
    words: str


@dataclass(frozen=True)
class ShownPiece:
    """Tokens that see each other: ids, their texts, which carry loss."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    is_target: tuple[bool, ...]


@dataclass(frozen=True)
class ShownRow:
    """One row of the training.

    Attributes:
        index: its place among the rows, from 0; packed documents have places of their own.
        pieces: several where documents are packed together, which never see each other.
        num_cut: tokens beyond max_length that the model will not see; 0 where rows are packed.
        ends_with_eos: whether its last token is one that ends an answer, a line break after it aside.
        is_held_out: whether `train.eval.fraction` takes it out of the training, to be evaluated on.
    """

    index: int
    pieces: tuple[ShownPiece, ...]
    num_cut: int
    ends_with_eos: bool
    is_held_out: bool = False


@dataclass(frozen=True)
class TokenPreview:
    """What a preview found.

    Attributes:
        num_rows, num_tokens, num_targets: of all rows that were read, padding excluded.
        ends: (id, text) of what ends an answer: the end-of-sequence token, and before it what ends a turn in the
            tokenizer's chat template where that is another one.
        pad: (id, text) of the padding token.
        is_packed: rows are made of documents (recipe pretrain), and end where they are full.
        num_held_out: rows that `train.eval.fraction` holds out; of documents, which are not among the packed rows.
    """

    num_rows: int
    num_tokens: int
    num_targets: int
    num_truncated: int
    num_without_target: int
    ends: tuple[tuple[int, str], ...]
    pad: tuple[int, str]
    is_packed: bool = False
    num_held_out: int = 0
    rows: tuple[ShownRow, ...] = ()
    warnings: tuple[Warned, ...] = field(default=())


def preview_tokens(
    records: Sequence[Record], train: TrainSpec, *, places: Sequence[int], max_truncated: float = MAX_TRUNCATED
) -> TokenPreview:
    """Make tokens of records as training would.

    Args:
        places: which rows to show, from 0; those beyond the last are left out.
        max_truncated: share of cut rows above which there is a warning.

    Raises:
        DataError: records that are no rows of this recipe (says which shape they have), or nothing to learn from.
        ModelError: the base model or its tokenizer is missing, or has no end-of-sequence token.
    """
    check_shape(records, train)
    rows = read_training_rows(records, train)
    held_out = _held_out(rows, train)
    trained = [row for place, row in enumerate(rows) if place not in held_out]
    files = build_tokenizer(train, trained)
    tokenizer = load_tokenizer(files)
    is_packed = train.recipe == "pretrain"
    data = prepare_rows(trained if is_packed else rows, tokenizer, files, train)
    decode = token_decoder(files)
    epoch = data.of_epoch(0)
    ends = end_ids(train, tokenizer, files)
    whole = _whole_lengths(rows, tokenizer, files, train, places)
    shown = tuple(
        replace(
            _show(data, place, whole.get(place), ends, decode),
            is_held_out=not is_packed and place in held_out,
        )
        for place in places
        if 0 <= place < len(data)
    )
    return TokenPreview(
        num_rows=len(data),
        num_tokens=int(epoch.lengths.sum()),
        num_targets=int(epoch.target_counts.sum()),
        num_truncated=data.num_truncated,
        num_without_target=data.num_without_target,
        ends=tuple((end, decode([end])) for end in ends),
        pad=(tokenizer.pad_id, decode([tokenizer.pad_id])),
        is_packed=is_packed,
        num_held_out=len(held_out),
        rows=shown,
        warnings=(
            *find_problems(data, tokenizer, train, ends=ends, max_truncated=max_truncated),
            *_joined_prompts(rows, tokenizer, train),
            *find_templates(records),
        ),
    )


def _held_out(rows: Sequence[TrainingRow], train: TrainSpec) -> frozenset[int]:
    """Places of the rows that the job's share takes out of the training."""
    if train.eval is None or train.eval.fraction is None:
        return frozenset()
    bound = held_out_bound(rows, fraction=train.eval.fraction, seed=train.seed)
    return frozenset(place for place, row in enumerate(rows) if is_held_out(row, seed=train.seed, bound=bound))


def check_shape(records: Sequence[Record], train: TrainSpec) -> None:
    """Refuse records of another recipe in words that name the one they fit.

    Raises:
        DataError: chats under alpaca, rows under vicuna, rows or chats under pretrain.
    """
    if train.template == "chat" or not records:
        return
    fields = records[0].fields
    shapes = {"vicuna": "conversations", "pretrain": "text", "alpaca": "instruction"}
    for recipe, name in shapes.items():
        if name in fields and recipe != train.recipe and shapes[train.recipe] not in fields:
            raise DataError(
                f"{records[0].where} has {name!r}, which train.recipe {recipe} trains on, but train.recipe is "
                f"{train.recipe}, which wants {shapes[train.recipe]!r}. Set recipe: {recipe}, or bring the rows into "
                "shape with `alpaca-jobs data convert`."
            )
    if "messages" in fields:
        raise DataError(
            f"{records[0].where} has 'messages' (OpenAI's shape), which recipe {train.recipe} does not read. Set "
            "train.template: chat, or convert them: alpaca-jobs data convert IN OUT --to sharegpt"
        )


def find_problems(
    data: TrainingData, tokenizer: RowTokenizer, train: TrainSpec, *, ends: Sequence[int], max_truncated: float
) -> list[Warned]:
    """Look at all rows for what would waste a training.

    Args:
        ends: ids that end an answer.
    """
    found = []
    without_eos = 0 if train.recipe == "pretrain" else _count_without_eos(data, ends, train.max_length)
    if without_eos:
        found.append(
            Warned(
                "no_eos", without_eos,
                f"{without_eos:,} rows that were not cut do not teach the end-of-sequence token; a model trained on "
                "them does not stop. Use a template that ends every answer with it.",
            )
        )  # fmt: skip
    if tokenizer.pad_id == tokenizer.eos_id:
        found.append(
            Warned(
                "pad_is_eos", len(data),
                "The padding token is the end-of-sequence token. Here the loss goes by position, so the end is learned "
                "all the same; a trainer that masks every padding token would never teach it.",
            )
        )  # fmt: skip
    if data.num_without_target and train.recipe != "pretrain":
        found.append(
            Warned(
                "answer_cut_away", data.num_without_target,
                f"{data.num_without_target:,} rows lose their whole answer at train.max_length {train.max_length} and "
                "teach nothing. Raise it, or take the rows out.",
            )
        )  # fmt: skip
    share = data.num_truncated / len(data)
    if share > max_truncated:
        found.append(
            Warned(
                "truncated", data.num_truncated,
                f"{data.num_truncated:,} of {len(data):,} rows ({share:.1%}) are longer than train.max_length "
                f"{train.max_length} and are cut, their end-of-sequence token too. Raise it, or split them.",
            )
        )  # fmt: skip
    return found


def _joined_prompts(rows: Sequence[TrainingRow], tokenizer: RowTokenizer, train: TrainSpec) -> list[Warned]:
    """A few rows are so with any template: an answer that begins with a bracket after the prompt's colon."""
    number = count_joined_rows(rows, tokenizer, train)
    if number <= MAX_JOINED * len(rows):
        return []
    words = (
        f"In {number:,} of {len(rows):,} rows the end of the prompt becomes one token with the beginning of the "
        "answer, which is then not learned; and the prompt alone, as the model will be asked, ends with a token that "
        "it never saw there. Most often a template ends with a space: leave it out."
    )
    return [Warned("prompt_joins_answer", number, words)]


def find_templates(records: Sequence[Record]) -> list[Warned]:
    """Look for rows that hold a prompt template already: training would wrap it in another one."""
    places = [record.where for record in records if any(map(_TEMPLATES.search, _strings(record.fields)))]
    if not places:
        return []
    words = (
        f"{len(places):,} rows hold a prompt template in their own text already (the first: {places[0]}); training "
        "puts the recipe's around it. Take it out of the rows."
    )
    return [Warned("template_in_rows", len(places), words)]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for one in value.values() for text in _strings(one)]
    return [text for one in value for text in _strings(one)] if isinstance(value, list | tuple) else []


def _count_without_eos(data: TrainingData, ends: Sequence[int], max_length: int) -> int:
    """Rows below the limit whose targets hold nothing that ends an answer among the last two."""
    epoch, count = data.of_epoch(0), 0
    for row in range(len(data)):
        ids, is_target = epoch.pieces(row)[-1]
        if len(ids) < max_length and is_target.any():
            count += not np.isin(ids[is_target][-2:], ends).any()  # some templates end a turn with two
    return count


def _whole_lengths(
    rows: Sequence[TrainingRow], tokenizer: RowTokenizer, files: Mapping[str, bytes], train: TrainSpec,
    places: Sequence[int],
) -> dict[int, int]:  # fmt: skip
    """How many tokens the shown rows would have without a limit; none where documents are packed."""
    wanted = [place for place in places if 0 <= place < len(rows)]
    if train.recipe == "pretrain" or not wanted:
        return {}
    data = prepare_rows(
        [rows[place] for place in wanted], tokenizer, files, train.model_copy(update={"max_length": _WHOLE})
    )
    return dict(zip(wanted, map(int, data.of_epoch(0).lengths), strict=True))


def _show(
    data: TrainingData, place: int, whole: int | None, ends: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> ShownRow:
    pieces = tuple(
        ShownPiece(tuple(map(int, ids)), token_texts(ids.tolist(), decode), tuple(bool(one) for one in is_target))
        for ids, is_target in data.of_epoch(0).pieces(place)
    )
    length = sum(len(piece.ids) for piece in pieces)
    visible = [token for token, text in zip(pieces[-1].ids, pieces[-1].texts, strict=True) if text.strip()]
    num_cut = 0 if whole is None else max(0, whole - length)
    return ShownRow(place, pieces, num_cut, bool(visible) and visible[-1] in ends)
