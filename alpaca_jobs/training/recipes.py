"""What a recipe makes of rows: Alpaca's turns, Vicuna's conversations, documents; the one place that knows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from alpaca_jobs import prompts
from alpaca_jobs.data.files import load_table
from alpaca_jobs.data.formats import Turn as ChatTurn
from alpaca_jobs.data.formats import read_examples
from alpaca_jobs.data.record_files import Record, read_bytes
from alpaca_jobs.data.rows import Row, rows_from
from alpaca_jobs.errors import DataError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.spec_recipe import TemplateSpec
from alpaca_jobs.training import tokenizer as tokenizers_of_models
from alpaca_jobs.training.chat_template import tokenize_chats
from alpaca_jobs.training.data import Example, TokenizedRows, TrainingData, Turn, tokenize_examples
from alpaca_jobs.training.mixing import MixedRows
from alpaca_jobs.training.packing import pack_documents
from alpaca_jobs.training.tokenizer import RowTokenizer
from alpaca_jobs.training.vocabulary import extend_tokenizer

_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat of one or more exchanges, oldest first: (what the human said, what the assistant answered)."""

    exchanges: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation for a tokenizer's own template: turns of system, user and assistant."""

    turns: tuple[ChatTurn, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A text to go on pre-training with."""

    text: str


TrainingRow = Row | Conversation | Chat | Document


def load_training_rows(source: str, train: TrainSpec) -> tuple[TrainingRow, ...]:
    """Read the rows of `data.from` in the recipe's format: JSON, JSON lines or Parquet, from a path or an fsspec URI;
    a .txt file holds one document a line.

    Raises:
        DataError: nothing there, not what its name says, no rows, or a row without its fields; says which.
    """
    if train.recipe == "pretrain" and source.endswith(".txt"):
        return tuple(map(Document, read_bytes(source).decode("utf-8-sig").split("\n")))
    return read_training_rows(load_table(source), train)


def read_training_rows(records: Sequence[Record], train: TrainSpec) -> tuple[TrainingRow, ...]:
    """The rows that records of a file are in this recipe. Raises DataError: a record without its fields; says which."""
    if train.recipe == "pretrain":
        return tuple(Document(record.text("text", may_be_empty=True)) for record in records)
    if train.template == "chat":
        return tuple(Chat(example.turns) for example in read_examples(records))
    return rows_from(records) if train.recipe == "alpaca" else tuple(map(_conversation, records))


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
    return files if train.tokenizer is None else extend_tokenizer(files, train.tokenizer.extend)


def _texts(row: TrainingRow) -> Iterable[str]:
    if isinstance(row, Document):
        return (row.text,)
    if isinstance(row, Chat):
        return (turn.text for turn in row.turns)
    return (turn.prompt + turn.answer for turn in to_example(row))


def tokenize_rows(
    rows: Sequence[TrainingRow], tokenizer: RowTokenizer, train: TrainSpec, *, templates: bool = True
) -> TokenizedRows:
    """Encode rows in the recipe's own template, or the job's first one; row i of the result is rows[i], except that
    documents are packed.

    Raises:
        DataError: no rows, rows of another recipe, or nothing left to learn from at this `max_length`.
    """
    return _tokenize(rows, tokenizer, train, train.templates[0] if templates and train.templates else None)


def prepare_rows(
    rows: Sequence[TrainingRow], tokenizer: RowTokenizer, files: Mapping[str, bytes], train: TrainSpec
) -> TrainingData:
    """Encode rows as the job asks: by the recipe's template, by several of the job's, or by the tokenizer's own.

    Raises:
        DataError: as `tokenize_rows`; or conversations that do not fit the tokenizer's chat template.
        ModelError: the tokenizer has no chat template.
    """
    if train.template == "chat":
        return tokenize_chats(map(_chat, rows), files, max_length=train.max_length)
    if len(train.templates) > 1:
        variants = tuple(_tokenize(rows, tokenizer, train, template) for template in train.templates)
        return MixedRows(variants, seed=train.seed)
    return tokenize_rows(rows, tokenizer, train)


def _tokenize(
    rows: Sequence[TrainingRow], tokenizer: RowTokenizer, train: TrainSpec, template: TemplateSpec | None
) -> TokenizedRows:
    wanted = {"alpaca": Row, "vicuna": Conversation, "pretrain": Document}[train.recipe]
    for place, row in enumerate(rows):
        if not isinstance(row, wanted):
            raise DataError(
                f"Row {place} is a {type(row).__name__}, but train.recipe is {train.recipe}, which trains on rows of "
                f"the form {wanted.__name__}. Set train.recipe to match the data."
            )
    if train.recipe == "pretrain":
        texts = (row.text for row in rows if isinstance(row, Document))
        return pack_documents(texts, tokenizer, block_size=train.max_length, packing=train.packing)
    examples = (to_example(row, template) for row in rows if isinstance(row, Row | Conversation))
    return tokenize_examples(examples, tokenizer, max_length=train.max_length)


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


def _conversation(record: Record) -> Conversation:
    """Read `conversations: [{"from": "human"|"gpt", "value": text}, ...]`; a leading answer and an unanswered end are
    cut.

    Source: FastChat, fastchat/train/train.py, preprocess(): a conversation whose first speaker is not the human starts
    with its second message.
    """
    messages = record.fields.get("conversations")
    if not isinstance(messages, list):
        raise DataError(
            f"{record.where}: no list of conversations was found. The vicuna recipe wants "
            '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}.'
        )
    spoken = [_message(message, f"{record.where}: message {place}") for place, message in enumerate(messages)]
    if spoken and spoken[0][0] == "gpt":
        spoken = spoken[1:]
    for place, (speaker, _) in enumerate(spoken):
        if speaker != ("human", "gpt")[place % 2]:
            raise DataError(
                f"{record.where}: {speaker} speaks twice in a row. Join the messages, or remove the conversation."
            )
    exchanges = tuple((spoken[i][1], spoken[i + 1][1]) for i in range(0, len(spoken) - 1, 2))
    if not exchanges:
        raise DataError(f"{record.where}: no question is answered, so there is nothing to learn from. Remove it.")
    return Conversation(exchanges)


def _message(message: object, where: str) -> tuple[str, str]:
    fields = message if isinstance(message, dict) else {}
    speaker, value = _SPEAKERS.get(str(fields.get("from"))), fields.get("value")
    if speaker is None or not isinstance(value, str):
        raise DataError(f'{where} is {message!r:.80}; {{"from": "human" or "gpt", "value": text}} is right.')
    return speaker, value
