"""pydantic's validation errors -> sentences a user can act on: where, what was found, what would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_other_names import OTHER_NAMES
from alpaca_jobs.yaml_tree import KeyPath, YamlTree, dotted

_MAX_SHOWN = 60
_MIN_PART = 4  # letters of a key that count as a part of another ("rows" in num_rows)
_HIDDEN_KEYS = frozenset({"secrets", "api_key_env"})
_MISSING = object()

_BOUNDS = {"greater_than_equal": ("ge", "at least"), "greater_than": ("gt", "more than"),
           "less_than_equal": ("le", "at most"), "less_than": ("lt", "less than")}  # fmt: skip
_KINDS = {"int": "a whole number", "float": "a number", "string": "text", "bool": "true or false",
          "tuple": "a list", "model": "keys and values", "dict": "keys and values"}  # fmt: skip


def problems_in_words(exc: ValidationError, tree: YamlTree, source: str) -> tuple[str, ...]:
    """All problems of a job, in the order of their lines, each once.

    Args:
        exc: what pydantic found.
        tree: the values it looked at, with their lines (no lines: the file name stands alone).
        source: the file's name.
    """
    found: dict[str, int] = {}
    errors = exc.errors(include_url=False, include_input=False)
    unknown = [_yaml_path(error["loc"], tree.value) for error in errors if error["type"] == "extra_forbidden"]
    meant = {name for path in unknown for name in _meant(path)}
    for error in errors:
        if error["type"] == "missing" and _yaml_path(error["loc"], tree.value) in meant:
            continue  # it is there, misspelt, and that is said already
        if error["type"] == "too_short" and any(error["loc"] == other["loc"][:-1] for other in errors):
            continue  # an item was refused, and pydantic adds that one is missing
        path = _yaml_path(error["loc"], tree.value)
        context = error.get("ctx", {})
        if error["type"] == "refused" and context["key"]:
            path = (*path, *context["key"].split("."))
        line = tree.line(path)
        where = f"{source}:{line}" if tree.lines else source
        text = f"{where}: {_sentence(error['type'], path, context, error['msg'], tree.value)}"
        found.setdefault(text if text.endswith((".", "?")) else f"{text}.", line)
    return tuple(sorted(found, key=lambda text: found[text]))


def _sentence(kind: str, path: KeyPath, context: dict[str, Any], message: str, values: Any) -> str:
    name = dotted(path) or "the job"
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "missing":
        return f"{name} is missing. {_description(path)}"
    if kind == "refused":
        return f"{name} {context['message']}"
    if kind == "wanted_hidden":
        return f"{name}: {context['message']}"
    shown = _shown(path, values)
    if kind == "wanted":
        return f"{name} is {shown}, but {context['message']}"
    if kind == "literal_error":
        choices = str(context["expected"]).replace("'", "")
        return f"{name} is {shown}, but this version knows only {choices}{_nearest(shown, choices)}"
    if kind in ("too_short", "string_too_short"):
        return f"{name} is empty, but at least one {'character' if kind[0] == 's' else 'name'} is wanted"
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{name} is {shown}, but it has to be {words} {context[key]:g}"
    if kind == "finite_number":
        return f"{name} is {shown}, but a finite number is wanted"
    if kind == "string_pattern_mismatch":
        return f"{name} is {shown}, but small letters, digits and dashes are wanted, at most 40, such as alpaca-7b"
    if kind == "string_type" and isinstance(_at(path, values), int | float):
        return f"{name} is {shown}, but text is wanted. Put it in quotes if it is meant: {_quoted(path, values)}"
    wanted = next((words for start, words in _KINDS.items() if kind.startswith(start)), None)
    if wanted and kind.endswith(("_type", "_parsing", "_from_float")):
        return f"{name} is {shown}, but {wanted} {'are' if wanted.startswith('keys') else 'is'} wanted"
    return f"{name} is {shown}: {message}"


def _unknown_key(path: KeyPath) -> str:
    text = f"{dotted(path)} is not a known key"
    meant = _meant(path)
    return (
        f"{text}. Did you mean {' or '.join(map(dotted, meant))}?"
        if meant
        else f"{text}. Known here: {', '.join(_fields(path[:-1]))}"
    )


def _meant(path: KeyPath) -> list[KeyPath]:
    """The valid keys that an unknown one may be meant to be: the same name elsewhere, what other tools call it, or a
    similar one.
    """
    parents, key = path[:-1], str(path[-1])
    siblings = list(_fields(parents))
    everywhere = {str(known[-1]): known for known in reversed(all_keys())}
    if key in everywhere:
        return [everywhere[key]]
    if key in OTHER_NAMES:
        return [tuple(name.split(".")) for name in OTHER_NAMES[key]]
    close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.7)
    close = close or [
        name for name in siblings if min(len(key), len(name)) >= _MIN_PART and (key in name or name in key)
    ]
    if close:
        return [(*parents, close[0])]
    far = difflib.get_close_matches(key, everywhere, n=1, cutoff=0.75)
    return [everywhere[name] for name in far]


def _nearest(shown: str, choices: str) -> str:
    names = choices.replace(" or ", ", ").split(", ")
    close = difflib.get_close_matches(shown.lower(), names, n=1, cutoff=0.6)
    return f". Did you mean {close[0]}?" if close and len(names) > 1 else ""


_UNION_TAGS = ("as-keys", "as-word")


def _yaml_path(loc: tuple[int | str, ...], values: Any) -> KeyPath:
    """A path in the file from pydantic's, which also names union members and validators on the way."""
    path: list[str | int] = []
    for index, part in enumerate(loc):
        is_last = index == len(loc) - 1 and part not in _UNION_TAGS
        if isinstance(values, dict) and isinstance(part, str) and (part in values or is_last):
            values = values.get(part, _MISSING)
            path.append(part)
        elif isinstance(values, list | tuple) and isinstance(part, int) and part < len(values):
            values = values[part]
            path.append(part)
    return tuple(path)


def _at(path: KeyPath, values: Any) -> Any:
    """The value at a path, or _MISSING."""
    for part in path:
        if isinstance(part, int):
            if not isinstance(values, list | tuple) or part >= len(values):
                return _MISSING
        elif not isinstance(values, dict) or part not in values:
            return _MISSING
        values = values[part]
    return values


def _shown(path: KeyPath, values: Any) -> str:
    """The value found, short; never one that could be a secret."""
    value = _at(path, values)
    if _HIDDEN_KEYS.intersection(path):
        return "not what belongs there (not repeated here)"
    if value is _MISSING:
        return "not set"
    if value is None:
        return "null (empty)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return f"a mapping ({', '.join(map(str, value))})"[:_MAX_SHOWN]
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _quoted(path: KeyPath, values: Any) -> str:
    return f'{path[-1]}: "{_shown(path, values)}"' if isinstance(path[-1], str) else f'"{_shown(path, values)}"'


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _fields(path: KeyPath) -> dict[str, tuple[Any, str]]:
    """Keys of the section at `path`: YAML name -> (annotation, description)."""
    fields = _fields_of(JobSpec)
    for part in path:
        models = list(_models_in(fields[str(part)][0])) if str(part) in fields else []
        if not models:
            return {}
        fields = _fields_of(models[0])
    return fields


def _fields_of(model: type[BaseModel]) -> dict[str, tuple[Any, str]]:
    return {
        field.serialization_alias or name: (field.annotation, field.description or "")
        for name, field in model.model_fields.items()
    }


def all_keys(path: KeyPath = ()) -> list[KeyPath]:
    """Every key that a job may have below a path, groups included."""
    keys: list[KeyPath] = []
    for name in _fields(path):
        keys.append((*path, name))
        keys.extend(all_keys((*path, name)))
    return keys


def _description(path: KeyPath) -> str:
    field = _fields(path[:-1]).get(str(path[-1]))
    return f"It says: {field[1][0].lower()}{field[1][1:]}" if field and field[1] else "Set it."
