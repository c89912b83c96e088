"""Does a prompt keep its tokens once the answer follows? Where it does not, the model is not asked as it was taught.

A template that ends with a space is the common case: the space becomes part of the answer's first word. That token then
counts as the prompt's and is not learned, and the prompt as it will be asked, with the space for a token of its own, is
one that the model never saw.
"""

from __future__ import annotations

from collections.abc import Iterable

from alpaca_jobs.data.rows import Row
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.data import Example, Turn, in_chunks
from alpaca_jobs.training.reading import Conversation, TrainingRow
from alpaca_jobs.training.recipes import to_example
from alpaca_jobs.training.tokenizer import Encoder, RowTokenizer


def count_joined_rows(rows: Iterable[TrainingRow], tokenizer: RowTokenizer, train: TrainSpec) -> int:
    """How many rows have a prompt whose last tokens are others once its answer follows, in any of the templates.

    Only rows with turns in a recipe's or the job's own prompts are looked at; in a chat template a special token or a
    line break stands between the two.
    """
    if train.template == "chat" or train.recipe == "pretrain":
        return 0
    spoken = [row for row in rows if isinstance(row, Row | Conversation)]
    joined: set[int] = set()
    for template in train.templates or (None,):
        examples = ((place, to_example(row, template)) for place, row in enumerate(spoken))
        for chunk in in_chunks(examples, size_of=lambda one: sum(len(turn.prompt + turn.answer) for turn in one[1])):
            joined |= _joined(chunk, tokenizer)
    return len(joined)


def _joined(chunk: list[tuple[int, Example]], tokenizer: RowTokenizer) -> set[int]:
    first = [(place, example[0]) for place, example in chunk]
    later = [(place, turn) for place, example in chunk for turn in example[1:]]
    encoders = ((first, tokenizer.encode), (later, tokenizer.encode_after or tokenizer.encode))
    return {place for turns, encode in encoders for place in _places(turns, encode)}


def _places(turns: list[tuple[int, Turn]], encode: Encoder) -> list[int]:
    prompts = encode([turn.prompt for _, turn in turns])
    texts = encode([turn.prompt + turn.answer for _, turn in turns])
    return [
        place
        for (place, turn), prompt, text in zip(turns, prompts, texts, strict=True)
        if turn.answer and text[: len(prompt)] != prompt
    ]
