"""Asking a teacher: how much of its limit is used, what faults cost, and upstream's loop on the same server.

    python benchmarks/generation.py                   # about five minutes
    python benchmarks/generation.py --requests 400    # two minutes

The teacher is the built-in rule-based one behind limits of requests or tokens a minute, stated in headers or not, with
latency and, where said, faults (limited_teacher.py): what is measured is the asking, not the writing. Ours is the whole
stage of a node (ledger, store, dedupe, parts) with its actors in this process, and nothing tuned. Prints `aim met:
yes|no` per aim, exits 1 on a no.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from limited_teacher import INPUT_USD, OUTPUT_USD, WARM_UP_S, LimitedTeacher

from alpaca_jobs.generation.encode import encode_prompt, stop_sequences
from alpaca_jobs.generation.filters import drop_reason
from alpaca_jobs.generation.offline_spec import OFFLINE_MODEL
from alpaca_jobs.generation.parse import parse_answer
from alpaca_jobs.generation.request_maker import sample
from alpaca_jobs.generation.seeds import load_seed_tasks
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_filters import FiltersSpec
from checkpoints.attempts import AttemptLog
from checkpoints.fence import Fence
from checkpoints.store import Store
from cluster.events import EventWriter
from cluster.node.actor_runtime import InProcessActors
from cluster.node.attempt_context import AttemptContext, Interruption
from cluster.node.generate_stage import GeneratedRows, GenerateStage
from cluster.node.inputs import freeze_inputs
from cluster.phase import PhaseMarker

MIN_SHARE, MIN_UNSTATED_SHARE = 0.95, 0.9
UPSTREAM_BATCH = 5  # prompts per request. Source: Stanford Alpaca, generate_instruction.py, request_batch_size
UPSTREAM_SLEEP_S = 2.0  # at every error. Source: Stanford Alpaca, utils.py, sleep_time
ALPACA_ROWS = 52_000


@contextlib.contextmanager
def serving(server: LimitedTeacher) -> Iterator[LimitedTeacher]:
    """Answer in threads of this process."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def generate(server: LimitedTeacher, folder: Path, *, num_requests: int) -> tuple[GeneratedRows, float, float]:
    """Run the stage for so many requests; returns its rows, what its ledger says it cost, and the seconds it took."""
    teacher = {
        "model": OFFLINE_MODEL, "base_url": server.base_url, "api": "completions", "api_key_env": None,
        "price_per_million_input_usd": INPUT_USD, "price_per_million_output_usd": OUTPUT_USD,
    }  # fmt: skip
    data = {"teacher": teacher, "part_requests": 50, "max_requests": num_requests}
    job = JobSpec.model_validate(
        {"name": "bench", "data": data, "train": {"model": "tiny-llama"}, "compute": {"workers": 1}}
    )
    root = Store.open(f"file://{folder}")
    store = root.child("run")
    freeze_inputs(job, store)
    log = AttemptLog(store, LAYOUT)
    log.claim(1, {})
    log.put_base(1, None)
    events, state = EventWriter(store, attempt=1, writer="node"), GeneratedRows()
    context = AttemptContext(
        run_id="run", attempt=1, job=job, world_size=1, layout=LAYOUT, store=store, store_uri=root.uri, log=log,
        fence=Fence(log, 1), events=events, marker=PhaseMarker(folder), interruption=Interruption(), scratch=folder,
    )  # fmt: skip
    began = time.perf_counter()
    with InProcessActors() as actors:
        GenerateStage(context, actors, state).run()
    seconds = time.perf_counter() - began
    events.close()
    answers = [json.loads(store.get(key))["answer"] for key in store.list("answers/")]
    return state, sum(answer["at_most_usd"] for answer in answers), seconds


def run_upstream(server: LimitedTeacher, folder: Path, *, num_requests: int) -> tuple[int, float]:
    """Alpaca's loop: one request of five prompts at a time, a pool per candidate, the whole file at every request.

    Its five prompts are sent one after the other here without their latency but the first's, since this server takes
    one prompt per request; the limit counts each. Returns rows and seconds.
    """
    from rouge_score.rouge_scorer import _score_lcs
    from rouge_score.tokenize import tokenize

    seeds = load_seed_tasks("builtin")
    texts = [tokenize(seed.instruction, None) for seed in seeds]
    rows: list[dict[str, str]] = []
    began = time.perf_counter()
    for request in range(num_requests):
        answers, server.latency_s, latency_s = [], server.latency_s, server.latency_s
        for place in range(UPSTREAM_BATCH):
            shown = sample(seeds, 3, seed=1, number=request * UPSTREAM_BATCH + place)
            body = {"model": OFFLINE_MODEL, "prompt": encode_prompt(shown, num_tasks=20), "max_tokens": 2400}
            answers.append(_post_until_answered(server.base_url, {**body, "stop": list(stop_sequences(20))}))
            server.latency_s = 0.0
        server.latency_s = latency_s
        for text, finish in answers:
            for task in parse_answer(text, num_shown=3, finish_reason=finish).tasks:
                if drop_reason(task, FiltersSpec()) is not None:
                    continue
                tokens = tokenize(task.instruction, None)
                with get_context("fork").Pool(os.cpu_count()) as pool:
                    scores = pool.map(partial(_score_lcs, tokens), texts)
                if max(score.fmeasure for score in scores) > 0.7:
                    continue
                texts.append(tokens)
                rows.append({"instruction": task.instruction, "input": task.input, "output": task.output})
        (folder / "regen.json").write_text(json.dumps(rows, indent=4))
    return len(rows), time.perf_counter() - began


def _post_until_answered(base_url: str, body: dict[str, Any]) -> tuple[str, str]:
    while True:
        request = urllib.request.Request(
            f"{base_url}/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as reply:
                choice = json.load(reply)["choices"][0]
            return choice["text"] or "", choice["finish_reason"]
        except urllib.error.HTTPError:
            time.sleep(UPSTREAM_SLEEP_S)


@dataclass(frozen=True)
class Run:
    """One whole stage against one server.

    Attributes:
        state: what came of it; usd: what its ledger says; seconds: it took.
        share: of what the server allowed, used after the warm-up.
    """

    state: GeneratedRows
    usd: float
    seconds: float
    share: float
    server: LimitedTeacher

    @property
    def num_rows(self) -> int:
        """Rows kept."""
        return len(self.state.rows)

    @property
    def rows_per_usd(self) -> float:
        """For every dollar that the server bills."""
        return self.num_rows / self.server.billed_usd

    def print(self, name: str, more: str = "") -> None:
        """One line."""
        print(
            f"{name:28}{self.seconds:7.1f} s   {self.num_rows:,} rows, {self.share:.1%} of the limit used after "
            f"{WARM_UP_S:g} s, {self.server.num_limited} refused{more}"
        )


def measure(folder: Path, name: str, *, num_requests: int, **server: Any) -> Run:
    """Start a server, run the stage against it."""
    with serving(LimitedTeacher(**server)) as teacher:
        state, usd, seconds = generate(teacher, folder / name, num_requests=num_requests)
    return Run(state, usd, seconds, teacher.share_used(), teacher)


def main() -> None:
    """Measure, print, and exit 1 if an aim was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1200)
    parser.add_argument("--per-minute", type=float, default=1200.0, help="the server's limit")
    parser.add_argument("--latency", type=float, default=1.5, help="seconds each answer takes")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # the faults are made on purpose, and counted
    asked, per_minute, latency_s = arguments.requests, arguments.per_minute, arguments.latency
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {per_minute:g} requests a minute allowed,")
    print(f"{latency_s:g} s per answer, {asked:,} requests; data.concurrency: auto\n")
    by_requests = {"requests_per_minute": per_minute, "latency_s": latency_s}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calm = measure(folder, "calm", num_requests=asked, **by_requests)
        calm.print("ours")
        faulty = measure(folder, "faulty", num_requests=asked, fault_share=0.1, **by_requests)
        faulty.print("ours, 10 % faults", f", {faulty.server.num_faults} faults")
        print(f"{'':38}ledger ${faulty.usd:.6f}, billed ${faulty.server.billed_usd:.6f}")
        silent = measure(folder, "silent", num_requests=asked // 2, states_limits=False, **by_requests)
        silent.print("ours, no limit stated")
        counted = calm.state.statistics.tokens
        tokens_per_minute = per_minute * (counted.prompt + counted.completion) / asked
        by_tokens = {"tokens_per_minute": tokens_per_minute, "latency_s": latency_s}
        tokens = measure(folder, "tokens", num_requests=asked // 2, **by_tokens)
        tokens.print("ours, tokens limited", f"; {tokens_per_minute:,.0f} tokens a minute")
        few = 6
        with serving(LimitedTeacher(**by_requests)) as server_of_upstream:
            rows, upstream_s = run_upstream(server_of_upstream, folder, num_requests=few)
        theirs_per_usd = rows / server_of_upstream.billed_usd
    ours_s, theirs_s = calm.seconds / calm.num_rows * ALPACA_ROWS, upstream_s / max(1, rows) * ALPACA_ROWS
    print(f"{'upstream: its loop':28}{upstream_s:7.1f} s   {rows:,} rows of {few} x {UPSTREAM_BATCH} prompts\n")
    print(f"rows per teacher dollar, at ${INPUT_USD} and ${OUTPUT_USD} per million tokens: {calm.rows_per_usd:,.0f};")
    print(f"with 10 % faults {faulty.rows_per_usd:,.0f}; upstream's first {rows:,}: {theirs_per_usd:,.0f}")
    print(f"time to {ALPACA_ROWS:,} rows at {per_minute:g} requests a minute ({calm.num_rows / asked:.1f} rows each):")
    print(f"{ours_s / 60:.0f} min; upstream at its pace with an empty pool, which only gets slower:", end=" ")
    print(f"{theirs_s / 3600:.1f} h\n")
    met = [
        _aim(f"at least {MIN_SHARE:.0%} of the allowed requests used", calm.share >= MIN_SHARE),
        _aim(f"at least {MIN_SHARE:.0%} of the allowed tokens used", tokens.share >= MIN_SHARE),
        _aim(f"at least {MIN_UNSTATED_SHARE:.0%} of a limit that is not stated", silent.share >= MIN_UNSTATED_SHARE),
        _aim("10 % of faulty answers lose no row", _texts(faulty.state) == _texts(calm.state)),
        _aim("429 and 500 cost nothing, garbage its own tokens", abs(faulty.usd - faulty.server.billed_usd) < 1e-9),
        _aim("faster than upstream's loop", ours_s < theirs_s),
    ]
    sys.exit(0 if all(met) else 1)


def _texts(state: GeneratedRows) -> list[tuple[str, str, str]]:
    return [(row.instruction, row.input, row.output) for row in state.rows]


def _aim(words: str, is_met: bool) -> bool:
    print(f"{words}: aim met: {'yes' if is_met else 'no'}")
    return is_met


if __name__ == "__main__":
    main()
