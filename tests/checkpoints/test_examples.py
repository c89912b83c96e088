"""The examples of checkpoints/README.md, run as they stand: begun, ended half way, begun again."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.attempts import AttemptLog, claim_next
from checkpoints.errors import RunActive, StateMismatch
from checkpoints.keys import TRAIN_ONLY
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Store
from checkpoints.torch_run import RunCheckpointer


def _example(repo_root: Path, number: int) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (repo_root / "checkpoints/README.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    assert len(blocks[number].splitlines()) <= 40, "a short example"
    return str(blocks[number])


def _run(source: str, **names: Any) -> dict[str, Any]:
    scope: dict[str, Any] = dict(names)
    exec(compile(source, "checkpoints/README.md", "exec"), scope)  # our own README
    return scope


def test_the_loop_example_resumes_with_the_same_bits(
    repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _example(repo_root, 0)
    undisturbed = _run(source, URI=str(tmp_path / "a"), STEPS=20)
    assert "step 5 committed" in capsys.readouterr().out
    _run(source, URI=str(tmp_path / "b"), STEPS=13)  # commits 5 and 10
    resumed = _run(source, URI=str(tmp_path / "b"), STEPS=20)
    assert resumed["first"] == 11
    for ours, theirs in zip(resumed["model"].parameters(), undisturbed["model"].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    records = AttemptLog(Store.open(str(tmp_path / "b")), TRAIN_ONLY).records()
    assert [(record.number, record.base and record.base.position) for record in records] == [(1, None), (2, 10)]
    assert all(record.end and record.end["stop_reason"] == "done" for record in records)


def test_the_trainer_example_resumes_with_the_same_bits(repo_root: Path, tmp_path: Path) -> None:
    source = _example(repo_root, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers warns about is not ours to fix
        undisturbed = _run(source, URI=str(tmp_path / "a"), FOLDER=str(tmp_path / "out"), STEPS=10)
        _forget_after(Store.open(str(tmp_path / "a")), 4)
        resumed = _run(source, URI=str(tmp_path / "a"), FOLDER=str(tmp_path / "out"), STEPS=10)
    for ours, theirs in zip(resumed["model"].parameters(), undisturbed["model"].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    store = Store.open(str(tmp_path / "a"))
    assert [(ref.position, ref.attempt) for ref in list_commits(store, TRAIN_ONLY)] == [(8, 2), (4, 1)]
    meta = CommitReader.open(store, TRAIN_ONLY, list_commits(store, TRAIN_ONLY)[0]).manifest.meta
    assert meta["trainer_state"]["global_step"] == 8


def _forget_after(store: Store, position: int) -> None:
    """As if the machine had been lost right after the commit at `position`."""
    for ref in list_commits(store, TRAIN_ONLY):
        if ref.position > position:
            store.delete([TRAIN_ONLY.manifest_key(ref)])
            store.delete(store.list(TRAIN_ONLY.commit_prefix(ref)))


def test_a_second_start_is_refused_while_the_first_lives_and_takes_over_when_it_is_dead(memory_store: Store) -> None:
    first = RunCheckpointer(memory_store, lease_s=0.4)
    assert first.resume({}) is None
    with pytest.raises(RunActive, match=r"attempt 1 at memory://.* is alive"):
        RunCheckpointer(memory_store, lease_s=0.4)
    assert first._lease is not None
    first._lease.stop()  # it dies without a word
    second = RunCheckpointer(memory_store, lease_s=0.4)
    assert second.attempt == 2
    record = AttemptLog(memory_store, TRAIN_ONLY).records()[0]
    assert record.end is not None
    assert record.end["stop_reason"] == "lost"
    second.close()
    first.close()


def test_saving_before_resuming_is_refused(memory_store: Store) -> None:
    with RunCheckpointer(memory_store) as run, pytest.raises(RuntimeError, match="call resume"):
        run.save(1, {})


def test_a_run_that_crashed_says_so(memory_store: Store) -> None:
    with pytest.raises(StateMismatch), RunCheckpointer(memory_store) as run:
        _save_nonsense(run)
    record = AttemptLog(memory_store, TRAIN_ONLY).records()[0]
    assert record.end is not None
    assert record.end["stop_reason"] == "crashed"


def _save_nonsense(run: RunCheckpointer) -> None:
    run.resume({})
    run.save(1, {"what": object()})


def test_the_next_number_is_claimed_without_waiting_when_the_newest_has_ended(log: AttemptLog) -> None:
    assert claim_next(log, {}, lease_s=1e9) == 1
    log.put_end(1, {})
    assert claim_next(log, {}, lease_s=1e9) == 2


def test_a_silent_attempt_is_watched_for_the_lease_time(log: AttemptLog) -> None:
    log.claim(1, {})
    log.renew(1, 5)
    now, waits = [0.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    assert claim_next(log, {}, lease_s=20, clock=lambda: now[0], sleep=sleep) == 2
    assert sum(waits) == 20

    def sleep_and_renew(seconds: float) -> None:
        sleep(seconds)
        log.renew(2, 6)

    with pytest.raises(RunActive):
        claim_next(log, {}, lease_s=20, clock=lambda: now[0], sleep=sleep_and_renew)
