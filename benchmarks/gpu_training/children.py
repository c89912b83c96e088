"""Functions called in processes of their own: their GPU memory goes with them, and they can be killed.

Out of memory, or any other end that is no answer, is told to the caller in words.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


class NotMeasured(Exception):
    """It does not fit, or something that it needs is not here; the text says what."""


class PartFailed(Exception):
    """It broke, with this text."""


@dataclass(frozen=True)
class Work:
    """What every measurement of a run of the program shares.

    Attributes:
        device: "cpu" or "cuda:0".
        rows: of one optimizer step.
        groups: medians are over so many.
        steps: of one group.
        warm_up: steps before the first group.
        scratch: where folders are made that are gone afterwards.
        dtype: of forward and backward passes, where a measurement does not say.
    """

    device: str
    rows: int
    groups: int
    steps: int
    warm_up: int
    threads: int
    scratch: str
    dtype: str = "bfloat16"

    @property
    def all_steps(self) -> int:
        """Steps of one training that is measured."""
        return self.warm_up + self.groups * self.steps


def in_child(function: Callable[..., Any], *args: Any, kill_when: Callable[[Any], bool] | None = None) -> Any:
    """Call a function in a process of its own and return what it returns.

    Args:
        function: with `kill_when` it is given `tell` as well, by which it says how far it is.
        kill_when: asked about all that is told; once it says yes the process is killed, and None returned.

    Raises:
        NotMeasured: out of GPU memory, or a library is missing.
        PartFailed: it raised something else, or died.
    """
    # A process that has used CUDA cannot be forked, and one that only looked at it perhaps not either. On a CPU a fork
    # spares importing everything anew.
    on_cpu = args[0].device == "cpu"
    if on_cpu:
        _import_early()
    context: Any = multiprocessing.get_context("fork" if on_cpu else "spawn")
    receiver, sender = context.Pipe()
    process = context.Process(target=_answer, args=(sender, function, args, kill_when is not None))
    process.start()
    sender.close()
    try:
        while True:
            kind, value = receiver.recv()
            if kind == "told":
                if kill_when is not None and kill_when(value):
                    process.kill()
                    return None
                receiver.send(None)
            elif kind == "done":
                return value
            else:
                raise (NotMeasured if kind == "not measured" else PartFailed)(value)
    except EOFError:
        process.join()
        raise PartFailed(f"its process died ({process.exitcode}); host memory may have run out") from None
    finally:
        process.join()
        receiver.close()


def _import_early() -> None:
    """What every child will want: imported here, it is there after the fork."""
    for name in ("transformers.models.llama.modeling_llama", "transformers.trainer", "peft"):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)


def _answer(sender: Any, function: Callable[..., Any], args: tuple[Any, ...], tells: bool) -> None:
    """The life of a child: one function, one answer."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(args[0].threads)
    import transformers

    transformers.utils.logging.disable_progress_bar()

    def tell(value: Any) -> None:
        sender.send(("told", value))
        sender.recv()  # whether to be killed is being decided

    try:
        answer = ("done", function(*args, **({"tell": tell} if tells else {})))
    except torch.OutOfMemoryError as exc:
        answer = ("not measured", f"out of GPU memory: {str(exc).splitlines()[0][:160]}")
    except ModuleNotFoundError as exc:
        answer = ("not measured", f"{exc.name} is not installed here: pip install {exc.name}")
    except Exception as exc:  # noqa: BLE001 - whatever it is, the other parts go on, and the caller says it
        where = traceback.extract_tb(exc.__traceback__)[-1]
        words = " ".join(str(exc).split())[:300]
        answer = ("failed", f"{type(exc).__name__}: {words} ({Path(where.filename).name}, line {where.lineno})")
    sender.send(answer)
