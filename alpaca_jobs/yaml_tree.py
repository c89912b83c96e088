"""YAML text -> plain values that remember their lines; YAML 1.2's rules for scalars, duplicate keys refused.

PyYAML follows YAML 1.1, in which `2e-5` is a string, `on` a boolean, `1:30` the number 90 and `010` the number 8. A
job file with hyperparameters cannot live with that, so scalars are read by YAML 1.2's core schema instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from alpaca_jobs.errors import SpecError

KeyPath = tuple[str | int, ...]

# Tag, what it looks like, and the characters it may begin with ("" for the empty scalar).
_SCALARS = (
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
            r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
        ),
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes exactly the strings _Loader would read as something else."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


_Loader.yaml_implicit_resolvers = {}
_Dumper.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


@dataclass
class YamlTree:
    """Values of a YAML document and the lines (from 1) its keys stand on, by key path.

    A path that ends with a key is the line of that key; a path of a list item, the line of the item.
    """

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int:
        """Line of the longest part of `path` that the document has; 1 for none."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return 1


def parse_yaml(text: str, *, source: str) -> YamlTree:
    """Read one YAML document.

    Args:
        text: the document.
        source: what to call it in errors, usually its path.

    Raises:
        SpecError: not YAML, more than one document, a duplicate or non-text key, an unknown tag.
    """
    tree = YamlTree()
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            tree.value = _value(loader, node, (), tree, source, ())
    except yaml.YAMLError as exc:
        raise SpecError(_yaml_words(exc, source)) from exc
    return tree


def render_yaml(value: Any) -> str:
    """Write plain values as YAML that `parse_yaml` reads back to the same values; keys keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=100)


def _value(
    loader: _Loader, node: yaml.Node, path: KeyPath, tree: YamlTree, source: str, above: tuple[yaml.Node, ...]
) -> Any:
    if node in above:
        raise SpecError(f"{source}:{_line(node)}: an alias (*name) contains itself. Write the value out.")
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            tree.lines[(*path, index)] = _line(item)
            items.append(_value(loader, item, (*path, index), tree, source, above))
        return items
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if key is None or key == "<<":
            raise SpecError(
                f"{source}:{_line(key_node)}: {'<< (merge)' if key else 'a list or mapping'} stands where a key's name "
                "is wanted. Write the keys out."
            )
        here = (*path, key)
        if key in found:
            raise SpecError(
                f"{source}:{_line(key_node)}: {dotted(here)} is set twice, here and on line {tree.lines[here]}. "
                "Remove one of the two."
            )
        tree.lines[here] = _line(key_node)
        found[key] = _value(loader, value_node, here, tree, source, above)
    return found


def dotted(path: KeyPath) -> str:
    """Show a key path the way people write it: ("secrets", 0) -> "secrets[0]"."""
    shown = ""
    for part in path:
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else part
    return shown


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _yaml_words(exc: yaml.YAMLError, source: str) -> str:
    """Say what YAML's parser met, and the usual reason for it."""
    mark = getattr(exc, "problem_mark", None) or getattr(exc, "context_mark", None)
    where = f"{source}:{mark.line + 1}" if mark else source
    problem = str(getattr(exc, "problem", None) or getattr(exc, "reason", None) or exc)
    if "'\\t'" in problem:
        return f"{where}: a tab stands where YAML wants spaces. Indent with spaces."
    if "another document" in problem or "but found another" in problem:
        return f"{where}: a second document starts here (---). A job file holds one job."
    if "mapping values are not allowed" in problem:
        return f"{where}: this is not YAML: a second colon in one line. Put the value in quotes, or on its own line."
    if "special characters are not allowed" in problem:
        return f"{where}: this is not a text file: it holds control characters. Is it the right file?"
    context = getattr(exc, "context", None)
    return f"{where}: this is not YAML: {f'{context}, ' if context else ''}{problem}. Check indentation and brackets."
