"""Where a base model comes from: its card or licence file says it, nothing is fetched, and our card passes it on."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.base_lineage import BaseLineage, base_lineage
from alpaca_jobs.training.model_card import CardFacts, render_model_card

FACTS = CardFacts(
    run_id="demo-abcde", data="rows", is_demo=False, num_rows=40, step=9, loss=1.5, weights_digest="ab" * 32
)  # fmt: skip


def _base(folder: Path, **files: str) -> TrainSpec:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("_md", ".md")).write_text(text)
    return TrainSpec(model=str(folder))


def test_a_models_own_card_says_licence_and_origin(tmp_path: Path) -> None:
    head = "license: other\nlicense_name: llama-3\nlicense_link: LICENSE\nbase_model:\n- a/b\n- c/d\n"
    lineage = base_lineage(_base(tmp_path / "tuned", README_md=f"---\n{head}---\n# Tuned\n"))
    assert lineage.licence == "other"
    assert lineage.facts == {"base model": "tuned", "its licence": "other llama-3 LICENSE", "made from": "a/b, c/d"}


def test_without_a_card_the_licence_file_is_read(tmp_path: Path) -> None:
    lineage = base_lineage(_base(tmp_path / "base", LICENSE="\n  Apache License\n  Version 2.0\n"))
    assert lineage == BaseLineage("", {"base model": "base", "its licence": "Apache License (its licence file)"})


@pytest.mark.parametrize("readme", ["", "# No head", "---\nlicense: [", "---\n- a list\n---\n", "---\nlicense:\n---\n"])
def test_what_nothing_states_is_said_to_be_unknown(readme: str, tmp_path: Path) -> None:
    lineage = base_lineage(_base(tmp_path / "base", README_md=readme))
    assert lineage.licence == ""
    assert "look it up before you publish" in lineage.facts["its licence"]


def test_a_model_of_the_hub_that_is_not_here_is_named_and_not_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    lineage = base_lineage(TrainSpec(model="huggyllama/llama-7b", revision="0" * 40))
    assert lineage.facts["base model"] == "huggyllama/llama-7b"
    assert lineage.facts["its revision"] == "0" * 40
    assert "not stated" in lineage.facts["its licence"]


def test_a_model_made_from_scratch_has_nobodys_licence() -> None:
    assert "nobody's licence" in base_lineage(TrainSpec(model="tiny-llama")).facts["base model"]


def test_our_card_carries_the_licence_on_to_the_next_model(tmp_path: Path) -> None:
    first = _base(tmp_path / "base", README_md="---\nlicense: apache-2.0\nbase_model: a/b\n---\n")
    facts = CardFacts(**{**FACTS.__dict__, "base": base_lineage(first)})
    card = render_model_card(first, facts)
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "apache-2.0"
    assert "base_model" not in head, "a folder on somebody's disk is no name"
    assert str(tmp_path) not in card
    assert "## Where the base model comes from" in card
    second = base_lineage(_base(tmp_path / "tuned", README_md=render_model_card(TrainSpec(model="a/b"), facts)))
    assert second.licence == "apache-2.0"
    assert second.facts["made from"] == "a/b"


def test_the_card_tells_recipe_cost_evaluation_and_where_the_data_card_is() -> None:
    train = TrainSpec(model="tiny-llama", method="lora", template="chat", seed=7)
    more = {"cost": "machines $1.25; over 2 attempts, up to this export", "eval_loss": 2.5, "data_card": b"<html>"}
    card = render_model_card(train, CardFacts(**{**FACTS.__dict__, **more}))
    for said in (
        "| cost of the run | machines $1.25; over 2 attempts, up to this export |",
        "| loss on held-out rows | 2.5000 nats per token |",
        "[data-card.html](data-card.html)",
        "adapters of rank 8 (alpha 16, dropout 0.05) on q_proj v_proj",
        "prompts in the tokenizer's chat template",
        "| seed | 7 |",
    ):
        assert said in card, said
    plain = render_model_card(TrainSpec(model="tiny-llama"), FACTS)
    for absent in ("cost of the run", "held-out", "data-card", "license:"):
        assert absent not in plain


def test_a_folder_where_we_stand_is_not_taken_for_a_model_of_the_hub_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models").mkdir()
    _base(tmp_path / "models" / "base", README_md="---\nlicense: mit\n---\n")
    for model, name, licence in (("models/base", "models/base", ""), ("./models/base", "base", "mit")):
        train = TrainSpec(model=model)
        lineage = base_lineage(train)
        assert (lineage.facts["base model"], lineage.licence) == (name, licence)
        card = render_model_card(train, CardFacts(**{**FACTS.__dict__, "base": lineage}))
        head = yaml.safe_load(card.split("---\n")[1])
        assert head.get("base_model") == (model if name == model else None), "a folder on somebody's disk is no name"


@pytest.mark.parametrize("licence", ["Apache 2.0: yes", "a\nb", "mit, apache-2.0", ""])
def test_a_licence_that_is_no_identifier_stays_out_of_the_head(licence: str) -> None:
    card = render_model_card(TrainSpec(model="a/b"), CardFacts(**{**FACTS.__dict__, "base": BaseLineage(licence)}))
    assert "license" not in yaml.safe_load(card.split("---\n")[1])
