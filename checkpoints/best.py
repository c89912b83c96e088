"""The best commit by a number that commits carry, such as the loss of held-out rows.

    save(400, state, meta={"metrics": {"eval_loss": 1.23}})

The number is part of the manifest from the first, so nothing is ever written twice to say which commit is the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from checkpoints.errors import Damaged, NotCommitted
from checkpoints.keys import CommitRef, Layout
from checkpoints.manifest import Manifest
from checkpoints.reader import CommitReader
from checkpoints.store import Store

METRICS = "metrics"
"""Key of a manifest's `meta` under which the numbers stand, by name."""


@dataclass(frozen=True)
class Metric:
    """Which number of a commit is compared, and which way."""

    name: str
    higher_is_better: bool = False


def metric_of(manifest: Manifest, metric: Metric) -> float | None:
    """The number of one commit; None where it has none, or one that cannot be compared."""
    numbers = manifest.meta.get(METRICS)
    value = numbers.get(metric.name) if isinstance(numbers, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def best_of(manifests: Iterable[Manifest], metric: Metric) -> CommitRef | None:
    """The commit with the best number, the earliest of equals; None where no commit has one."""
    sign = -1.0 if metric.higher_is_better else 1.0
    found = [(sign * value, one.ref) for one in manifests if (value := metric_of(one, metric)) is not None]
    return min(found, key=lambda pair: (pair[0], pair[1].position, -pair[1].attempt))[1] if found else None


def best_commit(store: Store, layout: Layout, commits: Iterable[CommitRef], metric: Metric) -> CommitRef | None:
    """The best of some commits, by their manifests; one that is unreadable or gone is nobody's best.

    Raises:
        StoreUnreachable, StorePermission: the store cannot be asked, which says nothing about the commits.
    """
    return best_readable(commits, lambda ref: CommitReader.open(store, layout, ref).manifest, metric)


def best_readable(
    commits: Iterable[CommitRef], read: Callable[[CommitRef], Manifest], metric: Metric
) -> CommitRef | None:
    """The same with manifests that `read` brings, from a cache perhaps."""
    manifests = []
    for ref in commits:
        try:
            manifests.append(read(ref))
        except (Damaged, NotCommitted):
            continue
    return best_of(manifests, metric)
