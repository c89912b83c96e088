"""Looking at a base model before a run is paid for: on the hub, in a folder, in a run's store; in bounded time.

Nothing but small files is fetched. What could not be looked at is said in words, and never an error.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, TypeVar

from alpaca_jobs.config_shapes import linear_layers
from alpaca_jobs.spec import JobSpec, TrainSpec
from alpaca_jobs.training.base_checks import check_base, check_token, layers_not_there
from alpaca_jobs.training.base_model import INDEXES, SMALL_FILES, BaseModel, is_read_at_once, weight_files
from alpaca_jobs.training.hub import TINY_LLAMA, HubSilent, is_path
from alpaca_jobs.training.hub_base import fetch_base
from alpaca_jobs.training.revision import cached_folder
from alpaca_jobs.training.run_models import is_run, run_model_files
from checkpoints.errors import CheckpointError

LOOK_S: Final = 8.0
"""Longest that a command waits for the hub or a store, all questions together."""
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Look:
    """What was found of a base model; `base` is None where it could not be looked at, or there is nothing to look at.

    Attributes:
        words: what is to be said about it, in sentences.
    """

    base: BaseModel | None = None
    words: tuple[str, ...] = ()


def look_at_base(job: JobSpec, *, limit_s: float = LOOK_S) -> Look:
    """Look at a job's base model, and refuse what a machine could not train.

    Args:
        limit_s: longest wait for the hub or a store.

    Raises:
        ModelError: there is no such model or revision, or it cannot be trained; in words.
    """
    train = job.train
    model, path = train.model, Path(train.model).expanduser()
    if model == TINY_LLAMA or (train.method == "command" and "/" not in model):
        return Look()  # made from scratch; or a word that a program of the user's own understands
    if is_run(model):
        look = _at_run(model, limit_s=limit_s)
    elif not is_path(model):
        look = _at_hub(model, train.revision, limit_s=limit_s)
    elif path.is_dir():
        look = Look(folder_base(path, model))
    else:
        return Look(words=(f"What {model} holds was not looked at: it is not on this machine.",))
    if look.base is not None:
        if look.base.is_closed:
            check_token(look.base, job.secrets, has_login=job.compute.is_local and _has_login_file())
        if train.method != "command":
            check_base(look.base, train)
            look = Look(look.base, (*look.words, *_warnings(look.base, train)))
    return look


def _has_login_file() -> bool:
    """Whether somebody is signed in at the hub by a file: nodes of this machine read it, and inherit no variables."""
    from huggingface_hub import constants

    return Path(constants.HF_TOKEN_PATH).is_file()


def folder_base(folder: Path, name: str) -> BaseModel:
    """A folder of this machine as a base model."""
    sizes = {
        one.relative_to(folder).as_posix(): one.stat().st_size for one in sorted(folder.rglob("*")) if one.is_file()
    }
    texts: dict[str, bytes] = {
        str(file): (folder / file).read_bytes() for file in (*SMALL_FILES, *INDEXES) if file in sizes
    }
    is_whole = is_read_at_once(weight_files(sizes), lambda file, count: _first_bytes(folder / file, count))
    return BaseModel(name, sizes, texts, is_here=True, is_whole=is_whole)


def _first_bytes(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _warnings(base: BaseModel, train: TrainSpec) -> tuple[str, ...]:
    words = []
    if base.is_whole:
        words.append(
            f"{base.name} is pickled as PyTorch did before 1.6, which cannot be read part by part: each rank loads all "
            "of it into host memory, in float32. Save it anew (from_pretrained, then save_pretrained) to spare that."
        )
    if missing := layers_not_there(base, train):
        words.append(
            f"train.lora.target_modules has {', '.join(missing)}, but {base.name} has no layers of that name, so "
            f"nothing is adapted there. Its linear layers are called {', '.join(linear_layers(base.config))}."
        )
    return tuple(words)


def _at_run(uri: str, *, limit_s: float) -> Look:
    try:
        sizes, texts = _in_time(lambda: run_model_files(uri, (*SMALL_FILES, *INDEXES)), limit_s)
    except CheckpointError as exc:  # a store that only the nodes reach
        return Look(words=(f"The model of {uri} was not looked at: its store cannot be read from here ({exc}).",))
    except TimeoutError:
        return Look(words=(f"The model of {uri} was not looked at: its store took longer than {limit_s:g} s.",))
    return Look(BaseModel(uri, sizes, texts, is_whole=False))


def _at_hub(model: str, revision: str | None, *, limit_s: float) -> Look:
    why = "huggingface_hub is not installed here (pip install huggingface_hub)"
    if find_spec("huggingface_hub") is not None:
        try:
            return Look(_in_time(lambda: fetch_base(model, revision, timeout_s=limit_s), limit_s))
        except HubSilent as exc:
            why = exc.why
        except TimeoutError:
            why = "the hub cannot be reached from here"
        if (cached := cached_folder(model, revision)) is not None:
            texts = {name: (cached / name).read_bytes() for name in SMALL_FILES if (cached / name).is_file()}
            base = BaseModel(model, None, texts, revision=cached.name)
            return Look(base, (f"{model} was looked at as this machine's cache has it, {cached.name[:12]}: {why}.",))
    return Look(words=(f"{model} was not looked at: {why}. Whether it can be trained is known on the machine only.",))


def _in_time(act: Callable[[], _Answer], limit_s: float) -> _Answer:
    """What `act` returns or raises; TimeoutError after `limit_s`. A thread that hangs keeps nobody from ending."""
    answers: queue.Queue[tuple[_Answer | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            answers.put((act(), None))
        except BaseException as exc:  # noqa: BLE001 - handed on to the thread that waits
            answers.put((None, exc))

    threading.Thread(target=run, daemon=True).start()
    try:
        answer, raised = answers.get(timeout=limit_s)
    except queue.Empty:
        raise TimeoutError from None
    if raised is not None:
        raise raised
    return answer  # type: ignore[return-value]
