"""What start, resume, cancel and rm refuse, and that a launch that cannot be leaves nothing behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.errors import DataError, ModelError
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec_io import change_job
from alpaca_jobs.training.base_look import Look
from alpaca_jobs.training.base_model import BaseModel
from checkpoints.attempts import AttemptLog
from checkpoints.errors import PutOnceUnsupported, StoreError
from checkpoints.store import Store
from checkpoints.store_local import LocalDriver
from cluster.errors import BackendMissing, LaunchFailed, RunActive, RunNotFound, WrongInput
from cluster.events import utc_now
from cluster.launch.following import follow_run
from cluster.launch.launching import policy_for, resume_run, start_run
from cluster.launch.stopping import cancel_run, remove_run
from cluster.local.detaching import last_meaningful_line
from cluster.plan import LaunchPlan
from cluster.runs.run_view import RunState, is_lease_moving
from cluster.runs.session import DEFAULT_TIMING

pytestmark = pytest.mark.process

WHEN_NEEDED = {"on_demand": "when-needed"}


@pytest.fixture
def plan(runs: Any) -> LaunchPlan:
    given: LaunchPlan = runs.plan()
    return given


def nothing_is_left(runs: Any) -> bool:
    return runs.root.list() == [] and runs.home.runs() == [] and runs.home.stores() == []


def lost_run(runs: Any, plan: LaunchPlan) -> AttemptLog:
    """A run of another machine: only the store knows it, and its only attempt never ended."""
    store = runs.root.child(plan.run_id)
    store.put_once("job.json", {**plan.to_json(), "launched_at": utc_now()})
    log = AttemptLog(store, LAYOUT)
    log.claim(1, {"placement": plan.candidates[0].to_json()})
    log.put_base(1, None)
    log.renew(1, 1)
    return log


def test_a_store_whose_put_once_does_not_hold_is_refused(
    runs: Any, plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(self: Store, key: str, body: dict[str, Any]) -> dict[str, Any]:
        self.put(key, b"{}")  # a store that lets every writer win
        return body

    monkeypatch.setattr(Store, "put_once", forgetful)
    with pytest.raises(PutOnceUnsupported, match="put-once does not hold here"):
        start_run(plan, runs.home)
    assert nothing_is_left(runs)


def test_a_store_that_cannot_be_written_is_refused(runs: Any, plan: LaunchPlan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="file"):
        start_run(replace(plan, store_uri=f"file://{tmp_path}/file/store"), runs.home)
    assert nothing_is_left(runs)


def test_inputs_that_are_missing_are_refused(runs: Any, plan: LaunchPlan) -> None:
    (runs.folder / "rows.json").unlink()
    with pytest.raises(DataError, match=r"rows\.json"):
        start_run(plan, runs.home)
    assert nothing_is_left(runs)


def test_a_store_that_does_not_tell_of_unfinished_uploads_gives_a_run_up_all_the_same(
    runs: Any, plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: LocalDriver, prefix: str, wanted: Callable[[str], bool]) -> int:
        raise PermissionError("s3:ListBucketMultipartUploads is not allowed")

    monkeypatch.setattr(LocalDriver, "abort_unfinished", refuse)
    (runs.folder / "rows.json").unlink()
    with pytest.raises(DataError, match=r"rows\.json"):
        start_run(plan, runs.home)
    assert nothing_is_left(runs)
    assert f"uploads of {plan.run_id} that never ended may be left" in caplog.text


def test_a_base_model_that_cannot_be_trained_is_refused_and_leaves_nothing(runs: Any) -> None:
    model = runs.folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}')
    with pytest.raises(ModelError, match=r"an encoder \(BertForMaskedLM\), which writes no text"):
        start_run(runs.plan(train={"model": str(model)}), runs.home)
    assert nothing_is_left(runs)


def test_the_commit_that_was_looked_at_is_the_one_that_is_trained(runs: Any, caplog: pytest.LogCaptureFixture) -> None:
    plan, commit = runs.plan(train={"model": "acme/base"}), "c" * 40
    looked = Look(BaseModel("acme/base", None, {}, revision=commit), ("said before",))
    run_id = start_run(plan, runs.home, node_command=runs.command({"steps": 1}), look=looked)
    runs.follow(run_id)
    assert runs.root.child(run_id).get_record("job.json")["job"]["train"]["revision"] == commit
    assert "said before" not in caplog.text


def test_a_base_model_that_nobody_could_look_at_is_said_and_launched(
    runs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = start_run(runs.plan(train={"model": "acme/base"}), runs.home, node_command=runs.command({"steps": 1}))
    runs.follow(run_id)
    assert runs.root.child(run_id).get_record("job.json")["job"]["train"]["revision"] is None
    assert "acme/base was not looked at: the hub cannot be reached from here" in caplog.text
    assert "The revision of acme/base is not pinned" in caplog.text


def test_a_secret_that_is_not_set_is_named(runs: Any) -> None:
    plan = runs.plan(secrets=["HF_TOKEN", "WANDB_API_KEY"])
    with pytest.raises(WrongInput, match=r"the secret WANDB_API_KEY, not set in this shell\. Set them first: export"):
        start_run(plan, runs.home, environ={"HF_TOKEN": "x"})
    assert nothing_is_left(runs)


def test_a_plan_that_cannot_be_rendered_is_refused_before_anything_is_written(runs: Any, plan: LaunchPlan) -> None:
    cloud = replace(plan, candidates=(replace(plan.candidates[0], infra="aws", region="us-east-1"),), store_uri="auto")
    with pytest.raises(BackendMissing, match="store: auto does not make a bucket yet"):
        start_run(cloud, runs.home)
    assert nothing_is_left(runs)


def test_a_store_inside_this_process_is_refused(runs: Any, plan: LaunchPlan) -> None:
    with pytest.raises(WrongInput, match=r"lives and dies with one process; a run has several\. Use a folder"):
        start_run(replace(plan, store_uri="memory://runs"), runs.home)


def test_a_supervisor_that_does_not_start_leaves_nothing(runs: Any, plan: LaunchPlan) -> None:
    with pytest.raises(
        LaunchFailed, match=rf"The supervisor of {plan.run_id}, .* its process could not be made"
    ) as told:
        start_run(plan, runs.home, environ={"PYTHONHOME": "/nowhere"})
    assert "\n  it said last: ModuleNotFoundError: No module named 'encodings'\n" in str(told.value)
    assert nothing_is_left(runs)
    with pytest.raises(LaunchFailed, match="did not start: its process ended at once") as told:  # while it imports
        start_run(plan, runs.home, environ={**os.environ, "PYTHONPATH": str(broken_cluster(runs.folder))})
    assert nothing_is_left(runs)
    first, last, path = str(told.value).splitlines()
    assert first.endswith("Nothing is left running. Mend what it says, and try again.")
    assert last == "  it said last: a broken installation"
    assert Path(path.split(":  ")[1]).read_text() == "a broken installation\n", (
        "the run's folder is gone, its log stays"
    )


def test_of_a_log_the_line_that_says_something_is_quoted() -> None:
    dying = "Fatal Python error: no codec\nModuleNotFoundError: No module 'x'\n\nCurrent thread:\n  <no Python frame>\n"
    assert last_meaningful_line(dying) == "ModuleNotFoundError: No module 'x'"
    assert last_meaningful_line("Traceback:\n  File x\n") == "  File x", "rather that than nothing"
    assert last_meaningful_line(" \n") is None


def broken_cluster(folder: Path) -> Path:
    (folder / "broken").mkdir()
    (folder / "broken" / "psutil.py").write_text("raise SystemExit('a broken installation')")
    return folder / "broken"


def test_a_run_that_does_not_exist_is_named(runs: Any) -> None:
    for act in (resume_run, cancel_run, remove_run):
        with pytest.raises(RunNotFound, match=r"has no run fake-bcdfg\. See what it has with `alpaca-jobs runs"):
            act(runs.root, "fake-bcdfg", runs.home)
    with pytest.raises(RunNotFound):
        next(follow_run(runs.root, "fake-bcdfg", runs.home))


def test_a_run_that_lives_on_another_machine_is_neither_resumed_nor_removed(runs: Any, plan: LaunchPlan) -> None:
    log = lost_run(runs, plan)
    stop = threading.Event()

    def renew() -> None:
        counter = 1
        while not stop.wait(0.05):
            counter += 1
            log.renew(1, counter)

    other_machine = threading.Thread(target=renew)
    other_machine.start()
    try:
        with pytest.raises(RunActive, match="its newest attempt renews its lease on another machine"):
            runs.remove(plan.run_id)
        with pytest.raises(RunActive, match="To resume it, stop it first"):
            runs.resume(plan.run_id, {})
        runs.home.run(plan.run_id).make()
        runs.home.run(plan.run_id).session.write_text("{}")  # this machine had a supervisor for it once
        view = runs.view(plan.run_id)
        assert (view.state, "on this machine is gone" in view.words) == (RunState.RUNNING, True)
    finally:
        stop.set()
        other_machine.join()


def test_of_two_resumes_at_once_the_later_is_refused_and_changes_nothing(runs: Any, plan: LaunchPlan) -> None:
    lost_run(runs, plan)
    before = runs.root.list()
    other = f"{plan.run_id} is being started by another command on this machine right now"
    with runs.home.run(plan.run_id).starting(), pytest.raises(RunActive, match=other):
        resume_run(runs.root, plan.run_id, runs.home, machines=plan, max_usd=5)
    assert (runs.root.list(), runs.home.run(plan.run_id).session.exists()) == (before, False)


def test_a_run_whose_machines_are_gone_is_silent_and_resumed_from_the_store_alone(runs: Any, plan: LaunchPlan) -> None:
    lost_run(runs, plan)
    assert runs.view(plan.run_id).state is RunState.SILENT
    runs.resume(plan.run_id, {"steps": 2})
    assert runs.follow(plan.run_id)[-1].fields["exit_code"] == 0
    view = runs.view(plan.run_id)
    assert [(one.place, one.stop_reason) for one in view.attempts] == [("local/a", "lost"), ("local/b", "done")]


def test_regions_that_are_unknown_or_all_excluded_are_refused(runs: Any, plan: LaunchPlan) -> None:
    lost_run(runs, plan)
    with pytest.raises(WrongInput, match=r"mars is no region of .*; those are local/a, local/b, local/c"):
        runs.resume(plan.run_id, {}, exclude_regions=["mars"])
    with pytest.raises(WrongInput, match=r"Every region of .* is excluded"):
        runs.resume(plan.run_id, {}, exclude_regions=["a", "local/b", "c"])


def test_an_orphan_is_cancelled_from_here(runs: Any) -> None:
    run_id = runs.start({"steps": 1000})
    runs.node(run_id, attempt=1, step=2)
    runs.kill_supervisor(run_id)
    cancel_run(runs.root, run_id, runs.home)
    assert runs.backend.find(run_id) == []
    assert AttemptLog(runs.root.child(run_id), LAYOUT).records()[0].end["stop_reason"] == "cancelled"


def test_no_secret_reaches_a_file_the_store_or_an_unlisted_one_the_node(runs: Any) -> None:
    plan = runs.plan(secrets=["HF_TOKEN"])
    environ = {**os.environ, "HF_TOKEN": "hf-very-secret", "OTHER_TOKEN": "also-secret"}
    start_run(plan, runs.home, node_command=runs.command({"steps": 40}), environ=environ)
    node = runs.node(plan.run_id, attempt=1)
    (marked,) = [one for one in runs.home.nodes() if one.nonce == node.nonce]
    inherited = Path(f"/proc/{marked.pids[0]}/environ").read_bytes()
    assert b"HF_TOKEN=hf-very-secret" in inherited
    assert b"also-secret" not in inherited
    runs.follow(plan.run_id)
    for path in runs.folder.rglob("*"):
        assert not path.is_file() or b"very-secret" not in path.read_bytes(), path


def test_a_lease_is_looked_at_twice(runs: Any, plan: LaunchPlan) -> None:
    log = lost_run(runs, plan)
    assert not is_lease_moving(log, sleep=lambda _: None)
    assert is_lease_moving(log, sleep=lambda _: log.renew(1, 2))
    log.put_end(1, {"stop_reason": "lost"})
    assert not is_lease_moving(log, sleep=lambda _: log.renew(1, 3))


@pytest.mark.parametrize(("infra", "wanted"), [("aws", "when-needed"), ("local", "never"), ("k8s", "never")])
def test_on_demand_is_a_question_only_where_machines_are_sold_on_spot(
    plan: LaunchPlan, infra: str, wanted: str
) -> None:
    job = change_job(
        plan.job, {"store": "s3://b", "compute.infra": [infra], "compute.regions": None, "compute.spot": WHEN_NEEDED}
    )
    assert policy_for(replace(plan, job=job), DEFAULT_TIMING, launched_at_s=0.0).on_demand == wanted
