"""A small Hugging Face hub on localhost for models made of a few bytes: a test helper."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event
from typing import Any

from alpaca_jobs.generation.offline_teacher import running

COMMIT = "c" * 40
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 1000, "hidden_size": 64,
    "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip


@dataclass
class Repository:
    """A model on the hub.

    Attributes:
        files: name -> its bytes, or how many there are of what nobody reads here.
        gated: how the hub says it; such a model hands its files to `token` alone.
        is_private: a model that is not there for whoever is not `token`.
        status: of every answer; 0 for the usual ones, 200 for a page that is not the hub's.
    """

    files: dict[str, bytes | int] = field(default_factory=dict)
    gated: str | bool = False
    is_private: bool = False
    token: str = ""
    stored: Mapping[str, int] = field(default_factory=dict)
    status: int = 0


def sound(**config: Any) -> dict[str, bytes | int]:
    """The files of a LLaMA that can be trained; `config`: changes to its config.json."""
    return {
        "config.json": json.dumps({**LLAMA, **config}).encode(),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b'{"eos_token": "</s>"}',
        "model.safetensors": 500_000,
        "README.md": 100,
    }


@contextmanager
def pretend_hub(models: Mapping[str, Repository], *, hangs: Event | None = None) -> Iterator[str]:
    """Serve some models; gives the address. With `hangs` nothing is answered before it is set."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if hangs is not None:
                hangs.wait(20)
            parts = self.path.partition("?")[0].strip("/").split("/")
            is_api = parts[:2] == ["api", "models"]
            name = "/".join(parts[2:4] if is_api else parts[:2])
            found = models.get(name)
            may = found is not None and found.token in ("", str(self.headers.get("Authorization")).partition(" ")[2])
            if found is None or (found.is_private and not may):
                self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif found.status:
                self._send(found.status, b"<html>sign in</html>", {})
            elif is_api:
                self._send(200, json.dumps(_info(name, found)).encode(), {})
            elif not may:
                self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            else:
                body = found.files["/".join(parts[4:])]
                self._send(200, body if isinstance(body, bytes) else b"\0" * body, {"X-Repo-Commit": COMMIT})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    with running(server):
        yield f"http://127.0.0.1:{server.server_port}"
        if hangs is not None:
            hangs.set()


def _info(name: str, found: Repository) -> dict[str, Any]:
    siblings = [
        {"rfilename": file, "size": len(body) if isinstance(body, bytes) else body}
        for file, body in found.files.items()
    ]
    info = {"id": name, "sha": COMMIT, "siblings": siblings, "gated": found.gated, "private": found.is_private}
    if found.stored:
        info["safetensors"] = {"parameters": dict(found.stored), "total": sum(found.stored.values())}
    return info
