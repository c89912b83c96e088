"""`alpaca-jobs data translate`: rows or chats in another language, by a teacher."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, render, starting, words
from cli.exits import Refused, require_modules

if TYPE_CHECKING:
    from alpaca_jobs.spec import TeacherSpec
    from cluster.launch.translating import Progress, Translated


PATIENCE_S = 60.0
"""How long a teacher that answers nobody is waited for: somebody sits here, and what was answered lies in OUT.state."""


def translate(
    source: Annotated[str, typer.Argument(metavar="IN", help="Rows or chats: JSON, JSON lines or Parquet.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new file: .json, .jsonl or .parquet.")],
    to: Annotated[str, typer.Option("--to", metavar="LANG", help="Into which language: zh, ja, pt, ...")],
    from_: Annotated[str, typer.Option("--from", metavar="LANG", help="Which language IN is in.")] = "en",
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Who translates.")] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="An OpenAI-compatible server; else OpenAI's own.")
    ] = None,
    key_env: Annotated[
        str, typer.Option("--key-env", metavar="NAME", help="Environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    prices: Annotated[
        str | None, typer.Option("--prices", metavar="IN,OUT", help="Dollars per million tokens, if not OpenAI's.")
    ] = None,
    job_file: Annotated[
        Path | None, typer.Option("--job", metavar="JOB", help="Take the teacher of this job instead of --model.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="The demo teacher: no translation, but the whole path, without a key.")
    ] = False,
    max_usd: Annotated[
        float | None,
        typer.Option(
            "--max-usd", metavar="USD", min=0, callback=options.finite, help="Never spend more, over all starts."
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency", metavar="N", min=1, help="Requests at a time; else as many as bring more answers."
        ),
    ] = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Translate rows of any shape: code, addresses, placeholders and numbers stay, order and other fields too.

    Example: alpaca-jobs data translate rows.json rows.pt.json --to pt --model gpt-4o-mini --max-usd 5

    Killed, it goes on when it is started again: paid answers lie in OUT.state. An answer that is empty, cut off, in
    another language, or that lost something is asked for again, twice at most; a row that stays bad is left out,
    counted by reason and listed in OUT.dropped.jsonl.
    """
    require_modules("openai", "py3langid", *(["pyarrow"] if ".parquet" in source + out else []))
    from alpaca_jobs.data.files import check_target, load_table
    from alpaca_jobs.data.language import language_name
    from alpaca_jobs.data.lineage_file import hand_on
    from alpaca_jobs.data.stream_writing import write_table
    from alpaca_jobs.data.translate import make_units
    from cluster.launch.translating import expected_usd, translate_records

    names = (language_name(from_), language_name(to))
    if from_ == to:
        raise Refused(f"--to {to} is the language that IN is in. Name another, or say --from.")
    teacher = _teacher(model, base_url, key_env, prices, job_file, offline=offline)
    check_target(out)
    records = load_table(source)
    units = make_units(records)
    state = Path(f"{out}.state")
    if not isinstance(teacher, str):
        starting.check_key(teacher)
        usd = expected_usd(units, teacher, language=to)
        if usd is None and max_usd is not None:
            raise Refused(
                f"--max-usd {max_usd:g} cannot be kept: what {teacher.model} costs is not known. Say it in dollars per "
                "million tokens, --prices IN,OUT, or leave --max-usd away."
            )
        asked = f"Have {teacher.model} translate {words.plural(len(records), 'row')} from {names[0]} into {names[1]}?"
        starting.agree(asked, yes=yes, grids=[_price_grid(usd, teacher, max_usd)])
    panel = render.LivePanel() if render.progress_is_live() else None
    with panel or nullcontext():
        found = translate_records(
            records, language=to, source=from_, teacher=teacher, state=state, max_usd=max_usd, concurrency=concurrency,
            on_progress=lambda now: panel.show(_progress_grid(now)) if panel else None,
        )  # fmt: skip
    if found.rows:
        write_table(out, found.rows)
        hand_on(source, out, f"translated from {names[0]} into {names[1]}", _translator(teacher))
    _list_dropped(Path(f"{out}.dropped.jsonl"), found)
    _report(found, source, out, to, as_json=as_json, is_demo=isinstance(teacher, str), state=state)


def _teacher(
    model: str | None, base_url: str | None, key_env: str, prices: str | None, job_file: Path | None, *, offline: bool
) -> TeacherSpec | str:
    """Return whom to ask, from whichever of the three was named."""
    from alpaca_jobs.spec import TeacherSpec
    from alpaca_jobs.spec_io import load_job, part_from_dict

    if sum((model is not None, job_file is not None, offline)) != 1:
        raise Refused("Who translates? Name one of --model NAME, --job JOB or --offline.")
    if offline:
        return "offline"
    if job_file is not None:
        teacher = load_job(job_file).data.teacher
        if teacher is None:
            raise Refused(f"{job_file} names no teacher (data.teacher). Name one here: --model NAME")
        return teacher
    given: dict[str, Any] = {"model": model, "base_url": base_url, "api_key_env": key_env, "patience_s": PATIENCE_S}
    if prices is not None:
        try:
            given["price_per_million_input_usd"], given["price_per_million_output_usd"] = map(float, prices.split(","))
        except ValueError:
            raise Refused(
                f"--prices is {prices!r}, but two numbers with a comma are wanted, such as 0.15,0.60"
            ) from None
    return part_from_dict(TeacherSpec, given)


def _translator(teacher: TeacherSpec | str) -> dict[str, str]:
    """Who translated, and under which terms, for the lineage of the rows."""
    from alpaca_jobs.data.lineage import teacher_lineage

    if isinstance(teacher, str):
        return {"translator": "the offline demo teacher", "terms of the translation": "demo data composed by rule"}
    found = teacher_lineage(teacher)
    return {"translator": found["teacher"], "terms of the translation": found["terms"]}


def _price_grid(usd: float | None, teacher: TeacherSpec, max_usd: float | None) -> render.Grid:
    limit = "none; set one with --max-usd" if max_usd is None else f"{words.money(max_usd)}, over all starts"
    about = "not known; name it with --prices IN,OUT" if usd is None else f"about {words.money(usd)}"
    return render.pairs("Translation", [("by", teacher.model), ("price", about), ("limit", limit)])


def _progress_grid(now: Progress) -> render.Grid:
    rows = [
        ("texts", f"{now.done:,} of {now.units:,}"),
        ("answers", f"{now.asked:,} asked now, {now.found:,} from before"),
        ("spent", words.money(now.spent_usd)),
    ]
    if now.again:
        rows.append(("asked again", _counts(now.again)))
    return render.pairs("Translation", rows)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items())) or "none"


def _list_dropped(path: Path, found: Translated) -> None:
    if found.dropped:
        lines = (
            {"row": one.place, "where": one.where, "reason": one.reason, "fields": one.fields} for one in found.dropped
        )
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _report(found: Translated, source: str, out: str, to: str, *, as_json: bool, is_demo: bool, state: Path) -> None:
    drops = Counter(one.reason for one in found.dropped)
    now = found.progress
    if as_json:
        render.out_json(
            {
                "in": source, "out": out if found.rows else None, "to": to, "rows": len(found.rows),
                "drops": dict(drops),
                "dropped": [{"row": one.place, "where": one.where, "reason": one.reason} for one in found.dropped],
                "asked": now.asked, "from_before": now.found, "asked_again": dict(now.again),
                "spent_usd": now.spent_usd, "demo": is_demo,
            }
        )  # fmt: skip
        return
    if found.rows:
        render.out(out)
    demo = "Demo data, no translation: " if is_demo else ""
    listed = f", listed in {out}.dropped.jsonl" if found.dropped else ""
    render.say(
        f"{demo}{words.plural(len(found.rows), 'row')}; dropped: {_counts(drops)}{listed}; asked again: "
        f"{_counts(now.again)}; {words.money(now.spent_usd)} spent. The answers stay in {state} until you remove it."
    )
