"""Rows of files in a recipe's format: what is in a record, and records of a file at once or one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from alpaca_jobs.data.files import load_table
from alpaca_jobs.data.formats import Turn as ChatTurn
from alpaca_jobs.data.formats import learned, read_examples
from alpaca_jobs.data.record_files import Record, read_text
from alpaca_jobs.data.rows import Row, iter_rows
from alpaca_jobs.data.streams import stream_table, stream_text
from alpaca_jobs.errors import DataError
from alpaca_jobs.spec import TrainSpec

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
    return read_training_rows(load_training_records(source, train), train)


def load_training_records(source: str, train: TrainSpec) -> tuple[Record, ...]:
    """Read the records that `load_training_rows` makes rows of; of a .txt file each line is one. Raises as it."""
    if not _is_text(source, train):
        return load_table(source)
    lines = read_text(source).split("\n")
    return tuple(Record(f"{source} line {number}", {"text": line}) for number, line in enumerate(lines, start=1))


def first_training_records(path: str, train: TrainSpec, number: int) -> tuple[Record, ...]:
    """The first of a local file's records. Of a .txt file no more is read; another is read whole, so that its last line
    is known to be right, too. Raises as `load_training_rows`."""
    if not _is_text(path, train):
        return load_table(path)[:number]
    lines = islice(stream_text(Path(path).expanduser(), path), number)
    return tuple(Record(f"{path} line {place}", {"text": line}) for place, line in enumerate(lines, start=1))


def read_training_rows(records: Sequence[Record], train: TrainSpec) -> tuple[TrainingRow, ...]:
    """The rows that records of a file are in this recipe. Raises DataError: a record without its fields; says which."""
    return tuple(iter_training_rows(records, train))


def iter_training_rows(records: Iterable[Record], train: TrainSpec) -> Iterator[TrainingRow]:
    """The rows that records are in this recipe, one by one. Raises as `read_training_rows`."""
    if train.recipe == "pretrain":
        yield from (Document(record.text("text", may_be_empty=True)) for record in records)
    elif train.template == "chat":
        yield from (Chat(example.turns) for record in records for example in read_examples([record]))
    else:
        yield from iter_rows(records) if train.recipe == "alpaca" else map(_conversation, records)


@dataclass(frozen=True)
class RowFile:
    """The rows of a file on this machine, read anew, in bounded memory, each time they are gone through.

    Attributes:
        source: what the file is called in error texts; its ending says the format.
    """

    path: Path
    source: str
    train: TrainSpec

    def __iter__(self) -> Iterator[TrainingRow]:
        """Raises as `load_training_rows`."""
        if _is_text(self.source, self.train):
            return map(Document, stream_text(self.path, self.source))
        return iter_training_rows(stream_table(self.path, self.source), self.train)


def _is_text(source: str, train: TrainSpec) -> bool:
    return train.recipe == "pretrain" and source.endswith(".txt")


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
    if speaker == "gpt" and not learned(Record(where, fields)):
        raise DataError(
            f"{where} is not to be learned (weight 0), but recipe vicuna learns every answer. Set "
            "train.template: chat, which leaves such answers out, or take 'weight' out."
        )
    return speaker, value
