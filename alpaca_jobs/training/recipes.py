"""What a recipe makes of rows: Alpaca's turns, Vicuna's conversations, documents; the one place that knows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from alpaca_jobs import prompts
from alpaca_jobs.data.formats import Turn as ChatTurn
from alpaca_jobs.data.rows import Row
from alpaca_jobs.errors import DataError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.spec_recipe import TemplateSpec
from alpaca_jobs.training import tokenizer as tokenizers_of_models
from alpaca_jobs.training.chat_template import encode_chats, stop_ids
from alpaca_jobs.training.data import (
    EncodedRow,
    Example,
    TokenizedRows,
    TrainingData,
    Turn,
    encode_examples,
    gather_rows,
)
from alpaca_jobs.training.hub import TINY_LLAMA, resolve_model
from alpaca_jobs.training.known_faults import check_adapted_end
from alpaca_jobs.training.mixing import MixedRows
from alpaca_jobs.training.packing import Flatten, encode_documents
from alpaca_jobs.training.reading import Chat, Conversation, Document, TrainingRow
from alpaca_jobs.training.revision import cached_folder
from alpaca_jobs.training.stored import StoredRows
from alpaca_jobs.training.tokenizer import RowTokenizer, load_tokenizer
from alpaca_jobs.training.vocabulary import extend_tokenizer


def to_example(row: Row | Conversation, template: TemplateSpec | None = None) -> Example:
    """Prompts and answers of a row, as the text that is trained on; EOS is added when it becomes tokens."""
    if isinstance(row, Row):
        if template is None:
            return (Turn(prompts.render_prompt(row.instruction, row.input), row.output),)
        text = template.prompt_input if row.input else template.prompt_no_input
        return (Turn(prompts.fill_template(text, row.instruction, row.input), row.output),)
    turns, opening = [], prompts.VICUNA_SYSTEM + prompts.VICUNA_AFTER_USER
    for question, answer in row.exchanges:
        prompt = f"{prompts.VICUNA_USER}: {question}{prompts.VICUNA_AFTER_USER}{prompts.VICUNA_ASSISTANT}:"
        turns.append(Turn(opening + prompt, f" {answer}"))
        opening = ""
    return tuple(turns)


def build_tokenizer(train: TrainSpec, rows: Iterable[TrainingRow]) -> dict[str, bytes]:
    """Files of the tokenizer folder for this training; `tiny-llama`'s is trained on the rows, and another one's words
    are added where the job says so. Raises: ModelError.
    """
    files = tokenizers_of_models.build_tokenizer(train.base, (text for row in rows for text in _texts(row)))
    if train.method == "lora" and not train.trains_embeddings and train.model != TINY_LLAMA:
        where = Path(resolve_model(train.base))
        folder = where if where.is_dir() else cached_folder(train.base, None)
        if folder is not None:
            check_adapted_end(folder, end_ids(train, load_tokenizer(files), files)[0], train.model)
    return files if train.tokenizer is None else extend_tokenizer(files, train.tokenizer.extend)


def _texts(row: TrainingRow) -> Iterable[str]:
    if isinstance(row, Document):
        return (row.text,)
    if isinstance(row, Chat):
        return (turn.text for turn in row.turns)
    return (turn.prompt + turn.answer for turn in to_example(row))


def end_ids(train: TrainSpec, tokenizer: RowTokenizer, files: Mapping[str, bytes]) -> tuple[int, ...]:
    """Ids that end an answer: the tokenizer's end-of-sequence token, and before it what ends a turn in its own chat
    template where the job trains with that. Raises as `prepare_rows`.
    """
    ends = stop_ids(files) if train.template == "chat" else ()
    return tuple(dict.fromkeys((*ends, tokenizer.eos_id)))


Keep = Callable[[Iterable[EncodedRow], int], TokenizedRows | StoredRows]
"""Where encoded rows go: their rows, and which of several templates they are in, from 0."""


def prepare_rows(
    rows: Iterable[TrainingRow],
    tokenizer: RowTokenizer,
    files: Mapping[str, bytes],
    train: TrainSpec,
    *,
    keep: Keep | None = None,
    flatten: Flatten | None = None,
) -> TrainingData:
    """Encode rows as the job asks: by the recipe's template, by several of the job's, or by the tokenizer's own.

    Args:
        rows: gone through once for each template.
        keep: where they are put; None: into memory.
        flatten: where best-fit packing keeps all tokens meanwhile; None: in memory.

    Raises:
        DataError: no rows, rows of another recipe, or nothing left to learn from at this `max_length`; or conversations
            that do not fit the tokenizer's chat template.
        ModelError: the tokenizer has no chat template.
    """
    put = keep or (lambda encoded, _: gather_rows(encoded, max_length=train.max_length))
    if train.template == "chat":
        return put(encode_chats(map(_chat, rows), files, max_length=train.max_length), 0)
    templates = train.templates or (None,)
    variants = tuple(
        put(_encode(rows, tokenizer, train, template, flatten), place) for place, template in enumerate(templates)
    )
    return variants[0] if len(variants) == 1 else MixedRows(variants, seed=train.seed)


def _encode(
    rows: Iterable[TrainingRow], tokenizer: RowTokenizer, train: TrainSpec, template: TemplateSpec | None,
    flatten: Flatten | None,
) -> Iterator[EncodedRow]:  # fmt: skip
    if train.recipe == "pretrain":
        texts = (row.text for row in _of_recipe(rows, train) if isinstance(row, Document))
        return encode_documents(
            texts, tokenizer, block_size=train.max_length, packing=train.packing, flatten=flatten
        )  # fmt: skip
    examples = (to_example(row, template) for row in _of_recipe(rows, train) if isinstance(row, Row | Conversation))
    return encode_examples(examples, tokenizer, max_length=train.max_length)


def _of_recipe(rows: Iterable[TrainingRow], train: TrainSpec) -> Iterator[TrainingRow]:
    wanted = {"alpaca": Row, "vicuna": Conversation, "pretrain": Document}[train.recipe]
    for place, row in enumerate(rows):
        if not isinstance(row, wanted):
            raise DataError(
                f"Row {place} is a {type(row).__name__}, but train.recipe is {train.recipe}, which trains on rows of "
                f"the form {wanted.__name__}. Set train.recipe to match the data."
            )
        yield row


def _chat(row: TrainingRow) -> tuple[ChatTurn, ...]:
    if isinstance(row, Chat):
        return row.turns
    if isinstance(row, Row):
        asked = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
        return (ChatTurn("user", asked), ChatTurn("assistant", row.output))
    if isinstance(row, Conversation):
        return tuple(
            turn for asked, said in row.exchanges for turn in (ChatTurn("user", asked), ChatTurn("assistant", said))
        )
    raise DataError("Documents have no turns, so train.template: chat does not fit them. Leave template out.")
