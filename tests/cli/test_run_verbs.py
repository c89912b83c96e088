"""The verbs over runs, as a user types them: real processes, real supervisors, quick nodes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from checkpoints.store import Store
from cluster.runs.run_view import index_key, read_plan

pytestmark = pytest.mark.process

RUN_ID = r"quick-[a-z0-9]{5}"


def test_launch_follows_to_the_end_and_reports(quick: Any) -> None:
    done = quick("launch", quick.job(), "--yes")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"Plan for {RUN_ID}", done.stderr)
    assert "$0.00/h" in done.stderr
    assert "step 8 of 8" in done.stderr
    assert "The run is done." in done.stderr
    assert re.search(rf"Report of {RUN_ID}", done.stdout)
    assert "Plan for" not in done.stdout


def test_launch_json_is_the_report_and_nothing_else(quick: Any) -> None:
    done = quick("launch", quick.job(), "--yes", "--json")
    report = json.loads(done.stdout)
    assert (report["outcome"], report["exit_code"], report["step"]) == ("done", 0, 8)
    assert report["regions"] == ["local/a"]


def test_launch_without_a_terminal_asks_for_yes(quick: Any) -> None:
    refused = quick("launch", quick.job())
    assert refused.returncode == 2
    assert "Add --yes" in refused.stderr
    assert not (quick.folder / "runs").exists()


def test_dry_run_prints_the_plan_and_starts_nothing(quick: Any) -> None:
    shown = quick("launch", quick.job(), "--dry-run", "--json", "--budget", "3", "--deadline", "2")
    plan = json.loads(shown.stdout)
    assert plan["job"]["limits"] == {"max_usd": 3.0, "teacher_max_usd": None, "deadline_h": 2.0, "max_stall_min": 30.0}
    assert [place["region"] for place in plan["candidates"]] == ["a", "b", "c"]
    assert plan["store_uri"] == quick.store
    assert not (quick.folder / "runs").exists()


def test_dry_run_of_a_cloud_job_prints_skypilots_task_and_nothing_else(quick: Any) -> None:
    compute = {"infra": ["aws"], "regions": ["us-east-1", "us-east-2"], "workers": 2}
    shown = quick("launch", quick.job(store="s3://bucket/runs", compute=compute), "--dry-run")
    assert shown.returncode == 0, shown.stderr
    task = yaml.safe_load(shown.stdout)
    regions = [one["infra"] for one in task["resources"]["ordered"]]
    assert regions[:2] == ["aws/us-east-1", "aws/us-east-2"]
    assert len(set(regions)) == 2
    assert "Plan for" in shown.stderr


def test_options_change_the_job(quick: Any) -> None:
    shown = quick("launch", quick.job(), "--dry-run", "--json", "--store", "file://./elsewhere")
    assert json.loads(shown.stdout)["store_uri"] == f"file://{quick.folder}/elsewhere"
    refused = quick("launch", quick.job(), "--dry-run", "--infra", "moon")
    assert refused.returncode == 2
    assert "moon" in refused.stderr


def test_detached_runs_go_on_and_are_found_again(quick: Any) -> None:
    run_id = quick.launch()
    assert re.fullmatch(RUN_ID, run_id)
    quick.wait_until_over(run_id)
    listed = json.loads(quick("runs", "--json").stdout)
    assert [(run["run_id"], run["state"]) for run in listed] == [(run_id, "done")]
    status = json.loads(quick("status", "--json").stdout)
    assert status["run_id"] == run_id
    assert status["report"]["outcome"] == "done"
    assert run_id in quick("runs").stdout
    assert run_id in quick("status", run_id[:8], "--store", quick.store).stdout


def test_a_run_that_this_version_cannot_read_is_named_and_hides_no_other(quick: Any) -> None:
    run_id = quick.launch()
    quick.wait_until_over(run_id)
    root = Store.open(quick.store)
    kept = json.loads(root.child(run_id).get("job.json"))
    later = {**kept["job"], "key_of_a_later_version": 1}
    root.child("later-23456").put_once("job.json", {**kept, "run_id": "later-23456", "job": later})
    root.put_once(index_key("later-23456"), {"job_name": "later", "launched_at": kept["launched_at"]})
    listed = quick("runs", "--json")
    assert listed.returncode == 0
    assert [run["run_id"] for run in json.loads(listed.stdout)] == [run_id]
    assert "later-23456 is left out" in listed.stderr
    assert "key_of_a_later_version" in listed.stderr


@pytest.mark.slow
def test_logs_show_all_and_follow_ends_with_the_runs_code(quick: Any) -> None:
    run_id = quick.launch()
    followed = quick("logs", "-f", run_id)
    assert followed.returncode == 0
    assert followed.stdout.splitlines()[-1].endswith("The run is done.")
    lines = quick("logs", run_id, "--json").stdout.splitlines()
    assert json.loads(lines[-1])["kind"] == "end"
    assert len([line for line in lines if json.loads(line)["kind"] == "step"]) == 8
    assert quick("logs", "--since", "2999-01-01").stdout == ""
    assert len(quick("logs", "--since", "1h", "--json").stdout.splitlines()) == len(lines)
    refused = quick("logs", "--since", "tomorrow")
    assert refused.returncode == 2
    assert "10m" in refused.stderr


def test_cancel_stops_a_run_and_resume_finishes_it(quick: Any) -> None:
    quick.behaviour |= {"steps": 400}
    run_id = quick.launch()
    quick.wait_for_step(run_id, 5)
    alive = quick("resume", "--yes")
    assert (alive.returncode, alive.stdout) == (2, "")
    assert alive.stderr.startswith(f"{run_id} is alive: its supervisor works on this machine")
    cancelled = quick("cancel")
    assert cancelled.returncode == 0, cancelled.stderr
    assert quick.home.run(run_id).supervisor_pid() is None
    status = json.loads(quick("status", "--json").stdout)
    assert status["state"] == "stopped"
    saved = status["newest_commit"]["position"]
    assert saved >= 4
    quick.behaviour |= {"steps": saved + 6}
    refused = quick("resume", "--workers", "3")  # nobody is there to agree; the price of the machines was shown
    assert refused.returncode == 2
    assert "3 ranks for training" in refused.stderr.split("before")[0]
    assert "1 rank for training" in refused.stderr.split("before")[1]
    resumed = quick("resume", "--yes", "--json", "--exclude-region", "a", "--workers", "3")
    assert resumed.returncode == 0, resumed.stderr
    plan, _ = read_plan(Store.open(quick.store), run_id)
    assert (plan.job.compute.workers, plan.world_size) == (3, 3)
    report = json.loads(resumed.stdout)
    assert report["stop_reasons"] == ["cancelled", "done"]
    assert report["attempts"][1]["base"]["position"] == saved
    assert report["regions"][1] != "local/a"


@pytest.mark.slow
def test_a_run_that_waits_for_a_review_says_so_and_resume_accepts_it(quick: Any) -> None:
    end = {"stop_reason": "review", "detail": "32 rows are written.", "retryable": False}
    quick.behaviour = {"steps": 4, "1": {"end": end}}
    launched = quick("launch", quick.job(), "--yes", "--json")
    assert launched.returncode == 0, launched.stderr
    report = json.loads(launched.stdout)
    assert report["outcome"] == "review"
    assert "alpaca-jobs resume" in report["words"]
    run_id = report["run_id"]
    assert f"alpaca-jobs rm {run_id}" in launched.stderr
    assert json.loads(quick("status", "--json").stdout)["state"] == "review"
    assert "waiting for your review" in quick("status").stdout
    assert "waiting for your review" in quick("runs").stdout
    refused = quick("resume", run_id)  # nobody is there to accept them
    assert refused.returncode == 2
    accepted = quick.folder / "runs" / run_id / "control" / "review.json"
    assert not accepted.exists()
    resumed = quick("resume", run_id, "--yes", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["outcome"] == "done"
    assert "accepted_at" in json.loads(accepted.read_text())


@pytest.mark.slow
def test_a_run_that_is_done_is_neither_resumed_nor_cancelled(quick: Any) -> None:
    run_id = quick.launch()
    quick.wait_until_over(run_id)
    for verb in (("resume", "--yes"), ("cancel",)):
        refused = quick(*verb)
        assert refused.returncode == 2
        assert f"{run_id} is done" in refused.stderr


def test_rm_wants_to_be_sure_and_leaves_nothing(quick: Any) -> None:
    run_id = quick.launch()
    quick.wait_until_over(run_id)
    refused = quick("rm", run_id)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert quick("rm", run_id, "--yes").returncode == 0
    assert [path for path in (quick.folder / "runs").rglob("*") if path.is_file()] == []
    assert "No run in" in quick("runs").stderr


@pytest.mark.slow
def test_rm_refuses_a_run_that_is_alive(quick: Any) -> None:
    quick.behaviour |= {"steps": 400}
    run_id = quick.launch()
    quick.wait_for_step(run_id, 1)
    refused = quick("rm", run_id, "--yes")
    assert refused.returncode == 2
    assert "stop it first" in refused.stderr
    assert quick("cancel", run_id).returncode == 0


@pytest.mark.slow
def test_a_run_id_that_does_not_exist_is_wrong_input(quick: Any) -> None:
    for verb in (["status"], ["logs"], ["cancel"], ["resume", "--yes"], ["rm", "--yes"], ["export"]):
        refused = quick(verb[0], "quick-zzzzz", *verb[1:])
        assert refused.returncode == 2, verb
        assert "There is no run quick-zzzzz" in refused.stderr
        assert "alpaca-jobs runs" in refused.stderr


@pytest.mark.slow
def test_a_beginning_that_fits_several_runs_is_refused_with_their_names(quick: Any) -> None:
    names = {quick.launch(), quick.launch()}
    for name in names:
        quick.wait_until_over(name)
    refused = quick("status", "quick")
    assert refused.returncode == 2
    assert all(name in refused.stderr for name in names)


@pytest.mark.slow
def test_the_latest_run_is_the_one_launched_last(quick: Any) -> None:
    for name in (quick.launch(), latest := quick.launch()):
        quick.wait_until_over(name)
    assert json.loads(quick("status", "--json").stdout)["run_id"] == latest


@pytest.mark.slow
def test_a_job_that_crashes_ends_with_1_and_says_how_to_go_on(quick: Any) -> None:
    quick.behaviour |= {str(attempt): {"crash_at": 2} for attempt in range(1, 10)}
    failed = quick("launch", quick.job(), "--yes", "--json")
    assert failed.returncode == 1
    report = json.loads(failed.stdout)
    assert report["stop_reasons"] == ["crashed"] * 3
    assert "alpaca-jobs resume" in failed.stderr


@pytest.mark.slow
def test_a_store_that_went_away_is_left_out_of_the_list(quick: Any) -> None:
    run_id = quick.launch()
    quick.wait_until_over(run_id)
    quick.home.remember_store("s3://a-bucket-nobody-can-read/runs")
    listed = quick("runs", "--json")
    assert listed.returncode == 0
    assert [run["run_id"] for run in json.loads(listed.stdout)] == [run_id]
    assert "left out" in listed.stderr
