"""YAML as users write it: 1.2's scalars, lines for every key, and what is refused in words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpaca_jobs.errors import SpecError
from alpaca_jobs.yaml_tree import dotted, parse_yaml, render_yaml


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2e-5", 2e-5),
        ("1E6", 1e6),
        ("2.5", 2.5),
        ("-.5", -0.5),
        ("12", 12),
        ("on", "on"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("true", True),
        ("False", False),
        ("1:30", "1:30"),
        ("010", "010"),
        ("52_000", "52_000"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("null", None),
        ("'12'", "12"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("llama-7b", "llama-7b"),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text: str, wanted: Any) -> None:
    value = parse_yaml(f"key: {text}\n", source="job.yaml").value["key"]
    assert value == wanted
    assert type(value) is type(wanted)


def test_lines_are_known_for_keys_and_items() -> None:
    tree = parse_yaml("a: 1\nb:\n  c:\n    - 1\n    - x: 2\n", source="job.yaml")
    assert tree.line(("b", "c")) == 3
    assert tree.line(("b", "c", 1, "x")) == 5
    assert tree.line(("b", "missing")) == 2
    assert tree.line(("nothing",)) == 1


def test_anchors_may_be_used_to_repeat_a_value() -> None:
    assert parse_yaml("a: &same [1, 2]\nb: *same\n", source="job.yaml").value == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "job.yaml:2: a is set twice, here and on line 1. Remove one of the two."),
        ("t:\n  b: 1\n  b: 1\n", "job.yaml:3: t.b is set twice, here and on line 2. Remove one of the two."),
        ("a:\n\tb: 1\n", "job.yaml:2: a tab stands where YAML wants spaces. Indent with spaces."),
        ("a: 1\n---\nb: 2\n", "job.yaml:2: a second document starts here (---). A job file holds one job."),
        ("a: b: c\n", "job.yaml:1: this is not YAML: a second colon in one line."),
        ("a: [1, 2\n", "job.yaml:2: this is not YAML: while parsing a flow sequence"),
        ("a: &x [*x]\n", "job.yaml:1: an alias (*name) contains itself. Write the value out."),
        ("x: &x {a: 1}\ny:\n  <<: *x\n", "job.yaml:3: << (merge) stands where a key's name is wanted."),
        ("? [a]\n: 1\n", "job.yaml:1: a list or mapping stands where a key's name is wanted."),
        ("a: !!python/object:os.system x\n", "job.yaml:1: this is not YAML: could not determine a constructor"),
        ("a: *nobody\n", "job.yaml:1: this is not YAML: found undefined alias"),
        ("\x00\x01", "job.yaml: this is not a text file: it holds control characters."),
    ],
)
def test_what_is_not_a_job_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, source="job.yaml")
    assert str(caught.value).startswith(message)


# Values of a job are single lines: no control characters, and none of Unicode's own line ends.
_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]))
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3))


@given(_VALUES)
def test_what_is_rendered_is_read_back(value: Any) -> None:
    if "<<" in str(value):
        return  # the one key that a reader would have to guess at
    assert parse_yaml(render_yaml({"value": value}), source="job.yaml").value == {"value": value}


def test_paths_are_shown_as_people_write_them() -> None:
    assert dotted(("secrets", 0)) == "secrets[0]"
    assert dotted(("data", "teacher", "model")) == "data.teacher.model"
    assert dotted(()) == ""
