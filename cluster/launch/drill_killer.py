"""The drill's hand: kills a run's node from outside, with SIGKILL, at seeded moments of the phase it aims at.

Aims are spread over the phases in turn and over the run's length; inside a phase the moment is a random wall-clock
delay. What a kill really hit is read from the dead node's own marks, so counts by phase are found, not intended.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.backend import Handle
from cluster.local.backend import LocalBackend
from cluster.phase import Marks, Phase
from cluster.process_tree import kill_marked

PHASES = ("step", "save", "generation", "recovery")
_LOOK_EVERY_S = 0.003  # a save of the demo's model takes tens of milliseconds
_LONGEST_DELAY_S = {"step": 0.3, "save": 0.06, "generation": 0.3, "recovery": 8.0}
_PARTS_AIMED_AT = 8  # generation is hit before, between or after its first parts


@dataclass(frozen=True)
class Aim:
    """One kill to make: in `phase`, once `reached` steps (in generation: parts) are done, `delay_s` after both hold."""

    phase: str
    reached: int
    delay_s: float


@dataclass(frozen=True)
class Kill:
    """One kill that was made.

    Attributes:
        phase: what the node was doing: generation, step, save, recovery or export.
        reached: last training step it made; None before the first of the attempt.
        saving: the step whose save was in flight, or None.
    """

    attempt: int
    region: str
    phase: str
    reached: int | None
    saving: int | None


def plan_aims(kills: int, *, seed: int, total_steps: int, interval: int) -> tuple[Aim, ...]:
    """Choose the moments: phases in turn, generation first, the rest shuffled and spread evenly over the steps."""
    rng = random.Random(seed)
    phases = [PHASES[number % len(PHASES)] for number in range(kills)]
    early = [phase for phase in phases if phase == "generation"]
    late = [phase for phase in phases if phase != "generation"]
    rng.shuffle(late)
    if not early and late and late[0] == "recovery":
        late.append(late.pop(0))  # there is nothing to recover from before the first kill
    parts = sorted(rng.randrange(_PARTS_AIMED_AT) for _ in early)
    aims = [Aim("generation", part, rng.uniform(0, _LONGEST_DELAY_S["generation"])) for part in parts]
    for place, phase in enumerate(late, start=1):
        spread = total_steps * place // (len(late) + 1)
        step = max(1, min(total_steps - 1, spread + rng.randrange(max(1, interval))))
        aims.append(Aim(phase, step, rng.uniform(0, _LONGEST_DELAY_S[phase])))
    return tuple(aims)


class Killer:
    """Watches one run's nodes from a thread of its own and makes the kills, one per attempt at most."""

    def __init__(
        self, backend: LocalBackend, run_id: str, aims: Sequence[Aim], *, on_kill: Callable[[Kill], None]
    ) -> None:
        self._backend = backend
        self._run_id = run_id
        self._aims = list(aims)
        self._on_kill = on_kill
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="drill-killer", daemon=True)
        self.kills: list[Kill] = []

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching, whether all kills were made or not."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        last = 0
        while self._aims and not self._stop.is_set():
            node = self._newest_node(after=last)
            if node is None:
                self._stop.wait(0.05)
                continue
            if self._strike(node, self._aims[0]):
                last = node.attempt
                self._aims.pop(0)

    def _newest_node(self, *, after: int) -> Handle | None:
        nodes = [node for node in self._backend.find(self._run_id) if node.attempt > after]
        return nodes[-1] if nodes else None

    def _strike(self, node: Handle, aim: Aim) -> bool:
        """Wait for the aim's moment in this node's life and kill it; False if it ended by itself before."""
        since: float | None = None
        while not self._stop.is_set():
            if not self._backend.status(node).is_running:
                return False
            marks = self._backend.marks(node)
            if marks is not None and since is None and is_moment(aim, marks, node.attempt):
                since = time.monotonic()
            if since is not None and time.monotonic() >= since + aim.delay_s:
                self._kill(node)
                return True
            time.sleep(_LOOK_EVERY_S)
        return False

    def _kill(self, node: Handle) -> None:
        before = self._backend.marks(node)
        kill_marked(node.nonce)
        # The dead node's own last marks; the supervisor may have cleared them away already, then the ones just before.
        marks = self._backend.marks(node) or before
        if marks is None:
            marks = Marks(Phase.STARTING, None, None)
        kill = _describe(node, marks)
        self.kills.append(kill)
        self._on_kill(kill)


def is_moment(aim: Aim, marks: Marks, attempt: int) -> bool:
    """Whether the aim's phase is on; an aim whose phase is over for good is taken at the next occasion."""
    in_training = marks.phase is Phase.STEP
    stage, reached = marks.reached or ("", 0)
    match aim.phase:
        case "generation":
            made = reached if stage == "generate" else 0
            return in_training or (marks.phase is Phase.GENERATION and made >= aim.reached)
        case "recovery":
            return attempt > 1 and (marks.phase is Phase.STARTING or in_training)
        case "save":
            return in_training and marks.saving is not None and marks.saving >= aim.reached
        case _:
            return in_training and stage == "train" and reached >= aim.reached


def _describe(node: Handle, marks: Marks) -> Kill:
    reached = marks.reached[1] if marks.reached is not None and marks.reached[0] == "train" else None
    if marks.phase is Phase.STARTING:
        phase = "recovery"
    elif marks.phase is Phase.STEP:
        phase = "step" if marks.saving is None else "save"
    else:
        phase = marks.phase.value
    return Kill(node.attempt, node.placement.name, phase, reached, marks.saving)
