"""Asking a teacher: how much of its limit is used, what faults cost, and upstream's loop on the same server.

    python benchmarks/generation.py                   # about three minutes
    python benchmarks/generation.py --requests 300    # one minute

The teacher is the built-in rule-based one behind a token bucket, with latency and, where said, faults: what is measured
is the asking, not the writing. Ours is the whole stage of a node (ledger, store, dedupe, parts) with its actors in this
process. Prints `aim met: yes|no` per aim, exits 1 on a no.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
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
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from alpaca_jobs.generation.encode import encode_prompt, stop_sequences
from alpaca_jobs.generation.filters import drop_reason
from alpaca_jobs.generation.offline_spec import OFFLINE_MODEL
from alpaca_jobs.generation.offline_teacher import OfflineTeacher
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

INPUT_USD, OUTPUT_USD = 0.15, 0.60  # per million tokens: gpt-4o-mini's list price
MIN_SHARE = 0.95
WARM_UP_S = 3.0
UPSTREAM_BATCH = 5  # prompts per request. Source: Stanford Alpaca, generate_instruction.py, request_batch_size
UPSTREAM_SLEEP_S = 2.0  # at every error. Source: Stanford Alpaca, utils.py, sleep_time
ALPACA_ROWS = 52_000


class LimitedTeacher(OfflineTeacher):
    """The built-in teacher, so many requests a minute, one second's worth at once, a share of them spoiled."""

    def __init__(self, *, requests_per_minute: float, latency_s: float, fault_share: float = 0.0) -> None:
        super().__init__(latency_s=latency_s, refuses_some=False)
        self._limit, self._rate = requests_per_minute, requests_per_minute / 60
        self._level, self._seen_at = self._rate, time.monotonic()
        self._fault_share = fault_share
        self._times_asked: dict[str, int] = {}
        self._guard = threading.Lock()
        self.accepted: list[float] = []
        self.num_limited = self.num_faults = 0
        self.billed_usd = 0.0

    def answer(self, body: dict[str, Any], *, is_chat: bool) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Refuse above the limit, spoil some, answer the rest; a request counts when it is let in."""
        now = time.monotonic() - self.latency_s  # the handler held it back before it asked us
        with self._guard:
            self._level = min(self._rate, self._level + self._rate * max(0.0, now - self._seen_at))
            self._seen_at = max(self._seen_at, now)
            is_let_in = self._level >= 1
            self._level -= is_let_in
            key = json.dumps(body, sort_keys=True)
            number = self._times_asked[key] = self._times_asked.get(key, 0) + is_let_in
        headers = {"x-ratelimit-limit-requests": f"{self._limit:g}"}
        if not is_let_in:
            self.num_limited += 1
            return 429, {"error": {"message": "Rate limit reached.", "code": "rate_limit_exceeded"}}, headers
        self.accepted.append(now)
        status, reply, more = super().answer(body, is_chat=is_chat)
        dice = int.from_bytes(hashlib.sha256(f"{number}{key}".encode()).digest()[:4], "big") / 2**32
        if status == 200 and dice < self._fault_share:
            self.num_faults += 1
            kind = int(dice / self._fault_share * 3)
            if kind < 2:  # not billed
                words = {"error": {"message": "spoiled on purpose", "code": ("overloaded", "server_error")[kind]}}
                return (429, 500)[kind], words, {**headers, "retry-after": "0.2"}
            reply["choices"][0]["text"] = None  # garbage, and billed
        if status == 200:
            used = reply["usage"]
            self.billed_usd += (used["prompt_tokens"] * INPUT_USD + used["completion_tokens"] * OUTPUT_USD) / 1e6
        return status, reply, {**headers, **more}

    def share_used(self) -> float:
        """Requests let in over those allowed, from the end of the warm-up to the last one."""
        times = sorted(self.accepted)
        window = [moment for moment in times if moment > times[0] + WARM_UP_S]
        return (len(window) - 1) / (self._rate * (window[-1] - window[0]))


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
    data = {"teacher": teacher, "num_actors": 2, "concurrency": 64, "part_requests": 50, "max_requests": num_requests}
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


def main() -> None:
    """Measure, print, and exit 1 if an aim was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1200)
    parser.add_argument("--per-minute", type=float, default=1200.0, help="the server's limit")
    parser.add_argument("--latency", type=float, default=1.5, help="seconds each answer takes")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # the faults are made on purpose, and counted
    make = partial(LimitedTeacher, requests_per_minute=arguments.per_minute, latency_s=arguments.latency)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {arguments.per_minute:g} requests a minute allowed,")
    print(f"{arguments.latency:g} s per answer, {arguments.requests:,} requests\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(make()) as server:
            calm, _, seconds = generate(server, folder / "calm", num_requests=arguments.requests)
        share = server.share_used()
        print(
            f"ours                 {seconds:7.1f} s   {len(calm.rows):,} rows, {share:.1%} of the limit used, ", end=""
        )
        print(f"{server.num_limited} refused")
        with serving(make(fault_share=0.1)) as faulty:
            spoiled, ledger_usd, spoiled_s = generate(faulty, folder / "faulty", num_requests=arguments.requests)
        print(
            f"ours, 10 % faults    {spoiled_s:7.1f} s   {len(spoiled.rows):,} rows, {faulty.num_faults} faults, ",
            end="",
        )
        print(f"ledger ${ledger_usd:.6f}, billed ${faulty.billed_usd:.6f}")
        few = 6
        with serving(make()) as server_of_upstream:
            rows, upstream_s = run_upstream(server_of_upstream, folder, num_requests=few)
    asked = len(calm.rows) / arguments.requests
    ours_s, theirs_s = seconds / len(calm.rows) * ALPACA_ROWS, upstream_s / max(1, rows) * ALPACA_ROWS
    print(f"upstream's loop      {upstream_s:7.1f} s   {rows:,} rows of {few} requests of {UPSTREAM_BATCH} prompts\n")
    print(
        f"rows per teacher dollar at ${INPUT_USD} and ${OUTPUT_USD} per million: {len(spoiled.rows) / ledger_usd:,.0f}"
    )
    print(f"time to {ALPACA_ROWS:,} rows at this limit and yield ({asked:.1f} rows a request): {ours_s / 60:.0f} min;")
    print(f"upstream at its pace with an empty pool, which only gets slower: {theirs_s / 3600:.1f} h\n")
    met = [
        _aim(f"at least {MIN_SHARE:.0%} of the allowed rate used", share >= MIN_SHARE),
        _aim("10 % of faulty answers lose no row", _texts(spoiled) == _texts(calm)),
        _aim("429 and 500 cost nothing, garbage its own tokens", abs(ledger_usd - faulty.billed_usd) < 1e-9),
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
