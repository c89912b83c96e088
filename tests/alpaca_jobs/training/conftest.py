"""What the training tests share: a tiny OPT with dropout as a folder, and a process group of one."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("rank_worker.py")
sys.path.insert(0, str(Path(__file__).parent / "helpers"))  # tests hold no packages


@pytest.fixture(scope="session")
def worker() -> Any:
    """The module rank_worker, which lies beside the tests and in no package."""
    spec = importlib.util.spec_from_file_location("rank_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def files(worker: Any) -> dict[str, bytes]:
    """A tokenizer's folder, for tests that need no rows of their own."""
    from alpaca_jobs.spec import TrainSpec
    from alpaca_jobs.training.recipes import build_tokenizer

    return build_tokenizer(TrainSpec(model="tiny-llama"), worker.rows(8))


@pytest.fixture(scope="session")
def tiny_opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random OPT (two layers, dropout 0.1) with a tokenizer that lacks a padding token, as from_pretrained wants it.

    OPT, because transformers never keeps its packed rows apart by itself, and because the published recipe fits it,
    too.
    """
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    from alpaca_jobs.prompts import render_prompt
    from alpaca_jobs.training.tokenizer import build_tokenizer, write_folder

    folder = tmp_path_factory.mktemp("tiny-opt")
    prompts = [
        render_prompt("Write the words red and blue in reverse order, please.", given) for given in ("", "red, blue")
    ]
    files = build_tokenizer("tiny-llama", [f"{prompt}They are blue and red." for prompt in prompts] * 2)
    config = json.loads(files["tokenizer_config.json"])
    del config["pad_token"]
    write_folder({**files, "tokenizer_config.json": json.dumps(config).encode()}, folder)
    torch.manual_seed(0)
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=len(json.loads(files["tokenizer.json"])["model"]["vocab"]),
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=32,
            max_position_embeddings=256,
            dropout=0.1,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=None,
        )
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def train_on_two_ranks(tmp_path_factory: pytest.TempPathFactory, run_ranks: Any) -> Any:
    """Run many trainings in one start of two processes (rank_worker.py); returns what each said, an answer per rank."""

    def train(runs: list[dict[str, Any]], **environ: str) -> dict[str, list[dict[str, Any]]]:
        scratch = tmp_path_factory.mktemp("two-ranks")
        plan = {
            "world_size": 2, "meeting_point": str(scratch / "meet"), "runs": runs, "answers": str(scratch / "answers"),
        }  # fmt: skip
        (scratch / "plan.json").write_text(json.dumps(plan))
        run_ranks(
            [[sys.executable, str(WORKER), str(scratch / "plan.json"), str(rank)] for rank in range(2)],
            timeout=480, GLOO_SOCKET_IFNAME="lo", **environ,
        )  # fmt: skip
        told = [json.loads((scratch / f"answers-{rank}.json").read_text()) for rank in range(2)]
        return {name: [answer[name] for answer in told] for name in told[0]}

    return train


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A gloo process group with this process as its only rank."""
    import torch.distributed as dist

    meeting_point = tmp_path_factory.mktemp("one-rank") / "meeting-point"
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
