"""How many tokens a chat is for a model, in Vicuna's format as it is trained on; for splitting long ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from alpaca_jobs.data.formats import Example
from alpaca_jobs.data.formats import Turn as ChatTurn
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.reading import Conversation
from alpaca_jobs.training.recipes import build_tokenizer, to_example
from alpaca_jobs.training.tokenizer import load_tokenizer


def chat_counter(train: TrainSpec, chats: Sequence[Example]) -> Callable[[Sequence[ChatTurn]], int]:
    """Return a function from a chat's turns (questions and answers in turn) to its tokens, EOS included.

    Args:
        train: whose model's tokenizer; recipe vicuna.
        chats: what `tiny-llama`'s tokenizer is trained on; others do not look at them.

    Raises:
        ModelError: the model or its tokenizer cannot be had.
    """
    conversations = [found for chat in chats if (found := Conversation(_exchanges(chat.turns))).exchanges]
    tokenizer = load_tokenizer(build_tokenizer(train, conversations))

    @lru_cache(maxsize=4096)
    def count_text(text: str, *, is_first: bool = True) -> int:
        encode = None if is_first else tokenizer.encode_after
        return len((encode or tokenizer.encode)([text])[0])

    def count(turns: Sequence[ChatTurn]) -> int:
        # Training encodes turn by turn (data.py), so these add up exactly; a system text comes on top.
        spoken = to_example(Conversation(_exchanges(turns)))
        system = sum(count_text(turn.text) for turn in turns if turn.role == "system")
        said = (count_text(one.prompt + one.answer, is_first=not place) for place, one in enumerate(spoken))
        return len(tokenizer.prefix) + system + sum(said) + len(spoken)

    return count


def _exchanges(turns: Sequence[ChatTurn]) -> tuple[tuple[str, str], ...]:
    spoken = [turn.text for turn in turns if turn.role != "system"]
    return tuple(zip(spoken[::2], spoken[1::2], strict=False))
