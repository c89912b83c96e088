"""A model that a command wrote: what transformers could not load is refused, and not committed as the run's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from alpaca_jobs.errors import CommandError
from cluster.node.command_export import export_folder

INDEX = "model.safetensors.index.json"


def written(folder: Path, config: str, weight_map: Mapping[str, str] | None, shards: Mapping[str, str]) -> Path:
    (folder / "config.json").write_text(config)
    for name, file in shards.items():
        save_file({name: torch.ones(3)}, folder / file)
    if weight_map is not None:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    ("config", "weight_map", "words"),
    [
        ("{}", {"a": "1.safetensors", "b": "2.safetensors"}, "names 1 files that are not there, 2.safetensors among"),
        (
            "{}",
            {"a": "1.safetensors", "b": "1.safetensors"},
            "1 tensors that are not where it says, b in 1",
        ),
        ('{"model_type": "lla', None, "config.json holds no JSON object"),
    ],
)
def test_half_a_model_is_refused(tmp_path: Path, config: str, weight_map: Mapping[str, str] | None, words: str) -> None:
    ctx: Any = SimpleNamespace()  # nothing of the run is touched before the folder is looked at
    with pytest.raises(CommandError, match="is not whole") as refused:
        export_folder(ctx, written(tmp_path, config, weight_map, {"a": "1.safetensors"}), num_rows=1, step=1)
    assert words in str(refused.value)


def test_an_index_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, "{}", {"a": "1.safetensors"}, {"a": "1.safetensors"})
    (folder / INDEX).write_text((folder / INDEX).read_text()[:20])
    ctx: Any = SimpleNamespace()
    with pytest.raises(CommandError, match=r"its model\.safetensors\.index\.json holds no weight_map"):
        export_folder(ctx, folder, num_rows=1, step=1)
