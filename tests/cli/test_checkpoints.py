"""`checkpoints`: listed, verified, pruned and copied, on runs with quick nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.keys import CommitRef
from checkpoints.store import Store

pytestmark = pytest.mark.process


@pytest.fixture
def run_id(quick: Any) -> str:
    """A run that was stopped after some commits."""
    quick.behaviour |= {"steps": 400}
    found: str = quick.launch()
    quick.wait_for_step(found, 9)
    assert quick("cancel").returncode == 0
    return found


def listed(quick: Any, *args: str) -> list[dict[str, Any]]:
    commits: list[dict[str, Any]] = json.loads(quick("checkpoints", "ls", "--json", *args).stdout)["commits"]
    return commits


def damage(quick: Any, run_id: str, commit: dict[str, Any]) -> str:
    """Flip a bit of a commit's largest object; returns its key."""
    ref = CommitRef.from_json({name: commit[name] for name in ("stage", "position", "attempt")})
    root = Path(quick.store.removeprefix("file://")) / run_id
    objects = [path for path in (root / LAYOUT.commit_prefix(ref)).iterdir() if path.name != "manifest.json"]
    path = max(objects, key=lambda one: one.stat().st_size)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    return str(path.relative_to(root))


def test_commits_are_listed_verified_and_pruned(quick: Any, run_id: str) -> None:
    before = listed(quick)
    assert [one["position"] for one in before] == sorted((one["position"] for one in before), reverse=True)
    assert all(one["counts"] for one in before)
    assert all(one["save_s"] > 0 and one["stall_s"] >= 0 for one in before)
    shown = quick("checkpoints", "ls").stdout
    assert f"Commits of {run_id}" in shown
    assert shown.splitlines()[2].split() == ["stage", "position", "attempt", "size", "took", "stall", "counts"]
    assert "stall: how long training stood still" in shown
    verified = quick("checkpoints", "verify", "--json")
    assert verified.returncode == 0
    assert json.loads(verified.stdout)["damaged"] == 0
    refused = quick("checkpoints", "prune", "--json")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    pruned = json.loads(quick("checkpoints", "prune", "--yes", "--json").stdout)
    assert {one["position"] for one in pruned["deleted"]} == {one["position"] for one in before[2:]}
    assert listed(quick) == before[:2]
    nothing = quick("checkpoints", "prune")
    assert (nothing.returncode, nothing.stdout) == (0, f"{run_id} has nothing to delete.\n")
    for keep, words in (("1", "at least 2 stay"), ("0", "they are what the run goes on from")):
        refused = quick("checkpoints", "prune", "--keep", keep, "--yes")
        assert refused.returncode == 2
        assert words in " ".join(refused.stderr.split())


def test_a_flipped_bit_is_found_and_named(quick: Any, run_id: str) -> None:
    newest = listed(quick)[0]
    key = damage(quick, run_id, newest)
    verified = quick("checkpoints", "verify", run_id)
    assert verified.returncode == 3
    assert key in verified.stderr
    assert "1 damaged" in verified.stdout


def test_a_damaged_base_is_named_and_the_run_goes_on_and_without_its_copy_it_can_still_be_removed(
    quick: Any, run_id: str
) -> None:
    attempts = Path(quick.store.removeprefix("file://")) / run_id / "attempts"
    base, copy = attempts / "000001.base.json", attempts / "000001.base_copy.json"
    base.write_bytes(base.read_bytes()[:-2])
    verified = quick("checkpoints", "verify", "--json")
    assert verified.returncode == 3
    body = json.loads(verified.stdout)
    assert ([one["key"] for one in body["damaged_records"]], body["damaged"]) == (["attempts/000001.base.json"], 0)
    assert listed(quick)[0]["counts"]
    quick.behaviour |= {"steps": listed(quick)[0]["position"] + 2}
    resumed = quick("resume", run_id, "--yes", "--json")
    assert resumed.returncode == 0, resumed.stderr
    copy.unlink()
    told = quick("status", run_id)
    assert told.returncode == 3
    assert "nobody knows which commits count" in told.stderr
    assert quick("rm", run_id, "--yes").returncode == 0
    assert quick("status", run_id).returncode == 2


def test_an_unreadable_manifest_is_listed_as_damaged_beside_the_others(quick: Any, run_id: str) -> None:
    newest, *others = listed(quick)
    ref = CommitRef.from_json({name: newest[name] for name in ("stage", "position", "attempt")})
    path = Path(quick.store.removeprefix("file://")) / run_id / LAYOUT.manifest_key(ref)
    path.write_bytes(path.read_bytes()[:-9])
    found = listed(quick)
    assert found[1:] == others
    assert (found[0]["position"], found[0]["bytes"]) == (newest["position"], None)
    assert LAYOUT.manifest_key(ref) in found[0]["problem"]
    shown = quick("checkpoints", "ls")
    assert shown.returncode == 0
    assert "damaged" in shown.stdout
    assert LAYOUT.manifest_key(ref) in shown.stderr


def test_a_copied_run_resumes_in_its_new_store(quick: Any, run_id: str, tmp_path: Path) -> None:
    elsewhere = f"file://{tmp_path}/elsewhere"
    copied = quick("checkpoints", "copy", run_id, "--to", elsewhere, "--json")
    assert copied.returncode == 0, copied.stderr
    assert listed(quick, "--store", elsewhere) == listed(quick, "--store", quick.store)
    newest = listed(quick, "--store", elsewhere)[0]["position"]
    quick.behaviour |= {"steps": newest + 4}
    resumed = quick("resume", run_id, "--store", elsewhere, "--yes", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["attempts"][-1]["base"]["position"] == newest
    again = quick("checkpoints", "copy", run_id, "--to", elsewhere, "--store", quick.store)
    assert again.returncode == 3
    assert "the run went on there by itself" in again.stderr
    back = quick("checkpoints", "copy", run_id, "--to", quick.store, "--store", elsewhere)
    assert back.returncode == 0, back.stderr
    assert listed(quick, "--store", elsewhere)[0] == listed(quick, "--store", quick.store)[0]


def test_a_damaged_commit_is_not_copied_and_the_copy_is_no_run(quick: Any, run_id: str, tmp_path: Path) -> None:
    damage(quick, run_id, listed(quick)[0])
    elsewhere = f"file://{tmp_path}/elsewhere"
    assert quick("checkpoints", "copy", run_id, "--to", elsewhere).returncode == 3
    assert not Store.open(elsewhere).child(run_id).exists("job.json")
    assert quick("checkpoints", "ls", run_id, "--store", elsewhere).returncode == 2


def test_a_run_that_is_alive_is_neither_copied_nor_pruned(quick: Any, tmp_path: Path) -> None:
    quick.behaviour |= {"steps": 4000}
    run_id = quick.launch()
    quick.wait_for_step(run_id, 5)
    refused = quick("checkpoints", "copy", run_id, "--to", f"file://{tmp_path}/elsewhere")
    assert refused.returncode == 2
    assert f"alpaca-jobs cancel {run_id}" in refused.stderr
    assert quick("checkpoints", "prune", run_id, "--yes").returncode != 0
    quick("cancel")
