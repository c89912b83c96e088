"""AlpacaError and its tree: what can go wrong with a job's description, its data, its teacher and its training.

Two facts stand on every class, so that nobody has to read message text: `retryable` says whether trying the very same
thing again can help, `exit_code` which of the command line's exit codes the error leads to (1 the job failed, 2 wrong
input, 3 the surroundings failed, 4 stopped by a budget or a deadline).
"""

from __future__ import annotations

from typing import ClassVar


class AlpacaError(Exception):
    """Anything this room refuses or fails to do; the text is written for the person who started the job."""

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1


class SpecError(AlpacaError):
    """A job file that cannot be used: not YAML, an unknown key, a value or a combination that cannot be.

    Attributes:
        problems: one text per problem, each complete in itself (where, what was found, what would be right).
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems or (message,)


class DataError(AlpacaError):
    """Seed tasks or rows that cannot be read, are empty, or leave nothing to learn from."""

    exit_code: ClassVar[int] = 2


class ModelError(AlpacaError):
    """A base model or tokenizer that does not exist, cannot be loaded, or does not fit the job."""

    exit_code: ClassVar[int] = 2


class CommandError(AlpacaError):
    """The job's own training command cannot be what it is: no such program, or no model where one has to be."""

    exit_code: ClassVar[int] = 2


class TrainingError(AlpacaError):
    """Training that cannot go on: a loss that is not finite, ranks that disagree, a state of another model."""


class Diverged(TrainingError):
    """The loss or the gradient is not finite. The same rows and weights give it again."""


class TeacherError(AlpacaError):
    """The teacher (the LLM that writes the rows) refused or failed, and asking again would not help.

    Attributes:
        had_given_rows: whether rows were gained from it in the same attempt, before; whoever writes rows says so.
    """

    exit_code: ClassVar[int] = 3
    had_given_rows: bool = False


class TeacherUnreachable(TeacherError):
    """No answer: connection refused, name not resolved, timeout, or the server's own 5xx."""

    retryable: ClassVar[bool] = True


class TeacherRateLimited(TeacherError):
    """The teacher said 429, and went on saying it for as many tries as the job allows.

    Attributes:
        retry_after_s: the wait the server asked for, or None.
    """

    retryable: ClassVar[bool] = True

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TeacherGarbage(TeacherError):
    """The teacher answers, but not with anything that can be parsed into rows.

    Attributes:
        answer: a TeacherAnswer that says what asking cost, where one request was given up; None otherwise.
    """

    def __init__(self, message: str, *, answer: object = None) -> None:
        super().__init__(message)
        self.answer = answer


class TeacherAuth(TeacherError):
    """The teacher's key is missing, wrong, or not allowed to use this model."""


class TeacherWithoutSchemas(TeacherError):
    """The teacher's server or model does not take the JSON schema that the job wants its answers in."""


class BudgetExceeded(AlpacaError):
    """The next paid request would cross a limit of the job; it was not sent."""

    exit_code: ClassVar[int] = 4
