"""The server of a teacher that the run's own machines serve (`data.teacher.serve`)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from alpaca_jobs.spec_base import Positive, SpecPart, one_or_more, want
from alpaca_jobs.spec_compute import GPUS_PATTERN

Argument = Annotated[str, Field(min_length=1)]


def _check_gpus(value: Any) -> Any:
    if value is None or (isinstance(value, str) and GPUS_PATTERN.fullmatch(value)):
        return value
    want("NAME:COUNT is wanted, such as L4:1 or A100-80GB:4")


class ServerSpec(SpecPart):
    """How a teacher of the run's own is served: by a program with vLLM's command line, on 127.0.0.1, behind a key."""

    command: Annotated[tuple[Argument, ...], BeforeValidator(one_or_more), Field(min_length=1)] = ("vllm", "serve")
    """Program and first arguments; MODEL, --host, --port and, for several GPUs, --tensor-parallel-size follow. The key
    is in VLLM_API_KEY."""
    args: tuple[Argument, ...] = ()
    """Arguments at the end, such as [--max-model-len, "8192"]."""
    gpus: Annotated[str | None, BeforeValidator(_check_gpus)] = None
    """GPUs of the machine that serves it and writes the rows, NAME:COUNT; on clouds, where that is a machine apart
    (on this machine: whatever it has)."""
    install: Argument = "vllm==0.33.0"
    """What is installed for it on a cloud's machine, beside our own packages and apart from them."""
    start_s: Positive = 1800.0
    """Seconds until a server that does not answer yet is given up; loading a model takes minutes."""
