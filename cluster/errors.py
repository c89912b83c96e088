"""ClusterError and its tree: what can go wrong with machines, runs and money.

Two facts stand on every class: `retryable` says whether trying the same thing again, later or elsewhere, can help;
`exit_code` which of the command line's exit codes it leads to (1 the job failed, 2 wrong input, 3 the surroundings
failed, 4 stopped by a budget or a deadline).
"""

from __future__ import annotations

from typing import ClassVar


class ClusterError(Exception):
    """Anything this room refuses or fails to do; the text is written for the person who started the run."""

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 3


class WrongInput(ClusterError):
    """The request itself cannot be: nothing about the machines has to change, the request has to."""

    exit_code: ClassVar[int] = 2


class PlanError(WrongInput):
    """No machine in the price list fits the job: unknown GPU, not enough memory, a region that does not sell it."""


class RunNotFound(WrongInput):
    """No run of that name in the store."""


class RunFinished(WrongInput):
    """The run is done; there is nothing left to resume or cancel."""


class RunActive(WrongInput):
    """The run is still alive; a second start would compete with it."""


class BackendMissing(WrongInput):
    """This version cannot launch on the infra that was asked for."""


class RunFailed(ClusterError):
    """The job itself failed: its own error, the same crash again and again, or out of memory."""

    exit_code: ClassVar[int] = 1


class AwaitingReview(ClusterError):
    """The rows are written and the job wants a person to look at them before it trains; no failure."""

    exit_code: ClassVar[int] = 0


class NoCapacity(ClusterError):
    """The place has no such machine at the moment; another region, or later, may."""

    retryable: ClassVar[bool] = True


class NodeLost(ClusterError):
    """A node stopped answering or was taken away."""

    retryable: ClassVar[bool] = True


class RayFailure(ClusterError):
    """Ray did not come up on a node, or one of its processes died; a fresh start elsewhere may work."""

    retryable: ClassVar[bool] = True


class LaunchFailed(ClusterError):
    """A node could not be started for a reason of its own (not capacity); the same start elsewhere may work."""

    retryable: ClassVar[bool] = True


class CloudError(ClusterError):
    """A cloud refused something, or did not answer. `code` is the cloud's own word for it, empty without one."""

    def __init__(self, words: str, *, code: str = "") -> None:
        super().__init__(words)
        self.code = code


class NoCredentials(CloudError):
    """Nobody is signed in to the cloud on this machine, or not any more."""


class CatalogError(ClusterError):
    """A price catalog that is missing or cannot be read."""
