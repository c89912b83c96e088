"""What is known of a Ray process that died: Ray's words, which fill a screen, and its own last ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_WHO: Final = ("name", "pid")  # lines of Ray's words about an actor
_FATAL: Final = ("Fatal Python error", "*** SIG", "terminate called", "what():", "CUDA error", "NCCL error", "Assert")
_LAST_BYTES: Final = 64 * 1024
_LAST_LINES: Final = 3
_LONGEST_LINE: Final = 300


def death_words(said: str, folder: Path) -> str:
    """What Ray says of a process that died, which fills a screen, in two sentences; with the last that process said,
    as far as it ran on this machine.

    Args:
        said: text of Ray's error.
        folder: of this Ray, which goes with the attempt.
    """
    name, pid = (found[1] if (found := re.search(rf"^\s*{key}: (.+)$", said, re.MULTILINE)) else "" for key in _WHO)
    if not pid:
        return f"A Ray process died: {said.strip()}"
    detail = re.search(r"Worker exit detail: (.*?\.)(\s|$)", said)
    why = f" ({detail[1].rstrip('.')})" if detail else ""
    last = _last_words(folder, pid)
    return (
        f"The process of {name or 'an actor'} (pid {pid}) died without an error of its own: it was killed, or crashed "
        f"below Python{why}. {f'It said last: {last}' if last else 'It said nothing.'}"
    )


def _last_words(folder: Path, pid: str) -> str:
    """Of the file that Ray keeps of a process's stderr: the line that says what killed it, else the last ones."""
    for path in folder.glob(f"session_*/logs/worker-*-{pid}.err"):
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _LAST_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            continue
        lines = [line.strip()[:_LONGEST_LINE] for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith(":")]  # Ray's own marks for its log monitor
        telling = [line for line in lines if any(word in line for word in _FATAL)]
        return " | ".join(telling[:1] or lines[-_LAST_LINES:])
    return ""
