"""A preview of rows as text and as JSON. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli import words

if TYPE_CHECKING:
    from cluster.launch.preview import Preview


def preview_json(preview: Preview) -> dict[str, Any]:
    """The rows and what they took, for programs."""
    rows = [{"instruction": row.instruction, "input": row.input, "output": row.output} for row in preview.rows]
    cost = {"requests": len(preview.requests), "at_most_usd": preview.at_most_usd}
    return {"rows": rows, "drops": preview.statistics.to_json()["drops"], **cost}


def preview_text(preview: Preview) -> str:
    """The rows, each with its fields under their names."""
    return "\n".join(
        f"--- {number}\nInstruction: {row.instruction}\n"
        + (f"Input: {row.input}\n" if row.input else "")
        + f"Output: {row.output}"
        for number, row in enumerate(preview.rows, start=1)
    )


def preview_notes(preview: Preview) -> str:
    """What was dropped on the way and what it cost."""
    drops = preview.statistics.to_json()["drops"]
    dropped = ", ".join(f"{reason} {count}" for reason, count in drops.items() if reason != "surplus") or "nothing"
    cost = "its price is not known" if preview.at_most_usd is None else f"at most {words.money(preview.at_most_usd)}"
    return f"{words.plural(len(preview.requests), 'request')} to the teacher ({cost}); dropped on the way: {dropped}"
