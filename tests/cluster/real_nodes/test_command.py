"""`train.method: command` on real nodes: a Trainer of one's own is killed, told to leave, and goes on to the bit."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.spec import JobSpec
from cluster.exits import Notice
from cluster.launch.drill import run_drill
from cluster.recovery import StopReason
from cluster.runs.home import Home

pytestmark = pytest.mark.process

TRAINER = Path(__file__).with_name("programs") / "trainer.py"
STEPS = 40


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    records = [{"instruction": f"Say {n}.", "input": "", "output": f"{n * 7919} it is"} for n in range(32)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def command(how: str, **more: Any) -> dict[str, Any]:
    return {
        "method": "command", "command": [sys.executable, "trainer.py", how], "files": [str(TRAINER)],
        "model": "tiny-llama", "max_steps": STEPS, "seed": 3, **more,
    }  # fmt: skip


def small_job(rows: str, train: dict[str, Any], store: Path) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "own", "store": f"file://{store}", "data": {"from": rows}, "train": train,
            "compute": {"workers": 1, "infra": ["local"], "regions": ["a", "b"]},
            "checkpoints": {"interval_steps": 5},
        }
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("how", "more"), [("callback", {}), ("folders", {"watch": "output"})])
def test_a_killed_command_ends_with_the_bits_of_one_left_alone(
    rows: str, tmp_path: Path, how: str, more: dict[str, Any]
) -> None:
    job = small_job(rows, command(how, **more), tmp_path / "store")
    result = run_drill(job, kills=1, seed=2, home=Home(tmp_path / "home"), on_event=lambda *_: None)
    assert result.kills == 1
    assert result.attempts == 2
    assert result.bit_identical
    assert result.corrupt_resumes == 0
    assert result.lost_steps_in_bound
    exported = next((tmp_path / "store").glob("own-*/model/attempt-*/README.md"))
    assert "a training program of its own" in exported.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_command_that_is_told_to_leave_saves_its_state_first(bench: Any) -> None:
    train = command("callback", max_steps=100_000)
    bench.create(num_rows=32, compute={"workers": 1}, train=train, checkpoints={"interval_steps": 1000})
    handle = bench.start()
    bench.wait_reached(handle, "train", 20)
    window = Notice(StopReason.PREEMPTED, 20.0)
    bench.backend.notice(handle, window)
    assert bench.wait_exit(handle) is StopReason.PREEMPTED
    saved = bench.commits("train")[0]
    assert saved.position >= 20
    assert f"step {saved.position} is saved" in bench.end_of(1)["detail"]


def test_a_command_that_fails_says_so_and_one_that_is_not_there_is_wrong_input(bench: Any) -> None:
    bench.create(num_rows=32, train={"method": "command", "command": "echo no luck; exit 3", "model": "m"})
    assert bench.wait_exit(bench.start()) is StopReason.CRASHED
    assert "exit status 3 after step 0: no luck" in bench.end_of(1)["detail"]


def test_a_program_that_is_not_there_is_the_users_error(bench: Any) -> None:
    bench.create(num_rows=32, train={"method": "command", "command": ["no-such-trainer"], "model": "m"})
    assert bench.wait_exit(bench.start()) is StopReason.USER_ERROR
    assert "train.command starts with no-such-trainer, which cannot be run here" in bench.end_of(1)["detail"]


def test_a_command_that_writes_no_model_is_refused_in_words(bench: Any) -> None:
    body = "test -s $ALPACA_JOBS_DATA; touch $ALPACA_JOBS_OUTPUT/adapter_config.json"
    bench.create(num_rows=32, train={"method": "command", "command": body, "model": "m"})
    assert bench.wait_exit(bench.start()) is StopReason.USER_ERROR
    detail = bench.end_of(1)["detail"]
    assert "it holds adapter_config.json. These are adapters: merge them" in detail


def test_the_command_sees_ranks_rows_and_its_files(bench: Any, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = tmp_path / "look.sh"
    script.write_text(
        f"echo $RANK $WORLD_SIZE $MASTER_ADDR $ALPACA_JOBS_RUN $ALPACA_JOBS_ATTEMPT >> {seen}.$RANK\n"
        f"wc -l < $ALPACA_JOBS_DATA >> {seen}.$RANK\n"
        'echo \'{"step": 7, "loss": 1.5, "total_steps": 9}\' >> $ALPACA_JOBS_PROGRESS\n'
        f"until [ -s {seen}.0 ] && [ -s {seen}.1 ]; do sleep 0.05; done; sleep 0.5\n"  # the first to fail ends both
        "exit 4\n"
    )
    train = {"method": "command", "command": ["sh", "look.sh"], "files": [str(script)], "command_per": "rank"}
    bench.create(num_rows=32, train={**train, "model": "m"})
    assert bench.wait_exit(bench.start()) is StopReason.CRASHED
    assert "after step 7" in bench.end_of(1)["detail"]
    lines = [(Path(f"{seen}.{rank}")).read_text().splitlines() for rank in range(2)]
    assert [line[0] for line in lines] == [f"{rank} 2 127.0.0.1 {bench.plan.run_id} 1" for rank in range(2)]
    assert [line[1].strip() for line in lines] == ["32", "32"]


def test_a_command_that_outstays_its_notice_is_killed_with_all_it_started(bench: Any) -> None:
    body = "trap '' TERM; echo '{\"step\": 1}' >> $ALPACA_JOBS_PROGRESS; sleep 300 & sleep 300; sleep 300"
    bench.create(num_rows=32, train={"method": "command", "command": body, "model": "m"})
    handle = bench.start()
    bench.wait_reached(handle, "train", 1)
    began = time.monotonic()
    bench.backend.notice(handle, Notice(StopReason.PREEMPTED, 5.0))
    assert bench.wait_exit(handle) is StopReason.PREEMPTED
    assert time.monotonic() - began < 30
    bench.wait_gone(handle, "end of all its processes")
