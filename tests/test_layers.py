"""The picture in STYLE section 2, read off the imports: rooms import to the left, seams stay in their one file."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOMS = ("checkpoints", "alpaca_jobs", "cluster", "cli")  # each may import itself and the rooms before it
REPO = Path(__file__).resolve().parent.parent

# Inside cluster the same holds: each may import itself, what stands before it, and cluster's own files. The two
# backends (local, cloud) know nothing of each other.
CLUSTER = ("node", "runs", "price", "local", "cloud", "launch")
APART = {("local", "cloud"), ("cloud", "local")}

SEAMS: dict[str, tuple[str, ...]] = {
    # library -> the files that may import it (glob patterns under the repository)
    "fsspec": ("checkpoints/store*.py",),
    "s3fs": ("checkpoints/store*.py",),
    "ray": ("cluster/node/ray_runtime*.py",),
    "sky": ("cluster/cloud/sky_*.py",),
    "botocore": ("cluster/cloud/aws_account.py",),
    "xxhash": ("checkpoints/manifest.py",),
    "openai": ("alpaca_jobs/generation/completer.py", "alpaca_jobs/generation/batch_client.py"),
    "torch": (
        "checkpoints/torch_*.py",
        "alpaca_jobs/training/*.py",
        "alpaca_jobs/training/engines/*.py",
        "alpaca_jobs/weights/*.py",
        "cluster/node/train_*.py",
        "cluster/node/ray_runtime*.py",
    ),
    "transformers": ("alpaca_jobs/training/*.py", "alpaca_jobs/examples/*.py"),
    "peft": ("alpaca_jobs/training/adapters.py",),
    "deepspeed": ("alpaca_jobs/training/engines/deepspeed.py",),
    "typer": ("cli/*.py",),
    "rich": ("cli/*.py",),
    "click": ("cli/*.py",),
}

HEAVY = ("torch", "ray", "transformers", "deepspeed", "openai", "fsspec", "s3fs", "sky", "peft", "datasets")


@dataclass(frozen=True)
class Import:
    """One import statement: who imports what, where, and whether it runs when the file is imported."""

    importer: str
    imported: str
    path: Path
    line: int
    at_top: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(REPO)}:{self.line} imports {self.imported}"


def _module_name(path: Path) -> str:
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _modules() -> dict[str, Path]:
    return {_module_name(path): path for room in ROOMS for path in sorted((REPO / room).rglob("*.py"))}


def _statements(body: Iterable[ast.AST], at_top: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every import with whether it runs when the file is imported; what never runs (TYPE_CHECKING) is left out."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, at_top
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _statements(node.body, at_top=False)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from _statements(node.orelse, at_top)
        elif isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _statements(ast.iter_child_nodes(node), at_top)


def _imports(path: Path, name: str, known: set[str]) -> Iterator[Import]:
    for node, top in _statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, path, node.lineno, top)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name, not a relative import"
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(name, full if full in known else base, path, node.lineno, top)


MODULES = _modules()
IMPORTS = [found for name, path in MODULES.items() for found in _imports(path, name, set(MODULES))]


def test_rooms_import_only_to_the_left() -> None:
    wrong = []
    for found in IMPORTS:
        room, target = found.importer.split(".")[0], found.imported.split(".")[0]
        if target in ROOMS and ROOMS.index(target) > ROOMS.index(room):
            wrong.append(str(found))
    assert not wrong, "imports flow checkpoints <- alpaca_jobs <- cluster <- cli:\n" + "\n".join(wrong)


def _cluster_part(module: str) -> str | None:
    """ "node" of cluster.node.ledger; None of a file that lies in cluster itself, and of other rooms."""
    parts = module.split(".")
    return parts[1] if parts[0] == "cluster" and len(parts) > 1 and parts[1] in CLUSTER else None


def test_parts_of_the_cluster_import_only_to_the_left() -> None:
    wrong = []
    for found in IMPORTS:
        part, target = _cluster_part(found.importer), _cluster_part(found.imported)
        if not found.importer.startswith("cluster") or target is None:
            continue
        if part is None or CLUSTER.index(target) > CLUSTER.index(part) or (part, target) in APART:
            wrong.append(str(found))
    assert not wrong, f"imports flow cluster/*.py <- {' <- '.join(CLUSTER)}:\n" + "\n".join(wrong)


def test_no_room_imports_the_tests() -> None:
    assert not [str(found) for found in IMPORTS if found.imported.split(".")[0] in ("tests", "benchmarks")]


@pytest.mark.parametrize("library", SEAMS)
def test_a_seam_library_is_imported_only_where_it_belongs(library: str) -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.imported.split(".")[0] == library
        and not any(found.path.relative_to(REPO).match(pattern) for pattern in SEAMS[library])
    ]
    assert not wrong, f"{library} belongs in {', '.join(SEAMS[library])}:\n" + "\n".join(wrong)


def test_no_cycles_between_modules() -> None:
    edges: dict[str, set[str]] = {name: set() for name in MODULES}
    for found in IMPORTS:  # function-level ones too: they may be there for weight, not to untie a cycle
        if found.imported in MODULES and found.imported != found.importer:
            edges[found.importer].add(found.imported)
    cycle = _find_cycle(edges)
    assert cycle is None, "modules import each other: " + " -> ".join(cycle or ())


def _find_cycle(edges: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str] | None:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return None
        for target in sorted(edges[name]):
            if found := visit(target, [*trail, name]):
                return found
        done.add(name)
        return None

    for start in edges:
        if found := visit(start, []):
            return found
    return None


def test_the_cycle_search_sees_a_cycle() -> None:
    assert _find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert _find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_the_command_line_reaches_nothing_heavy_when_it_is_imported() -> None:
    tops: dict[str, set[str]] = {}
    for found in IMPORTS:
        if found.at_top:
            tops.setdefault(found.importer, set()).add(found.imported)
    reached, frontier = {"cli.main"}, ["cli.main"]
    while frontier:
        for target in tops.get(frontier.pop(), ()):
            if target in MODULES and target not in reached:
                reached.add(target)
                frontier.append(target)
    heavy = {
        f"{name} imports {target}"
        for name in reached
        for target in tops.get(name, ())
        if target.split(".")[0] in (*HEAVY, "pydantic")
    }
    assert not heavy, f"cli.main would load these for --help: {sorted(heavy)}"


def test_the_templates_folder_is_no_package() -> None:
    """With an __init__.py our sky/ would shadow SkyPilot, whose import name it is (STYLE section 2)."""
    assert not list((REPO / "sky").rglob("*.py"))


def test_every_room_is_typed() -> None:
    assert [room for room in ROOMS if not (REPO / room / "py.typed").exists()] == []


def test_tests_hold_no_init_files() -> None:
    """`tests/cli/__init__.py` would hide the real `cli` under --import-mode=importlib."""
    assert not list((REPO / "tests").rglob("__init__.py"))


def test_files_stay_small() -> None:
    """Around 500 lines we look for the second idea in the file (STYLE section 1)."""
    long = {
        str(path.relative_to(REPO)): count
        for root in (*ROOMS, "tests", "benchmarks")
        for path in (REPO / root).rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long
