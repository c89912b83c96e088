"""Where a base model comes from and under which licence, as its own files on this machine say it; nothing is fetched.

Source of the fields: the metadata at the head of a model's README.md, https://huggingface.co/docs/hub/model-cards (read
2026-11): license, license_name, license_link, base_model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from alpaca_jobs.errors import ModelError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.hub import TINY_LLAMA, is_path
from alpaca_jobs.training.run_models import is_run, run_model_folder

_UNKNOWN = "not stated in the files at hand; look it up before you publish these weights"


@dataclass(frozen=True)
class BaseLineage:
    """What is known of a base model.

    Attributes:
        licence: its identifier as the hub spells it (apache-2.0, llama2, other); empty if nothing states one.
        facts: names and sentences for the card.
    """

    licence: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


def base_lineage(train: TrainSpec) -> BaseLineage:
    """Read a base model's licence and its own base from its card, or from its licence file."""
    if train.model == TINY_LLAMA:
        return BaseLineage(facts={"base model": f"{TINY_LLAMA}: random weights, made by alpaca-jobs; nobody's licence"})
    readme, licence_file = _find(train, "README.md"), _find(train, "LICENSE") or _find(train, "LICENSE.txt")
    head = _front_matter(readme)
    licence = _text(head.get("license"))
    facts = {"base model": shown_base(train)}
    if train.revision is not None:
        facts["its revision"] = train.revision
    named = " ".join(filter(None, (licence, _text(head.get("license_name")), _text(head.get("license_link")))))
    if not named and licence_file is not None:
        lines = licence_file.read_text(encoding="utf-8", errors="replace").splitlines()
        named = next((f"{line.strip()} (its licence file)" for line in lines if line.strip()), "")
    facts["its licence"] = named or _UNKNOWN
    if origin := _text(head.get("base_model")):
        facts["made from"] = origin
    return BaseLineage(licence, facts)


def _find(train: TrainSpec, name: str) -> Path | None:
    """A file of the base model, where it lies on this machine."""
    if is_run(train.model) or is_path(train.model):
        try:
            folder = run_model_folder(train.model) if is_run(train.model) else Path(train.model).expanduser()
        except ModelError:
            return None
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(train.model, name, revision=train.revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _front_matter(readme: Path | None) -> Mapping[str, Any]:
    if readme is None:
        return {}
    _, mark, rest = readme.read_text(encoding="utf-8", errors="replace").partition("---\n")
    text, end, _ = rest.partition("\n---")
    if not mark or not end:
        return {}
    try:
        head = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return head if isinstance(head, dict) else {}


def _text(value: Any) -> str:
    """One value or several, as words on one line."""
    several = value if isinstance(value, list) else [value]
    return ", ".join(" ".join(str(one).split()) for one in several if one not in (None, ""))


def shown_base(train: TrainSpec) -> str:
    """A model of the hub by its name; of somebody's disk or store the last part alone."""
    is_elsewhere = is_run(train.model) or is_path(train.model)
    return train.model.rstrip("/").rpartition("/")[2] if is_elsewhere else train.model
