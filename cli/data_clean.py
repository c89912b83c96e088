"""`alpaca-jobs data clean`: shared chats made fit for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options, render, words
from cli.exits import Refused, require_modules

if TYPE_CHECKING:
    from alpaca_jobs.data.formats import Example, Turn


def clean(
    source: Annotated[str, typer.Argument(metavar="IN", help="Chats: JSON, JSON lines or Parquet; a path or a URI.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new file: .json, .jsonl or .parquet.")],
    language: Annotated[
        str | None, typer.Option("--language", metavar="CODE", help="Drop chats in others than this, such as en.")
    ] = None,
    blocked: Annotated[
        list[str] | None,
        typer.Option(
            "--blocked", metavar="TEXT", help="Drop chats with this answer, instead of known errors. Repeatable."
        ),
    ] = None,
    max_words: Annotated[
        int | None, typer.Option("--max-words", metavar="N", min=1, help="Split longer chats between two exchanges.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", min=1, help="The same in tokens of --model or --job.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Whose tokens are counted.")] = None,
    job_file: Annotated[
        Path | None,
        typer.Option("--job", metavar="JOB", help="Split to this job's train.max_length, by its tokenizer."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Clean shared chats: HTML in answers becomes Markdown, broken and repeated ones are dropped, long ones split.

    Example: alpaca-jobs data clean sharegpt.json clean.json --language en --job vicuna.yaml

    With --job (or --model and --max-tokens) lengths are tokens, counted as training counts them. OUT has ShareGPT's
    shape, as `train.recipe: vicuna` reads it. A chat that is fine stays as it is, to the letter.
    """
    require_modules("markdownify", "py3langid", *(["pyarrow"] if ".parquet" in source + out else []))
    from alpaca_jobs.data.cleaning import BLOCKED_ANSWERS, clean_chats
    from alpaca_jobs.data.files import check_target, load_table
    from alpaca_jobs.data.formats import read_examples, render_examples
    from alpaca_jobs.data.language import language_name
    from alpaca_jobs.data.lineage_file import hand_on
    from alpaca_jobs.data.stream_writing import write_table

    if language is not None:
        language = language.lower()
        language_name(language)
    check_target(out)
    chats = read_examples(load_table(source))
    limit, length = _limit(chats, max_words, max_tokens, model, job_file)
    found = clean_chats(
        chats, language=language, max_length=limit, length=length,
        blocked=BLOCKED_ANSWERS if blocked is None else blocked,
    )  # fmt: skip
    write_table(out, render_examples(found.chats, "sharegpt"))
    hand_on(source, out, "chats cleaned")
    drops = dict(sorted(found.drops.items()))
    if as_json:
        counts = {"in": source, "out": out, "chats": len(chats), "kept": len(found.chats)}
        render.out_json(
            {
                **counts,
                "drops": drops,
                "with_html": found.num_html,
                "split_off": found.num_split,
                "too_long": found.num_too_long,
            }
        )
        return
    render.out(out)
    dropped = ", ".join(f"{reason} {count}" for reason, count in drops.items()) or "none"
    render.say(
        f"{words.plural(len(chats), 'chat')} in, {len(found.chats):,} out ({found.num_split:,} of them split off); "
        f"HTML in {found.num_html:,}; {found.num_too_long:,} of one exchange too long to split; dropped: {dropped}"
    )


def _limit(
    chats: Sequence[Example], max_words: int | None, max_tokens: int | None, model: str | None, job_file: Path | None
) -> tuple[int | None, Callable[[Sequence[Turn]], int]]:
    """Return the longest a chat may be, and how that is measured."""
    from alpaca_jobs.data.cleaning import num_words

    if job_file is None and model is None:
        if max_tokens is not None:
            raise Refused("--max-tokens wants to know whose: add --model NAME, or name the job with --job.")
        return max_words, num_words
    if max_words is not None or (model is not None and job_file is not None):
        raise Refused("Say the length in one way: --max-words N, or --model NAME --max-tokens N, or --job JOB.")
    require_modules("numpy", "tokenizers", "transformers")
    from alpaca_jobs.spec import TrainSpec
    from alpaca_jobs.spec_io import load_job, part_from_dict
    from alpaca_jobs.training.chat_length import chat_counter

    if model is not None:
        train = part_from_dict(TrainSpec, {"recipe": "vicuna", "model": model})
    else:
        train = load_job(Path(job_file or "")).train
    return max_tokens or train.max_length, chat_counter(train, chats)
