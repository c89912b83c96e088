"""The long drill, `make drill`: many kills over several seeds, added up and judged. Prints JSON; exit code 1: not good.

python .ci/drill.py [--job FILE] [--kills-per-seed 5] [--seeds 1,2,3,4] [--min-per-phase 3]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
SUMS = ("kills", "rows_lost", "rows_duplicated", "corrupt_resumes", "requests_repeated")
MUST_BE_ZERO = ("rows_lost", "rows_duplicated", "corrupt_resumes")
PHASES = ("generation", "step", "save", "recovery")


def drill(job: str, kills: int, seed: int) -> dict[str, Any]:
    """One drill in a process of its own; its progress goes to our stderr."""
    command = [str(Path(sys.executable).with_name("alpaca-jobs")), "drill", job, "--json"]
    command += ["--kills", str(kills), "--seed", str(seed)]
    print(f"seed {seed}: {' '.join(command[1:])}", file=sys.stderr, flush=True)
    ended = subprocess.run(command, cwd=REPO, stdout=subprocess.PIPE, text=True, check=False)
    if not ended.stdout.strip():
        sys.exit(f"seed {seed}: the drill ended with exit code {ended.returncode} and no result")
    result: dict[str, Any] = json.loads(ended.stdout)
    return {"seed": seed, **result}


def add_up(results: list[dict[str, Any]], min_per_phase: int) -> dict[str, Any]:
    """The totals, and every reason why they are not good enough."""
    by_phase = Counter({phase: 0 for phase in PHASES})
    for result in results:
        by_phase.update(result["kills_by_phase"])
    totals: dict[str, Any] = {name: sum(result[name] for result in results) for name in SUMS}
    problems = [f"seed {one['seed']}: not bit-identical" for one in results if one["bit_identical"] is not True]
    problems += [
        f"seed {one['seed']}: more steps lost than promised" for one in results if not one["lost_steps_in_bound"]
    ]
    problems += [f"{name} is {totals[name]}" for name in MUST_BE_ZERO if totals[name]]
    problems += [
        f"{by_phase[phase]} kills in phase {phase}, {min_per_phase} are wanted (more seeds find more moments)"
        for phase in PHASES
        if by_phase[phase] < min_per_phase
    ]
    return {
        **totals,
        "kills_by_phase": dict(by_phase),
        "lost_steps_max": max(result["lost_steps_max"] for result in results),
        "ok": not problems,
        "problems": problems,
        "drills": results,
    }


def main() -> int:
    """Read the arguments, drill once per seed, print the sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", default="alpaca_jobs/examples/demo.yaml")
    parser.add_argument("--kills-per-seed", type=int, default=5)
    parser.add_argument("--seeds", default="1,2,3,4")
    parser.add_argument("--min-per-phase", type=int, default=3)
    given = parser.parse_args()
    results = [drill(given.job, given.kills_per_seed, int(seed)) for seed in given.seeds.split(",")]
    total = add_up(results, given.min_per_phase)
    print(json.dumps(total, indent=2))
    return 0 if total["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
