"""docs/JOB.md: every key of a job file with its default and meaning, made from the spec itself.

python -m alpaca_jobs.spec_doc > docs/JOB.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from alpaca_jobs.spec_io import job_schema

_HEAD = """# The job file

Every key of a job file, its default, and what it means. A key that is not listed here is refused, never ignored.

- `alpaca-jobs init` writes a starter with comments.
- `alpaca-jobs validate JOB` checks a file and names the line of whatever is wrong.
- `alpaca-jobs validate --schema` prints the JSON schema that editors use for completion.

Paths of inputs are relative to the job file; `store` is relative to the folder you launch from. Secrets are named,
never written: their values stay in your environment.

This page is made from the code (`python -m alpaca_jobs.spec_doc > docs/JOB.md`), and a test keeps it current.
"""


def job_reference() -> str:
    """The page, as Markdown."""
    schema = job_schema()
    sections = [_HEAD, "\n".join(_table("", schema))]
    for name, part in _sections(schema):
        purpose = _flat(part.get("description", ""))
        sections.append("\n".join([f"## {name}", "", *([purpose, ""] if purpose else []), *_table(name, part)]))
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _sections(
    schema: dict[str, Any], prefix: str = "", part: dict[str, Any] | None = None
) -> Iterator[tuple[str, Any]]:
    """(dotted name, schema) of every mapping below, in the order of the file."""
    for key, value in (part or schema)["properties"].items():
        for reference in _references(value):
            below = schema["$defs"][reference]
            name = f"{prefix}.{key}" if prefix else key
            yield name, below
            yield from _sections(schema, name, below)


def _table(prefix: str, part: dict[str, Any]) -> list[str]:
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    required = part.get("required", ())
    for key, value in part["properties"].items():
        default = "required" if key in required else _default(value)
        values = _values(value, f"{prefix}.{key}" if prefix else key)
        lines.append(f"| `{key}` | {values} | {default} | {_flat(value.get('description', ''))} |")
    return lines


def _references(value: dict[str, Any]) -> list[str]:
    options = [value, *value.get("anyOf", ()), *value.get("oneOf", ())]
    for option in tuple(options):
        options.extend(option.get("oneOf", ()))
    return list(dict.fromkeys(option["$ref"].rpartition("/")[-1] for option in options if "$ref" in option))


def _values(value: dict[str, Any], name: str) -> str:
    """The kinds and choices that a key takes, in words; one with keys of its own leads to their table."""
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if "$ref" in value:
        return f"[keys](#{name.replace('.', '')})"
    for several in ("anyOf", "oneOf"):
        if several in value:
            return " or ".join(dict.fromkeys(_values(option, name) for option in value[several]))
    if value.get("type") == "array":
        return "list of text or keys" if "$ref" in value["items"] else f"list of {_values(value['items'], name)}"
    kind = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "`true`, `false`",
        "null": "`null`",
    }
    return kind[value["type"]] + _bounds(value)


def _bounds(value: dict[str, Any]) -> str:
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    said = [f"{text} {value[key]:g}" for key, text in words.items() if key in value]
    return f", {' and '.join(said)}" if said else ""


def _default(value: dict[str, Any]) -> str:
    default = value.get("default")
    if isinstance(default, dict):
        return "its keys' own"
    if isinstance(default, list):
        return f"`[{', '.join(default)}]`"
    if default is None or isinstance(default, bool):
        return f"`{str(default).lower().replace('none', 'null')}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(job_reference())
