"""Dedupe by ROUGE-L: upstream's way, exact brute force, and ours, on the same instructions.

    python benchmarks/dedupe.py            # everything, about six minutes on two idle cores
    python benchmarks/dedupe.py --quick    # brute force on a sample, no million rows: under a minute

Ours is timed from a list of texts to all decisions, once as it is and once with the rouge_score package confirming
every drop on the way; each run is a process of its own, so that its peak memory is its own. Prints `aim met: yes|no`
per aim, exits 1 on a no.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

from instructions import make_instructions

ROWS = 52_002  # as many as Alpaca's
MAX_SECONDS, MAX_MIB, MAX_MILLION_SECONDS = 3.0, 500.0, 600.0
MIN_OVER_BRUTE_FORCE, MIN_OVER_UPSTREAM = 29.0, 5000.0
THRESHOLD = 0.7
REPEATS = 5


def main() -> None:
    """Run the benchmark, or one child of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--quick", action="store_true", help="sample the brute force, leave the million rows out")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--confirm", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_dedupe(json.loads(arguments.child.read_text()), confirm=arguments.confirm)))
    else:
        sys.exit(0 if run(arguments.rows, is_quick=arguments.quick) else 1)


def run(rows: int, *, is_quick: bool) -> bool:
    """Print all measurements; return whether every aim was met."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python {sys.version.split()[0]}")
    texts = make_instructions(rows)
    words = statistics.mean(len(text.split()) for text in texts)
    print(f"{rows:,} instructions, {words:.1f} words on average, 40 % made as near-duplicates\n")
    ours, proven = (measure_ours(texts, repeats=REPEATS, confirm=confirm) for confirm in (False, True))
    kept = ours["kept"]
    assert proven["kept"] == kept
    for name, result in (("ours", ours), ("ours, every drop", proven)):
        cpu = f"{result['cpu_s']:.2f} s of CPU, peak {result['mib']:.0f} MiB (process and texts)"
        print(f"{name:22}{result['seconds']:10.2f} s   median of {REPEATS}; {cpu}")
    print(f"confirmed by rouge_score{'':13}{len(kept):,} kept, {rows - len(kept):,} dropped")
    brute_s = measure_brute_force(texts, kept, sample=40 if is_quick else None)
    upstream_s = extrapolate_upstream(texts, kept)
    over_brute, over_upstream = brute_s / ours["seconds"], upstream_s / proven["seconds"]
    print(f"\nours is {over_brute:.0f} times as fast as exact brute force, which confirms nothing either;")
    print(f"with rouge_score confirming, {over_upstream:,.0f} times as fast as upstream's way\n")
    results = [
        _aim(f"{rows:,} rows, all drops confirmed, in under {MAX_SECONDS:g} s", proven["seconds"] < MAX_SECONDS),
        _aim(f"peak memory under {MAX_MIB:g} MiB", proven["mib"] < MAX_MIB),
        _aim(f"{MIN_OVER_BRUTE_FORCE:g} times exact brute force", over_brute >= MIN_OVER_BRUTE_FORCE),
        _aim(f"{MIN_OVER_UPSTREAM:,.0f} times upstream", over_upstream >= MIN_OVER_UPSTREAM),
        *measure_growth(ours["seconds"], rows, is_quick=is_quick),
    ]
    return all(results)


def _aim(words: str, is_met: bool) -> bool:
    print(f"{words}: aim met: {'yes' if is_met else 'no'}")
    return is_met


def measure_ours(texts: list[str], *, repeats: int, confirm: bool) -> dict[str, Any]:
    """Return median seconds, the largest peak memory in MiB, and the kept rows, of fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.json"
        path.write_text(json.dumps(texts))
        command = [sys.executable, __file__, "--child", str(path), *(["--confirm"] if confirm else [])]
        runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(repeats)]
    assert all(run["kept"] == runs[0]["kept"] for run in runs)
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "cpu_s": statistics.median(run["cpu_s"] for run in runs),
        "mib": max(run["mib"] for run in runs),
        "kept": runs[0]["kept"],
    }


def _dedupe(texts: list[str], *, confirm: bool) -> dict[str, Any]:
    import rapidfuzz.distance
    import rapidfuzz.process  # noqa: F401 (loading packages is not what is measured)

    from alpaca_jobs.generation.similarity import SimilarityIndex

    index = SimilarityIndex(THRESHOLD, confirm=confirm)
    start, cpu_start = time.perf_counter(), time.process_time()
    decisions = list(index.offer_all(texts))
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    kept = [row for row, duplicate in enumerate(decisions) if duplicate is None]
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu_s": cpu_s, "mib": mib, "kept": kept}


def measure_brute_force(texts: list[str], kept: list[int], *, sample: int | None) -> float:
    """Time rapidfuzz's LCS of every text with everything kept before it, on all cores; check our decisions by it.

    It is rapidfuzz at its quickest here: `LCSseq.similarity` as bytes takes 31 ns per pair of these texts on one core;
    a `score_cutoff`, or `Indel.normalized_similarity`, which is F itself but for the last bits, 34 to 45 ns. What
    decides is an integer comparison; only the pairs at or above the edge are put through rouge_score's arithmetic.

    Args:
        texts, kept: all texts, and the places of those that ours kept.
        sample: how many blocks of texts to measure, spread over the stream; None for all.
    """
    import numpy as np
    from rapidfuzz.distance import LCSseq
    from rapidfuzz.process import cdist
    from rouge_score.tokenize import tokenize

    from alpaca_jobs.generation.rouge import f_measure

    ids: dict[str, int] = {}
    start = time.perf_counter()
    rows = ["".join(chr(ids.setdefault(token, len(ids)) + 1) for token in tokenize(text, None)) for text in texts]
    lengths = np.array([len(row) for row in rows], dtype=np.int16)
    seconds, pairs, all_pairs, places, block = time.perf_counter() - start, 0, 0, np.array(kept), 256
    assert lengths.max() < 256, "an LCS has to fit into a byte"
    starts = range(0, len(rows), block)
    chosen = set(starts if sample is None else starts[:: max(1, len(starts) // sample)])
    for first in starts:
        stop = min(first + block, len(rows))
        others = places[places < stop]
        all_pairs += (stop - first) * len(others)
        if first not in chosen:
            continue
        pairs += (stop - first) * len(others)
        start = time.perf_counter()
        lcs = cdist(rows[first:stop], [rows[o] for o in others], scorer=LCSseq.similarity, dtype=np.uint8, workers=-1)
        # F = 2 LCS / (m + n) is 0.7 or more where 20 LCS >= 7 (m + n); at the edge its rounding decides.
        near = np.int16(20) * lcs >= np.int16(7) * (lengths[first:stop, None] + lengths[None, others])
        texts_near, others_near = near.nonzero()
        m, n = lengths[first + texts_near], lengths[others[others_near]]
        hits = (f_measure(lcs[near], m, n) > THRESHOLD) & (others[others_near] < first + texts_near)
        is_duplicate = np.isin(np.arange(stop - first), texts_near[hits])
        seconds += time.perf_counter() - start
        assert (~is_duplicate == np.isin(np.arange(first, stop), others)).all(), "ours decided otherwise"
    total = seconds * all_pairs / pairs
    how = "all of it" if sample is None else f"extrapolated from {pairs / all_pairs:.0%} of the pairs"
    print(f"rapidfuzz brute force {total:10.2f} s   {all_pairs:,} pairs, {how}; the same decisions")
    return total


def extrapolate_upstream(texts: list[str], kept: list[int]) -> float:
    """Time Alpaca's own loop (a new process pool per text, rouge_score on every pair) on a few texts, and scale it."""
    from rouge_score.tokenize import tokenize

    tokens = [tokenize(texts[place], None) for place in kept]
    sizes = (len(tokens) // 20, len(tokens) // 2)
    small, large = (
        statistics.median(_upstream_candidate(tokens[-number], tokens[:size]) for number in range(1, REPEATS + 1))
        for size in sizes
    )
    per_pair = (large - small) / (sizes[1] - sizes[0])
    per_text = max(0.0, small - per_pair * sizes[0])
    pairs, before = 0, 0
    kept_places = set(kept)
    for place in range(len(texts)):
        pairs += before
        before += place in kept_places
    total = per_text * len(texts) + per_pair * pairs
    print(
        f"upstream's way        {total:10.0f} s   ({total / 3600:.1f} h) extrapolated: {small:.2f} s per text against"
    )
    print(f"{'':39}{sizes[0]:,} rows, {large:.2f} s against {sizes[1]:,}; {pairs:,} pairs in all")
    return total


def _upstream_candidate(candidate: list[str], rows: list[list[str]]) -> float:
    # Source: Stanford Alpaca, generate_instruction.py: with Pool(num_cpus) as p: p.map(partial(_score_lcs, new), all)
    from rouge_score.rouge_scorer import _score_lcs

    start = time.perf_counter()
    with Pool(os.cpu_count()) as pool:
        pool.map(partial(_score_lcs, candidate), rows)
    return time.perf_counter() - start


def measure_growth(seconds: float, rows: int, *, is_quick: bool) -> list[bool]:
    """Print how time and memory grow with the number of rows; return whether the aim for a million was met."""
    results, before = [], (rows, seconds)
    for count in (4 * rows,) if is_quick else (4 * rows, 1_000_000):
        ours = measure_ours(make_instructions(count), repeats=1, confirm=False)
        exponent = math.log(ours["seconds"] / before[1]) / math.log(count / before[0])
        print(
            f"\n{count:,} rows: {ours['seconds']:.1f} s ({ours['cpu_s']:.1f} s of CPU), {ours['mib']:.0f} MiB, ", end=""
        )
        print(f"{len(ours['kept']):,} kept; ", end="")
        print(f"time grows as rows to the power {exponent:.2f} since {before[0]:,}")
        before = (count, ours["seconds"])
        if count == 1_000_000:
            words = f"1,000,000 rows in under {MAX_MILLION_SECONDS / 60:.0f} minutes"
            results.append(_aim(words, ours["seconds"] < MAX_MILLION_SECONDS))
    return results


if __name__ == "__main__":
    main()
