"""Counts what generation kept and dropped, and notices a teacher whose answers never become rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alpaca_jobs.errors import TeacherGarbage
from alpaca_jobs.generation.pipeline import SURPLUS, Consumed

MAX_BARREN_REQUESTS = 40
"""Answers in a row without a single row before the teacher is given up."""


@dataclass
class TokenCount:
    """Tokens that answers were billed for, unusable tries before them included.

    Attributes:
        prompt, completion: of the answers that say.
        untold: answers that do not, as some servers give no usage.
    """

    prompt: int = 0
    completion: int = 0
    untold: int = 0

    def add(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Count one answer; None for what its server did not say."""
        self.prompt += prompt_tokens or 0
        self.completion += completion_tokens or 0
        self.untold += prompt_tokens is None or completion_tokens is None

    def add_all(self, counts: Mapping[str, int]) -> None:
        """Add what `to_json` returned."""
        self.prompt += counts["prompt"]
        self.completion += counts["completion"]
        self.untold += counts["untold"]

    def to_json(self) -> dict[str, int]:
        """Plain values."""
        return {"prompt": self.prompt, "completion": self.completion, "untold": self.untold}


@dataclass
class GenerationStatistics:
    """Sums over the answers consumed so far; `drops` counts pieces by reason."""

    num_requests: int = 0
    num_rows: int = 0
    num_barren_in_a_row: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    tokens: TokenCount = field(default_factory=TokenCount)

    def add(self, consumed: Consumed) -> None:
        """Count one answer."""
        self.num_requests += 1
        self.num_rows += len(consumed.rows)
        self.drops.update(consumed.drops)
        is_fruitful = bool(consumed.rows) or consumed.is_useful or SURPLUS in consumed.drops
        self.num_barren_in_a_row = 0 if is_fruitful else self.num_barren_in_a_row + 1

    def add_part(
        self, num_requests: int, num_rows: int, drops: Mapping[str, int], tokens: Mapping[str, int] | None = None
    ) -> None:
        """Count many answers whose sums are known, such as a part that an earlier attempt committed.

        Args:
            tokens: as TokenCount.to_json has them; None for a part of a version that did not count them.
        """
        self.tokens.add_all(tokens or {"prompt": 0, "completion": 0, "untold": num_requests})
        self.num_requests += num_requests
        self.num_rows += num_rows
        self.drops.update(drops)

    @property
    def accept_rate(self) -> float | None:
        """Rows kept over pieces seen, 0 to 1; None before the first piece. Surplus rows count as neither."""
        seen = self.num_rows + self.drops.total() - self.drops[SURPLUS]
        return self.num_rows / seen if seen else None

    def check_progress(self, last_text: str = "", *, limit: int = MAX_BARREN_REQUESTS) -> None:
        """Stop paying a teacher whose answers cannot be used; `last_text` is the answer just counted.

        Raises:
            TeacherGarbage: the last `limit` answers gave no row; says what was dropped and why.
        """
        if self.num_barren_in_a_row < limit:
            return
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.drops.most_common()) or "nothing was in them"
        raise TeacherGarbage(
            f"The teacher's last {self.num_barren_in_a_row} answers gave no row that could be kept (dropped so far: "
            f"{reasons}); the last one begins with {last_text[:300]!r}. {self.num_rows} rows are kept. Try another "
            "teacher.model or the other teacher.api; if most were similar, more seed tasks or a higher "
            "data.similarity_threshold."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON fields, reasons in alphabetical order."""
        return {
            "num_requests": self.num_requests,
            "num_rows": self.num_rows,
            "drops": dict(sorted(self.drops.items())),
            "accept_rate": self.accept_rate,
        }
