"""Exit codes, and what is said on stderr when a command cannot go on.

0 done, 1 the job failed, 2 wrong input, 3 the surroundings failed (capacity, credentials, store), 4 stopped by a
budget or a deadline, 130 interrupted. The error classes of each room carry their code; what is none of ours is a
mistake of the program: its traceback goes to a file, and the file's name is said.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import time
import traceback
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import ParamSpec, TextIO, TypeVar

import typer

from cli import render

P = ParamSpec("P")
R = TypeVar("R")

DEBUG_VARIABLE = "ALPACA_JOBS_DEBUG"


class ExitCode(IntEnum):
    """What a script can tell from the exit status."""

    DONE = 0
    JOB_FAILED = 1
    WRONG_INPUT = 2
    SURROUNDINGS_FAILED = 3
    STOPPED_BY_LIMIT = 4
    INTERRUPTED = 130


class Refused(Exception):
    """A request the command line itself turns down, before any room is asked."""

    exit_code = ExitCode.WRONG_INPUT


class MissingExtra(Exception):
    """A part of this package that was not installed; the text is the pip line that brings it."""

    exit_code = ExitCode.SURROUNDINGS_FAILED


_EXTRA_OF_MODULE = {
    "torch": "node",
    "ray": "node",
    "transformers": "node",
    "deepspeed": "node",
    "peft": "node",
    "safetensors": "node",
    "tokenizers": "node",
    "openai": "data",
    "rapidfuzz": "data",
    "rouge_score": "data",
    "pyarrow": "data",
    "numpy": "data",
    "markdownify": "data",
    "py3langid": "data",
    "sky": "sky",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "gcsfs": "gcs",
    "adlfs": "azure",
}
"""Top-level module -> the extra of this package that brings it (pyproject.toml)."""


def require_modules(*modules: str) -> None:
    """Stop before anything is started when the extras that it will need are not installed.

    Raises:
        MissingExtra: with the pip line that brings them.
    """
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise MissingExtra(_pip_line(missing))


def _pip_line(missing: list[str]) -> str:
    wanted = {_EXTRA_OF_MODULE[name] for name in missing}
    if "node" in wanted:
        wanted.discard("data")  # node brings it
    extras = ",".join(sorted(wanted))
    return f"{', '.join(missing)} not installed, and this needs {'it' if len(missing) == 1 else 'them'}.\n" + (
        f"Install with: pip install 'alpaca-jobs[{extras}]'"
    )


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what a command raises into words on stderr and an exit code; typer's own exits pass through."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BrokenPipeError:
            _drop(sys.stdout)
            raise typer.Exit(ExitCode.DONE) from None
        except KeyboardInterrupt:
            raise typer.Exit(_interrupted()) from None
        except Exception as exc:  # noqa: BLE001 - the last place before Python itself would print a traceback
            raise typer.Exit(_interrupted() if was_interrupted(exc) else tell(exc)) from None

    return run


def was_interrupted(error: BaseException) -> bool:
    """Whether this is Ctrl-C, or what was made of one: by pydantic while it builds a model, by Python 3.11 while it
    makes a class (a RuntimeError about `__set_name__`).
    """
    wrapped = type(error).__name__ == "SchemaError" and KeyboardInterrupt.__name__ in str(error)
    return wrapped or isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)


def _interrupted() -> ExitCode:
    render.say("Interrupted.")
    return ExitCode.INTERRUPTED


def tell(error: Exception) -> int:
    """Say on stderr what went wrong; return the exit code."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    code = code_of(error)
    if code is not None:
        render.say(str(error))
        return code
    if isinstance(error, ModuleNotFoundError) and (name := (error.name or "").split(".")[0]) in _EXTRA_OF_MODULE:
        render.say(_pip_line([name]))
        return ExitCode.SURROUNDINGS_FAILED
    if isinstance(error, OSError) and (known := _REFUSALS.get(error.errno or 0)):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        render.say(f"{where}{error.strerror}. {known[1]}")
        return known[0]
    if isinstance(error, RuntimeError) and str(error).startswith(_HOMELESS):
        render.say("HOME is not set, and this system has no home folder for you. Set one: export HOME=/your/folder")
        return ExitCode.SURROUNDINGS_FAILED
    return _tell_unexpected(error)


_HOMELESS = "Could not determine home directory"
"""How pathlib begins where a user has none, as in a container that runs under a number that nobody has."""
_ROOM = "Make room, there or in the folder for temporary files (TMPDIR), and call the command again."
_OTHER_PLACE = (
    "Name a place that you may write to; alpaca-jobs keeps its own notes in $ALPACA_JOBS_HOME (~/.alpaca-jobs)."
)
_REFUSALS = {
    errno.ENOSPC: (ExitCode.SURROUNDINGS_FAILED, _ROOM),
    errno.EDQUOT: (ExitCode.SURROUNDINGS_FAILED, _ROOM),
    errno.EROFS: (ExitCode.SURROUNDINGS_FAILED, _OTHER_PLACE),
    errno.EACCES: (ExitCode.SURROUNDINGS_FAILED, _OTHER_PLACE),
    errno.EPERM: (ExitCode.SURROUNDINGS_FAILED, _OTHER_PLACE),
    errno.EMFILE: (ExitCode.SURROUNDINGS_FAILED, "Allow this shell more open files: ulimit -n 4096"),
    errno.ENOTDIR: (ExitCode.WRONG_INPUT, "A folder is wanted there. Name another place."),
    errno.EISDIR: (ExitCode.WRONG_INPUT, "A file is wanted there. Name another place."),
    errno.ENAMETOOLONG: (ExitCode.WRONG_INPUT, "Choose a shorter name."),
}
"""What any machine refuses now and then, wherever it is met: the exit code, and what to do about it."""


def code_of(error: Exception) -> int | None:
    """The exit code that an error's class stands for; None when it is not an error of ours."""
    from checkpoints.errors import CheckpointError

    code: int | None = getattr(type(error), "exit_code", None)
    if code is None and isinstance(error, CheckpointError):
        return ExitCode.SURROUNDINGS_FAILED  # that room knows nothing of command lines; its failures are the store's
    return code


def _tell_unexpected(error: Exception) -> int:
    render.say(f"alpaca-jobs met an error it did not foresee: {type(error).__name__}: {error}")
    try:
        log = _write_traceback(error)
        render.say(
            f"Where it happened is in {log} (or run again with --debug). Runs go on by themselves: alpaca-jobs runs"
        )
    except OSError as exc:
        render.say(f"The traceback could not be written ({exc}); run again with --debug to see it.")
    return ExitCode.SURROUNDINGS_FAILED if isinstance(error, OSError) else ExitCode.JOB_FAILED


def _write_traceback(error: Exception) -> Path:
    home = Path(os.environ.get("ALPACA_JOBS_HOME") or Path.home() / ".alpaca-jobs")
    folder = home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    lines = [f"{' '.join(sys.argv)}\n", *traceback.format_exception(error)]
    log.write_text("".join(lines), encoding="utf-8")
    return log


def settle(code: int) -> int:
    """Write out what stdout still holds; returns the exit code that holds then.

    Python would do it at exit, where a reader that is gone (`| head`) or a full disk ends in a message of its own and
    exit code 120.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
    except OSError as exc:
        _drop(sys.stdout)
        render.say(f"What was to be printed could not be written: {exc.strerror}. Send it elsewhere.")
        return code or ExitCode.SURROUNDINGS_FAILED
    return code


def _drop(stream: TextIO) -> None:
    """Nothing may be written to it any more, at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
