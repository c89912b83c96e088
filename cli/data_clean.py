"""`alpaca-jobs data clean`: shared chats made fit for training."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options, render, words
from cli.exits import require_modules


def clean(
    source: Annotated[str, typer.Argument(metavar="IN", help="Chats: JSON, JSON lines or Parquet; a path or a URI.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new file: .json, .jsonl or .parquet.")],
    language: Annotated[
        str | None, typer.Option("--language", metavar="CODE", help="Drop chats in others than this, such as en.")
    ] = None,
    max_words: Annotated[
        int | None, typer.Option("--max-words", metavar="N", min=1, help="Split longer chats between two exchanges.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Clean shared chats: HTML becomes Markdown, broken and repeated ones are dropped, long ones split.

    Example: alpaca-jobs data clean sharegpt.json clean.json --language en --max-words 1400

    OUT has ShareGPT's shape, as `train.recipe: vicuna` reads it. A chat that is fine stays as it is, to the letter.
    """
    require_modules("markdownify", "py3langid", *(["pyarrow"] if ".parquet" in source + out else []))
    from alpaca_jobs.data.cleaning import clean_chats
    from alpaca_jobs.data.files import check_target, load_table, write_table
    from alpaca_jobs.data.formats import read_examples, render_examples

    check_target(out)
    chats = read_examples(load_table(source))
    found = clean_chats(chats, language=language, max_words=max_words)
    write_table(out, render_examples(found.chats, "sharegpt"))
    drops = dict(sorted(found.drops.items()))
    if as_json:
        counts = {"in": source, "out": out, "chats": len(chats), "kept": len(found.chats)}
        render.out_json({**counts, "drops": drops, "with_html": found.num_html, "split_off": found.num_split})
        return
    render.out(out)
    dropped = ", ".join(f"{reason} {count}" for reason, count in drops.items()) or "none"
    render.say(
        f"{words.plural(len(chats), 'chat')} in, {len(found.chats):,} out ({found.num_split:,} of them split off); "
        f"HTML in {found.num_html:,}; dropped: {dropped}"
    )
