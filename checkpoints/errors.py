"""CheckpointError and its tree: everything this package raises on purpose.

    CheckpointError
    ├── StoreError                the store said something we cannot work with
    │   ├── StoreUnreachable      it did not answer, or answered "later"; retrying can help
    │   ├── StorePermission       it refuses these credentials
    │   ├── StoreFull             no space or quota left
    │   ├── ObjectMissing         the key is not there
    │   ├── AlreadyExists         put_once came second
    │   └── PutOnceUnsupported    the store cannot promise that only one writer wins
    ├── NotCommitted              there is no manifest
    ├── Damaged                   there is one, and the bytes do not match it
    ├── NoGoodCommit              commits exist, but none could be read
    ├── StateMismatch             the state in memory and the state in the commit do not fit each other
    ├── StateChanged              the state was changed while it was being copied
    ├── SaveFailed                a rank could not save its part, so nobody commits
    └── LineageError
        ├── RunActive             the newest attempt is alive, and what was asked for needs it to be over
        ├── Superseded            a newer attempt owns the run, or this one was ended
        └── LeaseLost             this attempt could not show for too long that it is alive

`retryable` is read from the class, never from the message. Facts stay as attributes. All of them survive pickling,
because a failure on one rank is carried to every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar


class CheckpointError(Exception):
    """Base of all errors of this package; the message says what was found, what is right and what to do."""

    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Callable[..., CheckpointError], tuple[Any, ...]]:
        # The default calls cls(*args), which breaks for classes whose __init__ takes facts instead of a message.
        return _rebuild, (type(self), self.message, {k: v for k, v in vars(self).items() if k != "message"})


def restated(error: CheckpointError, message: str) -> CheckpointError:
    """An error of the same class, with the same facts, that says `message`."""
    return _rebuild(type(error), message, {name: value for name, value in vars(error).items() if name != "message"})


def _rebuild(cls: type[CheckpointError], message: str, facts: dict[str, Any]) -> CheckpointError:
    error = cls.__new__(cls)
    CheckpointError.__init__(error, message)
    vars(error).update(facts)
    return error


class StoreError(CheckpointError):
    """The store answered with something that neither retrying nor waiting will mend."""


class StoreUnreachable(StoreError):
    """No answer, a broken connection, 5xx or 429, after all retries."""

    retryable: ClassVar[bool] = True


class StorePermission(StoreError):
    """The store refuses the credentials in use (or found none)."""


class StoreFull(StoreError):
    """No space or quota is left where the bytes should go."""


class ObjectMissing(StoreError):
    """There is no object under `key`."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class AlreadyExists(StoreError):
    """Somebody else's object is under `key`; `existing` is its body, None when that is no JSON object."""

    def __init__(self, key: str, existing: Mapping[str, Any] | None, message: str | None = None) -> None:
        super().__init__(
            message
            or f"{key} exists already and was put by somebody else. It is put once and never changed: take another "
            "attempt number (or position), or find out who else is running."
        )
        self.key = key
        self.existing = existing


class PutOnceUnsupported(StoreError):
    """The store cannot promise that of two writers of one key exactly one wins."""


class NotCommitted(CheckpointError):
    """There is no manifest under `prefix`, so there is no commit, whatever else lies there."""

    def __init__(self, prefix: str, message: str) -> None:
        super().__init__(message)
        self.prefix = prefix


class Damaged(CheckpointError):
    """What lies under `key` is not what was committed; `problem` says how it differs.

    `advice` says what to do, where it is not the bytes of a commit that are damaged.
    """

    def __init__(self, key: str, problem: str, where: str = "", *, advice: str | None = None) -> None:
        place = f"{where.rstrip('/')}/{key}" if where else key
        advice = advice or (
            "It cannot be trusted; the next older commit is the one to load (readers fall back to it by themselves)."
        )
        super().__init__(f"{place} is damaged: {problem}. {advice}")
        self.key = key
        self.problem = problem


class NoGoodCommit(CheckpointError):
    """Commits exist and none can be read; starting over silently would throw them away, so this is an error."""


class StateMismatch(CheckpointError):
    """A state that cannot be saved, or that does not have the shape of the committed one."""


class StateChanged(CheckpointError):
    """`names` were changed by something else than an optimizer's step while they were being copied for a save."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(
            f"{len(names)} tensors were changed while they were being copied, the first being {list(names[:3])}: after "
            "save() only an optimizer's step may change what was given as its optimizer's, because that step waits. "
            "Call wait_for_copy() before changing it by hand, or give save() no optimizers: then it copies at once."
        )
        self.names = tuple(names)


class SaveFailed(CheckpointError):
    """Ranks could not save their part, for different or unknown reasons; `failures` maps rank to its words.

    Where all failing ranks met the same kind of CheckpointError, that kind is raised instead: who reads classes learns
    whether the disk is full or the store is away. Nothing was committed either way.
    """

    def __init__(self, failures: Mapping[int, str], what: str) -> None:
        super().__init__(_not_committed_words(failures, what))
        self.failures = dict(failures)

    @staticmethod
    def of(failures: Mapping[int, CheckpointError | str], what: str) -> CheckpointError:
        """The error that every rank raises when `failures` (ours, or a foreign one's words) happened on some."""
        words = {rank: str(error) for rank, error in failures.items()}
        first = failures[min(failures)]
        if isinstance(first, CheckpointError) and {type(error) for error in failures.values()} == {type(first)}:
            return restated(first, _not_committed_words(words, what))
        return SaveFailed(words, what)


def _not_committed_words(failures: Mapping[int, str], what: str) -> str:
    words = " ".join(f"rank {rank}: {failures[rank].rstrip('.')}." for rank in sorted(failures))
    return f"{what} was not committed; the commit before it is unharmed. {words}"


class LineageError(CheckpointError):
    """This attempt may not write any more."""


class RunActive(LineageError):
    """Attempt `newest` has not ended, so somebody may be writing."""

    def __init__(self, newest: int) -> None:
        super().__init__(
            f"attempt {newest} has not ended, so this run may be at work. Wait for its end, or cancel it first."
        )
        self.newest = newest


class Superseded(LineageError):
    """Attempt `newest` owns the run now (or this attempt was ended); this one must write and pay for nothing more."""

    def __init__(self, attempt: int, newest: int) -> None:
        why = f"attempt {newest} was claimed" if newest > attempt else "its end was recorded by somebody else or itself"
        super().__init__(
            f"attempt {attempt} is over: {why}. It stops here and leaves the store as it is; nothing has to be done."
        )
        self.attempt = attempt
        self.newest = newest


class LeaseLost(LineageError):
    """The lease could not be renewed for the lease time, so others may take this attempt for dead."""

    def __init__(self, attempt: int, lease_s: float, reason: str) -> None:
        super().__init__(
            f"attempt {attempt} could not renew its lease for {lease_s:g} s ({reason}). Others may take over now, so "
            "it stops. Check the way to the store, then resume the run."
        )
        self.attempt = attempt
