"""The data card: one HTML file that says what rows are like and where they come from; no scripts, nothing fetched.

Drawn as SVG in the page itself: lengths, similarity with the nearest other row, and verbs with what they act on as two
rings (after the Self-Instruct paper's figure 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from alpaca_jobs.data.facts import QUANTILES, SIMILARITY_BINS, DataFacts, Lengths, measure_rows
from alpaca_jobs.data.rows import Row

_WIDTH, _HEIGHT = 420, 130
_COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#76b7b2", "#edc948", "#e15759", "#9c755f")
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:left}"
    "pre{white-space:pre-wrap;background:#f6f6f6;padding:.6rem}svg{max-width:100%;height:auto}"
    "svg text{font:10px system-ui,sans-serif}"
)


NUM_EXAMPLES = 5


def make_card(title: str, rows: Sequence[Row], lineage: Mapping[str, str]) -> str:
    """Return the page about at least one row, with examples from all over them."""
    examples = rows[:: max(1, len(rows) // NUM_EXAMPLES)][:NUM_EXAMPLES]
    return render_card(title, measure_rows(rows), lineage, examples)


def render_card(title: str, facts: DataFacts, lineage: Mapping[str, str], examples: Sequence[Row]) -> str:
    """Return the page."""
    share = facts.num_with_input / facts.num_rows
    overview = {
        "rows": f"{facts.num_rows:,}",
        "different instructions": f"{facts.num_instructions:,}",
        "with an input": f"{facts.num_with_input:,} ({share:.0%})",
        "questions": f"{facts.num_questions:,}",
        **lineage,
    }
    shown = "".join(f"<pre>{escape(_as_text(row))}</pre>" for row in examples)
    step = 1 / SIMILARITY_BINS
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n{_table(overview)}\n"
        f"<h2>Lengths</h2>\n{''.join(map(_lengths_section, facts.lengths))}\n"
        f"<h2>Similarity</h2>\n<p>ROUGE-L F of an instruction with the nearest other one, "
        f"{facts.num_compared:,} instructions compared with all.</p>\n"
        f"{_bars(facts.similarity, lambda place: f'{place * step:.2f}')}\n"
        f"<h2>Verbs and what they act on</h2>\n<p>The {len(facts.verbs)} most frequent verbs of orders (inner "
        f"ring) and up to four objects each (outer ring), after the Self-Instruct paper's figure 3; told by a rule "
        f"for English, without a parser.</p>\n{_sunburst(facts)}\n"
        f"<h2>Examples</h2>\n{shown}\n</body></html>\n"
    )


def _as_text(row: Row) -> str:
    given = f"Input: {row.input}\n" if row.input else ""
    return f"Instruction: {row.instruction}\n{given}Output: {row.output}"


def _table(pairs: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in pairs.items())
    return f"<table>{rows}</table>"


def _lengths_section(lengths: Lengths) -> str:
    if not lengths.num_rows:
        return f"<h3>{lengths.name}</h3><p>No row has one.</p>"
    named = zip(QUANTILES, lengths.quantiles, strict=True)
    words = ", ".join(f"{share:.0%}: {count}" for share, count in named)
    chart = _bars(lengths.histogram, lambda place: str(place * lengths.bin_words))
    return f"<h3>{lengths.name}, in words</h3><p>Quantiles {words}.</p>{chart}"


def _bars(counts: Sequence[int], label: Callable[[int], str]) -> str:
    """Return a bar chart; `label` names the lower edge of a bin."""
    width, highest = _WIDTH / max(1, len(counts)), max(counts, default=0) or 1
    parts = []
    for place, count in enumerate(counts):
        height = (_HEIGHT - 20) * count / highest
        parts.append(
            f'<rect x="{place * width:.1f}" y="{_HEIGHT - 15 - height:.1f}" width="{max(1, width - 1):.1f}" '
            f'height="{height:.1f}" fill="{_COLOURS[0]}"><title>from {escape(label(place))}: {count:,}</title></rect>'
        )
        if place % max(1, len(counts) // 10) == 0:
            parts.append(f'<text x="{place * width:.1f}" y="{_HEIGHT - 3}">{escape(label(place))}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img">{"".join(parts)}</svg>'


def _sunburst(facts: DataFacts) -> str:
    total = sum(count for _, count, _ in facts.verbs)
    if not total:
        return "<p>No instruction begins with a verb.</p>"
    parts, start = [], 0.0
    for place, (verb, count, objects) in enumerate(facts.verbs):
        colour = _COLOURS[place % len(_COLOURS)]
        parts.append(_arc(start / total, (start + count) / total, 70, 150, colour, f"{verb}: {count:,}", verb))
        inner = start
        for name, number in objects:
            span = (inner / total, (inner + number) / total)
            parts.append(_arc(*span, 152, 230, f"{colour}99", f"{verb} {name}: {number:,}", name))
            inner += number
        start += count
    return f'<svg viewBox="-240 -240 480 480" width="560" role="img">{"".join(parts)}</svg>'


def _arc(begin: float, end: float, inner: int, outer: int, colour: str, title: str, label: str) -> str:
    """Return a ring segment from `begin` to `end` (shares of the circle, clockwise from the top)."""
    end = min(end, begin + 0.9999)  # an arc that ends where it begins is not drawn at all
    points = [
        (radius * math.sin(2 * math.pi * share), -radius * math.cos(2 * math.pi * share))
        for radius, share in ((outer, begin), (outer, end), (inner, end), (inner, begin))
    ]
    corner = [f"{x:.1f} {y:.1f}" for x, y in points]
    large = int(end - begin > 0.5)
    path = f"M{corner[0]}A{outer} {outer} 0 {large} 1 {corner[1]}L{corner[2]}A{inner} {inner} 0 {large} 0 {corner[3]}Z"
    text = ""
    if end - begin > 0.012:
        middle, radius = (begin + end) / 2, (inner + outer) / 2
        x, y = radius * math.sin(2 * math.pi * middle), -radius * math.cos(2 * math.pi * middle)
        turn = 360 * middle - 90 + (180 if middle > 0.5 else 0)
        text = (
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" dominant-baseline="middle" '
            f'transform="rotate({turn:.1f} {x:.1f} {y:.1f})">{escape(label[:14])}</text>'
        )
    return f'<path d="{path}" fill="{colour}" stroke="#fff"><title>{escape(title)}</title></path>{text}'
