"""Write the tree of files into README.md from the first lines of the modules: `make tree`; `--check` only compares.

So the phrase beside a file is the file's own, and a file that is new, gone or has changed its purpose shows at once.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
README = REPO / "README.md"
ROOMS = ("checkpoints", "alpaca_jobs", "cluster", "cli")
BEGIN, END = "<!-- tree: written by `make tree` -->\n```\n", "```\n<!-- end of tree -->"
WIDTH, NAME_WIDTH = 120, 26


def phrase_of(path: Path) -> str:
    """The first line of a module's docstring without its full stop, cut where a clause ends if it is too long."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    phrase = re.sub(r"^`[^`]*`:\s+", "", docstring.partition("\n")[0]).rstrip(".")
    room = WIDTH - NAME_WIDTH - 1
    while len(phrase) > room:
        ends = [found.start() for found in re.finditer(r"[;:.] ", phrase) if found.start() >= room // 3]
        ends = ends or [found.start() for found in re.finditer(r", ", phrase)]
        phrase = phrase[: ends[-1]] if ends else phrase[: room - 3] + "..."
    return phrase


def lines_of(folder: Path, depth: int) -> Iterator[str]:
    """A folder's own line, its files, then its folders."""
    indent = "  " * depth
    own = folder / "__init__.py"
    yield f"{indent + folder.name + '/':<{NAME_WIDTH}} {phrase_of(own)}"
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield f"{indent + '  ' + path.name:<{NAME_WIDTH}} {phrase_of(path)}"
    for path in sorted(folder.iterdir()):
        if (path / "__init__.py").exists():
            yield from lines_of(path, depth + 1)


def with_tree(readme: str) -> str:
    """The text of README.md with the block between the two marks made new."""
    tree = "\n".join(line.rstrip() for room in ROOMS for line in lines_of(REPO / room, 0))
    before, mark, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        sys.exit(f"{README}: the marks of the tree are gone: {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}{tree}\n{END}{after}"


def main() -> None:
    """Write, or with --check compare and say so."""
    readme = README.read_text(encoding="utf-8")
    fresh = with_tree(readme)
    if "--check" in sys.argv and fresh != readme:
        sys.exit("README.md: its tree of files is out of date. Run: make tree")
    if fresh != readme:
        README.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
