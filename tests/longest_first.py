"""A pytest plugin for .ci/tests.sh: the longest files first, so that no worker is alone with one at the end.

    python -m pytest -p tests.longest_first ...

With `--dist loadfile` files are handed out in this order (`--no-loadscope-reorder` keeps it). The cloud in a box runs
with `--dist worksteal`, where each worker begins with one contiguous share of the tests: these are made equally long.
The seconds are of one machine with two CPUs (2026-11-22), by file; only how they compare matters. A file that is not
here counts as QUICK_S, a scenario of the cloud in a box as SCENARIO_S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

QUICK_S = 5
SCENARIO_S = 450
SECONDS = {
    "tests/cli/test_whole_job.py": 350,
    "tests/cluster/real_nodes/test_drill.py": 340,
    "tests/alpaca_jobs/training/test_engines.py": 190,
    "tests/checkpoints/test_commit.py": 150,
    "tests/cluster/real_nodes/test_two_machines.py": 155,
    "tests/cluster/node/test_generate_kills.py": 150,
    "tests/cluster/real_nodes/test_attempts.py": 140,
    "tests/checkpoints/test_torture.py": 130,
    "tests/cluster/real_nodes/test_zombie.py": 105,
    "tests/cluster/real_nodes/test_bad_surroundings.py": 105,
    "tests/cluster/real_nodes/test_command.py": 95,
    "tests/checkpoints/test_torch_trainer.py": 70,
    "tests/checkpoints/test_store.py": 70,
    "tests/cli/test_run_verbs.py": 60,
    "tests/checkpoints/test_torch_zero.py": 60,
    "tests/cluster/real_nodes/test_memory.py": 56,
    "tests/alpaca_jobs/training/test_reference.py": 53,
    "tests/cluster/node/test_notice.py": 49,
    "tests/alpaca_jobs/training/test_kernels.py": 85,
    "tests/cluster/real_nodes/test_stall.py": 45,
    "tests/cli/test_interrupt.py": 40,
    "tests/test_wheel.py": 35,
    "tests/alpaca_jobs/training/test_stored.py": 32,
    "tests/alpaca_jobs/generation/test_similarity.py": 25,
    "tests/cluster/real_nodes/test_secrets.py": 20,
    "tests/alpaca_jobs/weights/test_diff.py": 19,
    "tests/cluster/launch/test_translating.py": 17,
    "tests/cluster/node/test_dedupe_shards.py": 13,
    "tests/cluster/cloud/test_plugin_install.py": 12,
    "tests/cli/test_data.py": 11,
    "tests/cloud/test_demo_job.py": 620,
    "tests/cloud/test_own_controller.py": 410,
    "tests/cloud/test_two_machines.py": 500,
    "tests/cloud/test_notice.py": 470,
    "tests/cloud/test_without_plugin.py": 275,
    "tests/cloud/test_limits.py": 575,
    "tests/cloud/test_box.py": 10,
}
LAST = ("tests/cloud/test_own_controller.py", "tests/cloud/test_without_plugin.py")
"""They leave SkyPilot's server set up in another way: a scenario after them would start it anew."""


class Item(Protocol):
    """What is asked of a test."""

    nodeid: str


T = TypeVar("T", bound=Item)


def seconds(item: Item) -> float:
    """What a test, or the file that it is in, takes."""
    path = item.nodeid.partition("::")[0]
    return SECONDS.get(path, SCENARIO_S if path.startswith("tests/cloud/") else QUICK_S)


def equal_shares(items: Sequence[T], workers: int) -> list[T]:
    """Tests in an order whose contiguous shares, one a worker, are as long as one another: always to the shortest."""
    sizes = [len(items) // workers + (number >= workers - len(items) % workers) for number in range(workers)]
    shares: list[list[T]] = [[] for _ in sizes]
    for item in sorted(items, key=seconds, reverse=True):
        open_shares = [share for share, size in zip(shares, sizes, strict=True) if len(share) < size]
        min(open_shares, key=lambda share: sum(map(seconds, share))).append(item)
    return [item for share in shares for item in sorted(share, key=lambda item: item.nodeid.startswith(LAST))]


def pytest_collection_modifyitems(config: object, items: list[Item]) -> None:
    """Put them into order; every worker of xdist comes to the same one, as xdist wants it."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if all(item.nodeid.startswith("tests/cloud/") for item in items):
        items[:] = equal_shares(items, workers)
    else:
        items.sort(key=seconds, reverse=True)  # stable: a file's tests stay together and in their order
