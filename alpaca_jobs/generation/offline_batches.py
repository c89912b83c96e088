"""The offline teacher's Batch API: files and batches as OpenAI has them, kept in a folder that outlives the server.

A batch is worked on when somebody looks at it and `batch_s` seconds have passed since it was made. Its requests are
answered as direct ones are, a few refused the first time; what is refused stands in the error file.
"""

from __future__ import annotations

import email
import email.policy
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Answer = tuple[int, dict[str, Any]]
WINDOW_S = 86_400.0


class OfflineBatches:
    """Files and batches in one folder. Safe for many threads of one process."""

    def __init__(self, folder: Path, answer: Callable[[dict[str, Any], bool], Answer], *, batch_s: float = 0.0) -> None:
        """Open the folder; what an earlier server left in it is there.

        Args:
            answer: gives status and JSON for a request's body; the flag says whether it is a chat.
            batch_s: seconds until a batch is done.
        """
        self.batch_s = batch_s
        self._answer = answer
        self._files, self._batches = folder / "files", folder / "batches"
        self._lock = threading.RLock()
        for one in (self._files, self._batches):
            one.mkdir(parents=True, exist_ok=True)

    def handle(self, method: str, path: str, query: Mapping[str, str], raw: bytes, content_type: str) -> Any:
        """Answer a request below /v1/files or /v1/batches.

        Returns:
            (status, JSON), or bytes for a file's content; None for a path that is not one of these.
        """
        parts = path.strip("/").split("/")[1:]
        with self._lock:
            match (method, *parts):
                case ("POST", "files"):
                    return self._upload(raw, content_type)
                case ("GET", "files"):
                    return 200, self._list(self._files, query)
                case ("GET", "files", name, "content"):
                    path_of = self._files / f"{_plain(name)}.bin"
                    return path_of.read_bytes() if path_of.exists() else _missing("file", name)
                case ("DELETE", "files", name):
                    return self._delete(name)
                case ("POST", "batches"):
                    return self._create(json.loads(raw))
                case ("GET", "batches"):
                    return 200, self._list(self._batches, query)
                case ("GET", "batches", name):
                    found = self._look(name)
                    return (200, found) if found else _missing("batch", name)
                case ("POST", "batches", name, "cancel"):
                    return self._cancel(name)
        return None

    def _upload(self, raw: bytes, content_type: str) -> Answer:
        head = f"content-type: {content_type}\r\n\r\n".encode()
        form = email.message_from_bytes(head + raw, policy=email.policy.HTTP)
        for part in form.iter_parts():
            if part.get_param("name", header="content-disposition") == "file":
                data = part.get_payload(decode=True)
                assert isinstance(data, bytes)
                return 200, self._add_file(data, part.get_filename() or "file", "batch")
        return 400, _error("the form has no part named file")

    def _add_file(self, data: bytes, name: str, purpose: str) -> dict[str, Any]:
        body = {
            "id": f"file-{uuid.uuid4().hex}", "object": "file", "bytes": len(data), "created_at": _now(),
            "filename": name, "purpose": purpose, "status": "processed", "demo": True,
        }  # fmt: skip
        (self._files / f"{body['id']}.bin").write_bytes(data)
        _write(self._files / f"{body['id']}.json", body)
        return body

    def _delete(self, name: str) -> Answer:
        path = self._files / f"{_plain(name)}.json"
        if not path.exists():
            return _missing("file", name)
        path.unlink()
        path.with_suffix(".bin").unlink(missing_ok=True)
        return 200, {"id": name, "object": "file", "deleted": True}

    def _create(self, asked: Mapping[str, Any]) -> Answer:
        file_id = str(asked.get("input_file_id"))
        if not (self._files / f"{_plain(file_id)}.json").exists():
            return 400, _error(f"No such file: {file_id}")
        body = {
            "id": f"batch_{uuid.uuid4().hex}", "object": "batch", "endpoint": asked["endpoint"], "errors": None,
            "input_file_id": file_id, "completion_window": "24h", "status": "in_progress", "output_file_id": None,
            "error_file_id": None, "created_at": _now(), "expires_at": int(time.time() + WINDOW_S),
            "metadata": asked.get("metadata"), "demo": True, "due": time.time() + self.batch_s,
        }  # fmt: skip
        _write(self._batches / f"{body['id']}.json", body)
        return 200, body

    def _look(self, name: str) -> dict[str, Any] | None:
        path = self._batches / f"{_plain(name)}.json"
        if not path.exists():
            return None
        body: dict[str, Any] = json.loads(path.read_text())
        if body["status"] == "in_progress" and time.time() >= body["due"]:
            self._work(body, share=1.0, status="completed")
        return body

    def _cancel(self, name: str) -> Answer:
        body = self._look(name)
        if body is None:
            return _missing("batch", name)
        if body["status"] != "in_progress":
            return 409, _error(f"batch {name} is {body['status']}")
        self._work(body, share=0.5, status="cancelled")
        return 200, body

    def _work(self, body: dict[str, Any], *, share: float, status: str) -> None:
        """Answer the first `share` of a batch's requests; the others were not worked on."""
        lines = (self._files / f"{body['input_file_id']}.bin").read_text().splitlines()
        outputs: list[str] = []
        errors: list[str] = []
        for place, line in enumerate(lines):
            asked = json.loads(line)
            reply: dict[str, Any] = {"id": f"line-{place}", "custom_id": asked["custom_id"], "response": None}
            if place >= share * len(lines):
                reply["error"] = {"code": f"batch_{status}", "message": "This request was not worked on."}
                errors.append(json.dumps(reply))
                continue
            code, answer = self._answer(asked["body"], asked["url"].endswith("/chat/completions"))
            reply.update(error=None, response={"status_code": code, "request_id": f"line-{place}", "body": answer})
            (outputs if code == 200 else errors).append(json.dumps(reply))
        for key, found in (("output_file_id", outputs), ("error_file_id", errors)):
            if found:
                body[key] = self._add_file("\n".join(found).encode(), f"{body['id']}.jsonl", "batch_output")["id"]
        counts = {"total": len(lines), "completed": len(outputs), "failed": len(lines) - len(outputs)}
        body.update(status=status, request_counts=counts)
        _write(self._batches / f"{body['id']}.json", body)

    def _list(self, folder: Path, query: Mapping[str, str]) -> dict[str, Any]:
        """Return one page, the newest first."""
        found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
        found.sort(key=lambda one: (one["created_at"], one["id"]), reverse=True)
        if purpose := query.get("purpose"):
            found = [one for one in found if one.get("purpose") == purpose]
        ids = [one["id"] for one in found]
        start = ids.index(query["after"]) + 1 if query.get("after") in ids else 0
        page = found[start : start + int(query.get("limit", "20"))]
        more = start + len(page) < len(found)
        return {
            "object": "list", "data": page, "has_more": more, "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
        }  # fmt: skip


def forget(folder: Path) -> None:
    """Delete what a server kept."""
    shutil.rmtree(folder, ignore_errors=True)


def _plain(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() else "none"


def _now() -> int:
    return int(time.time())


def _write(path: Path, body: Mapping[str, Any]) -> None:
    half = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.half")
    half.write_text(json.dumps(body))
    os.replace(half, path)


def _missing(what: str, name: str) -> Answer:
    return 404, _error(f"No such {what}: {name}")


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "demo_error", "param": None, "code": "invalid_request"}}
