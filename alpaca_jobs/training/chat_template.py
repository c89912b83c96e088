"""Conversations in the tokenizer's own chat template, with loss on what the assistant says.

The text is rendered turn by turn: what the template adds for an assistant turn is that turn's target, up to and with
the special token that ends it, unless the turn is only to be read. So it needs no `{% generation %}` marks, which few
templates have. The whole conversation becomes tokens at once, as it will when the model is used, and targets follow
from characters.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alpaca_jobs.data.formats import Turn
from alpaca_jobs.errors import DataError, ModelError
from alpaca_jobs.training.data import EncodedRow, cut_row
from alpaca_jobs.training.hub import foreign_model_errors
from alpaca_jobs.training.known_faults import NO_CHAT_TEMPLATE
from alpaca_jobs.training.tokenizer import write_folder

Span = tuple[int, int]

_MARK = "\ue0ff"  # of Unicode's private use, which no template writes
_SHOWN = 24  # characters of a prompt's end in an error text
_SHOWN_TURNS = 4
_ASK_EACH = (
    "Make a conversation of each answer, the earlier ones only to be read: alpaca-jobs data convert IN OUT --to openai "
    "--each-answer. Or use a recipe's template (train.template: recipe)."
)
_PROBE = (Turn("user", "Hi"), Turn("assistant", "Hello"))


def encode_chats(
    chats: Iterable[tuple[Turn, ...]], files: Mapping[str, bytes], *, max_length: int
) -> Iterator[EncodedRow]:  # fmt: skip
    """Encode conversations by the chat template among a tokenizer's files.

    Raises:
        ModelError: the tokenizer has no chat template, or is not a fast one.
        DataError: no conversations; a template that rewrites earlier turns; a text that holds a special token.
    """
    tokenizer = _load(files)
    specials = _specials(tokenizer)
    for number, chat in enumerate(chats):
        _refuse_special(chat, specials, number)
        text, spans = render_chat(chat, tokenizer, specials, number)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        is_target = [any(begin < stop and end > start for start, stop in spans) for begin, end in offsets]
        yield cut_row(ids, is_target, max_length=max_length)


def stop_ids(files: Mapping[str, bytes]) -> tuple[int, ...]:
    """Ids of the special tokens that end the assistant's turn in the chat template among a tokenizer's files: what a
    model trained with it says to stop. Often that is not the tokenizer's own end-of-sequence token: Gemma's turns end
    with <end_of_turn>, those of Qwen's base models with <|im_end|>.

    Returns:
        Nothing where the template takes no conversation of one exchange.

    Raises:
        ModelError: the tokenizer has no chat template, or is not a fast one.
    """
    tokenizer = _load(files)
    specials = _specials(tokenizer)
    try:
        text, spans = render_chat(_PROBE, tokenizer, specials)
    except DataError:
        return ()
    (end,) = [found for found in specials.finditer(text) if found.end() == spans[0][1]]
    return (int(tokenizer.convert_tokens_to_ids(end.group())),)


def render_chat(
    chat: Sequence[Turn], tokenizer: Any, specials: re.Pattern[str], number: int = 0
) -> tuple[str, list[Span]]:
    """The text of a conversation, and from where to where the assistant speaks in it, in characters.

    Args:
        specials: finds the tokenizer's special tokens in a text.
        number: of the conversation, from 0, for error texts.

    Raises:
        DataError: the template does not add turn after turn, or refuses the conversation.
    """
    messages = [{"role": turn.role, "content": turn.text} for turn in chat]
    spans: list[Span] = []

    def render(some: Sequence[Mapping[str, str]], **prompt: bool) -> str:
        text: str = tokenizer.apply_chat_template(list(some), tokenize=False, **prompt)
        return text

    try:
        whole = render(messages)
        for place, message in enumerate(messages):
            if message["role"] != "assistant" or not chat[place].is_learned:
                continue
            if not place:
                raise DataError(
                    f"Conversation {number} begins with the assistant, and nothing is asked before its answer. Take "
                    "that turn out (alpaca-jobs data clean IN OUT does)."
                )
            earlier = messages[:place]
            before = render(earlier, add_generation_prompt=True)
            after = render(messages[: place + 1])
            if not after.startswith(before):
                raise _not_turn_by_turn(number, place, before[-_SHOWN:] if after.startswith(render(earlier)) else "")
            marked = partial(render, [*earlier, {**message, "content": _MARK}])
            end = _end_of_turn(after, len(before), message["content"], marked, specials)
            if not whole.startswith(after[:end]):  # what comes behind may differ: some end the whole text with EOS
                raise _not_turn_by_turn(number, place)
            spans.append((len(before), end))
    except (ValueError, TypeError, jinja_error()) as exc:  # a template refuses what it was not made for
        raise DataError(
            f"Conversation {number} ({', '.join(turn.role for turn in chat[:_SHOWN_TURNS])}"
            f"{', ...' if len(chat) > _SHOWN_TURNS else ''}) does not fit the tokenizer's chat template, which says: "
            f"{str(exc).rstrip('.')}. Take out the turns that it has no place for, or use a recipe's template "
            "(train.template: recipe)."
        ) from exc
    return whole, spans


def _not_turn_by_turn(number: int, place: int, asked: str = "") -> DataError:
    """What to say of a template whose turns depend on what follows.

    Args:
        asked: what it asks for an answer with, where it does not write that before one.
    """
    how, what = "writes it otherwise once more turns follow", _ASK_EACH
    if asked:
        what = "Use a recipe's template (train.template: recipe)."
        how = f"asks for an answer with {asked!r} and leaves that out before one"
    return DataError(
        f"Conversation {number}, turn {place + 1}: the tokenizer's chat template {how}, so what the model learns would "
        f"not be what it meets. {what}"
    )


def jinja_error() -> type[Exception]:
    """What a template raises, or one that cannot be read."""
    from jinja2.exceptions import TemplateError

    error: type[Exception] = TemplateError
    return error


def _end_of_turn(text: str, begin: int, content: str, marked: Callable[[], str], specials: re.Pattern[str]) -> int:
    """Behind the first special token after the answer, which is what the model has to say to stop.

    Args:
        begin: where the turn begins.
        marked: the same text with _MARK for the answer. It is asked for only where the turn holds several special
            tokens, as with a header of them before the answer: `<|channel|>final<|message|>`.
    """
    ends = list(specials.finditer(text, begin))
    if not ends:
        raise DataError(
            "The tokenizer's chat template ends an assistant's turn with no special token, so a model trained with it "
            "would never stop. Use a recipe's template (train.template: recipe)."
        )
    if len(ends) == 1:
        return ends[0].end()
    after = max(marked().find(_MARK, begin), begin) + len(content.strip())
    return next((end for end in ends if end.start() >= after), ends[-1]).end()


def _specials(tokenizer: Any) -> re.Pattern[str]:
    """Every special token: those that tokenizer_config.json names, and those that tokenizer.json alone calls so."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    longest_first = sorted({*tokenizer.all_special_tokens, *added}, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)))


def _refuse_special(chat: Sequence[Turn], specials: re.Pattern[str], number: int) -> None:
    for place, turn in enumerate(chat, start=1):
        if found := specials.search(turn.text):
            raise DataError(
                f"Conversation {number}, turn {place} holds the text {found.group()}, which the tokenizer reads as a "
                "special token: it would end or begin a turn inside of one. Take it out of the data."
            )


def _load(files: Mapping[str, bytes]) -> Any:
    with tempfile.TemporaryDirectory() as scratch, foreign_model_errors("the saved tokenizer", "tokenizer"):
        from transformers import AutoTokenizer

        write_folder(files, Path(scratch))
        tokenizer: Any = AutoTokenizer.from_pretrained(scratch)
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(NO_CHAT_TEMPLATE)
    if not tokenizer.is_fast:
        raise ModelError(
            "train.template is chat, but the base model's tokenizer is a slow one, which does not tell which "
            "characters a token covers. Save it as a fast tokenizer (tokenizer.json) first."
        )
    return tokenizer
