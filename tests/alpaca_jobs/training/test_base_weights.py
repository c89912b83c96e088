"""A base model read in parts has the bits of one loaded whole: every family, a grown vocabulary, tied embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import torch

from alpaca_jobs.errors import ModelError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.base_files import SafetensorsFiles
from alpaca_jobs.training.engines import make_engine
from alpaca_jobs.training.making import check_host_memory, make_model
from alpaca_jobs.training.model import build_model
from alpaca_jobs.training.tokenizer import load_tokenizer, write_folder

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("less", [0, 3], ids=["as stored", "grown"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_model_read_in_parts_has_the_bits_of_one_loaded_whole(
    family: str, less: int, files: dict[str, bytes], one_rank: None, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(files)
    stored = families.random_model(family, tokenizer, vocab_size=tokenizer.vocab_size - less)
    stored.to(torch.bfloat16).save_pretrained(tmp_path)
    write_folder(files, tmp_path)
    train = TrainSpec(model=str(tmp_path), engine="fsdp", max_length=128, dtype="float32")
    whole = build_model(train, tokenizer, device=CPU)
    made = make_model(train, tokenizer, device=CPU, world_size=1)
    engine = make_engine(made.model, train, device=CPU, world_size=1, ranks_per_node=1, fill=made.fill)
    parts = engine.state()["model"]
    params = dict(whole.named_parameters())
    assert params.keys() <= parts.keys()
    for name, param in params.items():
        found = parts[name]
        assert torch.equal(found.full_tensor() if hasattr(found, "full_tensor") else found, param), name
    for (name, one), (_, other) in zip(whole.named_buffers(), made.model.named_buffers(), strict=True):
        assert torch.equal(one, other), name
    given, out = (part.weight for part in _embeddings(made.model))
    assert (given is out) is (len({id(part.weight) for part in _embeddings(whole)}) == 1)
    assert made.fill is not None  # nothing was loaded whole


def _embeddings(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()


@pytest.mark.parametrize("shape", [(7, 6, 5), (9,), ()])
def test_any_part_of_a_stored_tensor_is_what_is_stored_there(shape: tuple[int, ...], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    whole = torch.randn(shape).to(torch.bfloat16)
    save_file({"a": torch.ones(3), "w": whole}, tmp_path / "model.safetensors")
    files = SafetensorsFiles(tmp_path)
    assert torch.equal(files.part("w", ()), whole)
    if shape:
        rows = [slice(0, size) for size in shape]
        for first in (slice(0, 3), slice(4, shape[0]), slice(2, 2)):
            assert torch.equal(files.part("w", (first, *rows[1:])), whole[first])
        if len(shape) > 1:
            cut = (slice(1, 4), slice(2, 5), *rows[2:])  # no whole rows
            assert torch.equal(files.part("w", cut), whole[cut])


def test_a_model_that_every_rank_would_load_whole_is_refused_where_the_machine_has_no_room() -> None:
    with torch.device("meta"):
        model = torch.nn.Linear(2**14, 2**14, bias=False)  # 1 GiB in float32
    check_host_memory("acme/odd", model, ranks=8, free=9 * 2**30)
    check_host_memory("acme/odd", model, ranks=8, free=None)
    words = (
        r"each of 8 ranks on this machine loads all of it, 1\.0 GiB in float32, and 7\.0 GiB of host memory are free"
    )
    with pytest.raises(ModelError, match=words):
        check_host_memory("acme/odd", model, ranks=8, free=7 * 2**30)
