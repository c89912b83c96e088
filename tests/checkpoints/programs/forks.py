"""Ranks that import their libraries once and play many starts: each start is a process of its own, forked after that.

Imports take most of the time of a start of DeepSpeed or of a Trainer; whatever a start makes, it makes in its child.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1  # prctl(2)


def in_child(play: Callable[[], Any]) -> Any:
    """Play in a child of its own; returns its answer (JSON), None when it was gone on the spot with exit code 0.

    Ends this process, too, when the child fails; what it had to say is on stderr.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # whoever ends the rank ends its start
        os.close(read_end)
        try:
            answer = json.dumps(play()).encode()
            with os.fdopen(write_end, "wb") as pipe:
                pipe.write(answer)
            sys.stdout.flush()
        except BaseException:  # noqa: BLE001 - the child must not run on into the parent's code
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        sys.exit(f"a start ended with {code}")
    return json.loads(said) if said else None
