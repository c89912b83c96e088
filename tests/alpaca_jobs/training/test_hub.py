"""A hub that does not know the model, asks for consent, fails, or never answers: words, and soon."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.errors import ModelError
from alpaca_jobs.generation.offline_teacher import running
from alpaca_jobs.training.hub import HubSilent, foreign_model_errors

ASK = """
import json, sys, time
from alpaca_jobs.errors import ModelError
from alpaca_jobs.training.hub import resolve_model
said = {}
for name in sys.argv[1:]:
    began = time.monotonic()
    try:
        said[name] = resolve_model(name, timeout_s=0.5)
    except ModelError as exc:
        said[name] = str(exc)
    assert time.monotonic() - began < 5, name
sys.stdout.write(json.dumps(said))
"""


class _Hub(BaseHTTPRequestHandler):
    """Answers by the owner's name."""

    def do_GET(self) -> None:
        owner = self.path.split("/")[3]
        if owner == "slow":
            self.server.released.wait(20)  # type: ignore[attr-defined]
        status, code = {"gone": (404, "RepoNotFound"), "broken": (503, "")}.get(owner, (200, ""))
        body = json.dumps({"id": "known/model", "modelId": "known/model", "siblings": []}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, str]]:
    """What resolve_model said to each name, in a process that may use our hub on localhost."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.released = threading.Event()  # type: ignore[attr-defined]
    with running(server):
        done = subprocess.run(
            [sys.executable, "-c", ASK, "known/model", "gone/model", "broken/model", "slow/model"],
            env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"},
            capture_output=True,
            text=True,
        )
        server.released.set()  # type: ignore[attr-defined]
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


def test_a_model_the_hub_knows_is_taken_by_its_name(answers: dict[str, str]) -> None:
    assert answers["known/model"] == "known/model"


def test_a_model_the_hub_does_not_know_is_named(answers: dict[str, str]) -> None:
    assert "no such model on the Hugging Face hub" in answers["gone/model"]


def test_a_model_with_terms_asks_for_consent() -> None:
    import httpx
    from huggingface_hub.errors import GatedRepoError

    refusal = GatedRepoError("gated", response=httpx.Response(403, request=httpx.Request("GET", "http://127.0.0.1")))
    asked = pytest.raises(ModelError, match=r"accepted its terms.* list HF_TOKEN under secrets")
    with asked, foreign_model_errors("meta-llama/Llama-2-7b-hf", "model"):
        raise OSError("You are trying to access a gated repo.") from refusal


def test_a_model_that_is_code_of_its_own_is_refused_with_the_way_round(tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = {"model_type": "internlm", "auto_map": {"AutoConfig": "configuration_internlm.InternLMConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused = pytest.raises(ModelError, match=r"code that comes with the model.* InternLM how to make one")
    with refused, foreign_model_errors("internlm/internlm-7b", "model"):
        AutoConfig.from_pretrained(tmp_path)


def test_a_hub_that_fails_is_quoted(answers: dict[str, str]) -> None:
    assert "the Hugging Face hub answered with an error" in answers["broken/model"]
    assert "503" in answers["broken/model"]


def test_a_hub_that_never_answers_is_given_up_soon(answers: dict[str, str]) -> None:
    assert "the hub cannot be reached" in answers["slow/model"]


def test_a_silent_hub_comes_whole_from_another_process() -> None:
    """Ray sends what a rank raises that way; what cannot be made again there was told as a crash of ours."""
    found = pickle.loads(pickle.dumps(HubSilent("It does not answer.", why="it is away")))
    assert (type(found), str(found), found.why) == (HubSilent, "It does not answer.", "it is away")
