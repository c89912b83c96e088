"""Tokens of a row as text and as JSON. Pure. Words say what a token is for; colour only repeats them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from cli import render, words

if TYPE_CHECKING:
    from alpaca_jobs.spec import TrainSpec
    from alpaca_jobs.training.preview import ShownPiece, ShownRow, TokenPreview

READ, LEARNED, END, CUT, NEXT = "read   ", "learned", "end    ", "cut    ", "packed "
_COLOURS = {READ: "2", LEARNED: "32", END: "36", CUT: "31", NEXT: "35"}


def preview_json(found: TokenPreview) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "rows": found.num_rows,
        "tokens": found.num_tokens,
        "targets": found.num_targets,
        "truncated": found.num_truncated,
        "without_target": found.num_without_target,
        "held_out": found.num_held_out,
        "eos": {"id": found.ends[-1][0], "text": found.ends[-1][1]},
        "ends": [{"id": end, "text": text} for end, text in found.ends],
        "pad": {"id": found.pad[0], "text": found.pad[1]},
        "warnings": [{"name": one.name, "rows": one.num_rows, "words": one.words} for one in found.warnings],
        "shown": [
            {
                "row": row.index,
                "cut_tokens": row.num_cut,
                "ends_with_eos": row.ends_with_eos,
                "held_out": row.is_held_out,
                "pieces": [
                    [
                        {"id": token, "text": text, "target": is_target}
                        for token, text, is_target in zip(piece.ids, piece.texts, piece.is_target, strict=True)
                    ]
                    for piece in row.pieces
                ],
            }
            for row in found.rows
        ],
    }


def facts_grid(found: TokenPreview, train: TrainSpec, about: str) -> render.Grid:
    """What the rows come to."""
    held_out = words.plural(found.num_held_out, "document" if found.is_packed else "row")
    rows = [
        ("rows", f"{found.num_rows:,}, at most {train.max_length:,} tokens each"),
        *([("held out", f"{held_out}, evaluated on, in no batch")] if found.num_held_out else []),
        ("tokens", f"{found.num_tokens:,}, {found.num_targets:,} of them learned"),
        ("cut", "nothing, packed" if found.is_packed else _cut_in_words(found)),
        ("ends with", f"{_ends_in_words(found)}; padding {found.pad[1]} ({found.pad[0]})"),
    ]
    return render.pairs(f"{about} for {train.model}, recipe {train.recipe}", rows)


def _ends_in_words(found: TokenPreview) -> str:
    return " or ".join(f"{text} ({end})" for end, text in found.ends)


def _cut_in_words(found: TokenPreview) -> str:
    return f"{found.num_truncated:,} rows; {found.num_without_target:,} lose their whole answer"


def row_text(row: ShownRow, found: TokenPreview, *, with_ids: bool, colour: bool) -> str:
    """One row: a line per stretch of tokens that are alike, or per token."""
    count = sum(len(piece.ids) for piece in row.pieces)
    learned = sum(sum(piece.is_target) for piece in row.pieces)
    held_out = "; held out: evaluated on, in no batch" if row.is_held_out else ""
    lines = [f"row {row.index}: {words.plural(count, 'token')}, {learned:,} learned{held_out}"]
    for place, piece in enumerate(row.pieces):
        if place:
            lines.append(_line(NEXT, "another document, which sees nothing of the one before", colour=colour))
        lines += _token_lines(piece, found, colour=colour) if with_ids else _stretches(piece, found, colour=colour)
    if row.num_cut:
        lines.append(_line(CUT, f"{words.plural(row.num_cut, 'token')} beyond the limit, never seen", colour=colour))
    if not (row.ends_with_eos or row.num_cut or found.is_packed):
        lines.append(_line(END, "no end-of-sequence token at the end", colour=colour))
    return "\n".join(lines)


def _kind(piece: ShownPiece, place: int, found: TokenPreview) -> str:
    if any(piece.ids[place] == end for end, _ in found.ends):
        return END
    return LEARNED if piece.is_target[place] else READ


def _stretches(piece: ShownPiece, found: TokenPreview, *, colour: bool) -> list[str]:
    lines = []
    for kind, places in groupby(range(len(piece.ids)), key=lambda place: _kind(piece, place, found)):
        chosen = list(places)
        text = "".join(piece.texts[place] for place in chosen)
        if kind is END:
            text += " (learned)" if all(piece.is_target[place] for place in chosen) else " (read)"
        lines += [_line(kind, part, colour=colour) for part in _visible(text)]
    return lines


def _token_lines(piece: ShownPiece, found: TokenPreview, *, colour: bool) -> list[str]:
    lines = []
    for place, (token, text) in enumerate(zip(piece.ids, piece.texts, strict=True)):
        kind = _kind(piece, place, found)
        note = "" if kind is not END else " (learned)" if piece.is_target[place] else " (read)"
        lines.append(_line(kind, f"{token:>7} {text!r}{note}", colour=colour))
    return lines


def _visible(text: str) -> Sequence[str]:
    """Lines of a text, each line break shown where it stands."""
    parts = text.split("\n")
    return [f"{part}↵" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _line(kind: str, text: str, *, colour: bool) -> str:
    safe = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    line = f"  {kind} | {safe}"
    return f"\x1b[{_COLOURS[kind]}m{line}\x1b[0m" if colour else line
