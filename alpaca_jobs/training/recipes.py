"""What a recipe makes of rows: Alpaca's single turns, Vicuna's conversations; the one place that knows both formats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alpaca_jobs import prompts
from alpaca_jobs.data.record_files import Record, load_records
from alpaca_jobs.data.rows import Row, load_rows
from alpaca_jobs.errors import DataError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training import tokenizer as tokenizers_of_models
from alpaca_jobs.training.data import Example, TokenizedRows, Turn, tokenize_examples
from alpaca_jobs.training.tokenizer import RowTokenizer

_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat of one or more exchanges, oldest first: (what the human said, what the assistant answered)."""

    exchanges: tuple[tuple[str, str], ...]


TrainingRow = Row | Conversation


def load_training_rows(source: str, train: TrainSpec) -> tuple[TrainingRow, ...]:
    """Read the rows of `data.from` in the recipe's format, from a path or an fsspec URI.

    Raises:
        DataError: nothing there, not JSON, no rows, or a row without its fields; says which.
    """
    if train.recipe == "alpaca":
        return load_rows(source)
    return tuple(_conversation(record) for record in load_records(source))


def to_example(row: TrainingRow) -> Example:
    """Prompts and answers of a row, as the text that is trained on; EOS is added when it becomes tokens."""
    if isinstance(row, Row):
        return (Turn(prompts.render_prompt(row.instruction, row.input), row.output),)
    turns, opening = [], prompts.VICUNA_SYSTEM + prompts.VICUNA_AFTER_USER
    for question, answer in row.exchanges:
        prompt = f"{prompts.VICUNA_USER}: {question}{prompts.VICUNA_AFTER_USER}{prompts.VICUNA_ASSISTANT}:"
        turns.append(Turn(opening + prompt, f" {answer}"))
        opening = ""
    return tuple(turns)


def build_tokenizer(train: TrainSpec, rows: Iterable[TrainingRow]) -> dict[str, bytes]:
    """Files of the tokenizer folder for this training; `tiny-llama`'s is trained on the rows. Raises: ModelError."""
    texts = (turn.prompt + turn.answer for row in rows for turn in to_example(row))
    return tokenizers_of_models.build_tokenizer(train.model, texts)


def tokenize_rows(rows: Sequence[TrainingRow], tokenizer: RowTokenizer, train: TrainSpec) -> TokenizedRows:
    """Encode rows in the recipe's format; row i of the result is rows[i].

    Raises:
        DataError: no rows, rows of another recipe, or nothing left to learn from at this `max_length`.
    """
    wanted = Row if train.recipe == "alpaca" else Conversation
    for place, row in enumerate(rows):
        if not isinstance(row, wanted):
            raise DataError(
                f"Row {place} is a {type(row).__name__}, but train.recipe is {train.recipe}, which trains on rows of "
                f"the form {wanted.__name__}. Set train.recipe to match the data."
            )
    return tokenize_examples((to_example(row) for row in rows), tokenizer, max_length=train.max_length)


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
