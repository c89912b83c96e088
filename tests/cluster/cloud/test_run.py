"""What SkyPilot's side and a cloud's node decide from the store alone: no memory of their own is needed."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

import pytest
import yaml
from a_cloud import PLACES, WORKING, ACloud, FakeSky

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec_io import change_job
from checkpoints.attempts import AttemptLog
from checkpoints.keys import CommitRef
from checkpoints.store import Store
from checkpoints.writer import CommitWriter
from cluster.cloud.launching import JobWatch, cancel_cloud_run, refuse_active_job, submit_session
from cluster.cloud.run import CloudRun, parts_left, put_session
from cluster.cloud.shipped_code import wheel_name
from cluster.cloud.sky_backend import JobStatus
from cluster.code_version import code_version
from cluster.control import ask_cancel
from cluster.course import Course
from cluster.errors import LaunchFailed, RunActive, RunNotFound, WrongInput
from cluster.event_reading import read_events
from cluster.events import EventWriter, utc_now
from cluster.launch.launching import resume_run, start_run
from cluster.plan import Pricing
from cluster.recovery import Action, Decision, StopReason
from cluster.runs.home import Home
from cluster.runs.report import read_report
from cluster.runs.run_view import list_runs, view_run


def test_the_lost_region_is_remembered_by_a_controller_that_knows_nothing(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    assert cloud.run("").decide().placements[0].region == "us-east-1"
    cloud.attempt(1, PLACES[0])
    fresh = cloud.run("000001")
    fresh.end_lost()
    decision = fresh.decide()
    assert decision.action is Action.RELAUNCH
    assert [place.region for place in decision.placements] == ["us-east-2", "us-west-2", "us-east-1"]
    assert fresh.next_number() == 2
    assert cloud.log.records()[0].end["stop_reason"] == "lost"  # type: ignore[index]


def test_a_place_without_capacity_is_skipped_and_with_all_of_them_sold_out_the_run_waits(tmp_path: Path) -> None:
    run = ACloud(tmp_path, max_wait_s=600.0).run()
    for place in PLACES:
        assert run.decide().placements[0] == place
        run.refused(place, "sold out")
    assert run.decide().action is Action.WAIT


def test_a_place_that_can_never_be_used_is_left_out_and_with_none_left_the_run_ends(tmp_path: Path) -> None:
    run = ACloud(tmp_path).run()
    for place in PLACES:
        assert run.decide().placements[0] == place
        run.cannot(place, "credentials are missing")
    decision = run.decide()
    assert (decision.action, decision.exit_code) == (Action.GIVE_UP, 3)
    assert "aws/us-east-2: credentials are missing" in decision.words


def test_a_crash_that_repeats_without_progress_ends_the_run_and_one_with_progress_does_not(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    run = cloud.run()
    cloud.attempt(1, PLACES[0], reason="crashed")
    cloud.attempt(2, PLACES[0], reason="crashed")
    assert run.decide().action is Action.RELAUNCH
    cloud.attempt(3, PLACES[0], reason="crashed", commit=5)
    assert run.decide().action is Action.RELAUNCH
    cloud.attempt(4, PLACES[0], reason="crashed")
    assert run.decide().action is Action.RELAUNCH
    cloud.attempt(5, PLACES[0], reason="crashed")
    decision = run.decide()
    assert (decision.action, decision.exit_code, decision.reason) == (Action.GIVE_UP, 1, StopReason.CRASHED)


def test_no_machine_is_bought_that_the_budget_or_the_deadline_does_not_pay(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path / "a", max_usd=0.03)
    run = cloud.run()
    cloud.attempt(1, PLACES[0], reason="preempted")  # an hour at 0.03 USD
    assert run.spent_usd() == pytest.approx(0.03)
    assert (run.decide().action, run.decide().exit_code) == (Action.GIVE_UP, 4)
    late = ACloud(tmp_path / "b", deadline_at_s=1.0).run()
    assert (late.decide().action, late.decide().reason) == (Action.GIVE_UP, StopReason.DEADLINE)


def test_the_next_machine_is_on_demand_when_another_loss_would_cross_the_deadline(tmp_path: Path) -> None:
    """What is left is read from the store: the estimate that was made at launch, and what the attempts have done."""
    cloud = ACloud(tmp_path, on_demand="when-needed", deadline_at_s=time.time() + 2 * 3600)
    full = tuple(replace(place, pricing=Pricing.ON_DEMAND, price_per_hour_usd=0.1) for place in PLACES)
    cloud.session = replace(cloud.session, plan=replace(cloud.session.plan, candidates=(*PLACES, *full)))
    training = Course(6000.0, 0.1, 300.0, 300.0, 300.0, 600.0, 0.2)
    estimate = {"candidates": [{"stages": [{"name": "training", "course": asdict(training)}]}]}
    run = cloud.run()
    assert run.decide().placements[0] == PLACES[0]  # nothing says how long it takes
    cloud.store.put_once("estimate.json", estimate)
    CommitWriter(cloud.store, LAYOUT, CommitRef("generate", 1, 1)).publish(meta={"complete": True, "rows_total": 8})
    cloud.attempt(1, PLACES[0], reason="preempted")
    decision = run.decide()
    # 300 + 300 + 6000 s and another 300 + 300 + 600 s after one more loss are more than the two hours that are left.
    assert decision.placements == (full[1], full[2], full[0], PLACES[1], PLACES[2], PLACES[0])
    assert decision.on_demand.endswith("on spot the rest could take 2 h 10 min with one more loss (as estimated)")
    later = replace(cloud.session.policy, deadline_at_s=time.time() + 3 * 3600)
    cloud.session = replace(cloud.session, policy=later)
    assert cloud.run().decide().placements[0] == PLACES[1]
    started = {"state": "started", "number": 2, "place": full[1].name, "on_demand": decision.on_demand}
    run.tell(decision, **started, placement=full[1].to_json())
    cloud.attempt(2, full[1], reason="done")
    run.close(Decision(Action.FINISH, "The run is done.", exit_code=0, reason=StopReason.DONE))
    told = (read_report(cloud.store) or {})["attempts"]
    assert [one["on_demand"] for one in told] == ["", decision.on_demand]
    assert [one["cost_usd"] for one in told] == pytest.approx([0.03, 0.1])  # an hour each, at its own price


def test_a_cancel_is_seen_before_anything_is_launched(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    run = cloud.run()
    ask_cancel(cloud.store)
    assert (run.decide().action, run.decide().exit_code) == (Action.GIVE_UP, 130)


def test_a_resume_forgets_crashes_and_keeps_away_from_the_region_lost_last(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path, max_crashes=1)
    first = cloud.run()
    cloud.attempt(1, PLACES[0], reason="crashed")
    assert first.decide().action is Action.GIVE_UP
    resumed = cloud.run()
    assert resumed.decide().placements[0] == PLACES[0]
    cloud.attempt(2, PLACES[0], reason="lost")
    assert cloud.run().decide().placements[0] == PLACES[1]


def test_closing_puts_the_report_and_the_end_once(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    run = cloud.run()
    cloud.attempt(1, PLACES[0], reason="done")
    decision = run.decide()
    run.close(decision)
    run.close(decision)
    assert (read_report(cloud.store) or {})["outcome"] == "done"
    assert [event.fields["exit_code"] for event in read_events(cloud.store) if event.kind == "end"] == [0, 0]


def test_an_attempt_that_never_began_counts_as_one(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path, max_fruitless=1)
    number = put_session(cloud.store, cloud.session)
    told = {"ALPACA_JOBS_ATTEMPT": "1", "ALPACA_JOBS_PLACEMENT": json.dumps(PLACES[0].to_json())}
    names = {"ALPACA_JOBS_STORE": cloud.root.uri, "ALPACA_JOBS_RUN": "demo-x3fkd", "ALPACA_JOBS_SESSION": number}
    run = CloudRun.open({**names, **told})
    run.end_lost()
    assert run.next_number() == 2
    assert (run.decide().action, run.decide().exit_code) == (Action.GIVE_UP, 3)


def test_machines_that_came_but_did_not_get_ready_count_and_cost(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path, max_fruitless=2, max_usd=5.0)
    run = cloud.run()
    for number in (1, 2):
        assert run.decide().placements[0] == PLACES[number - 1]  # elsewhere the second time
        assert run.next_number() == number
        run.failed_launch(number, PLACES[number - 1], seconds=3600.0)
    assert run.spent_usd() == pytest.approx(0.07)
    assert (run.decide().action, run.decide().exit_code) == (Action.GIVE_UP, 3)


def test_machines_that_never_get_ready_end_the_run_although_other_places_have_none(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path, max_fruitless=3)
    run, broken = cloud.run(), 0
    for _ in range(20):
        decision = run.decide()
        if decision.action is not Action.RELAUNCH:
            break
        if decision.placements[0] == PLACES[-1]:
            broken += 1
            run.failed_launch(run.next_number(), PLACES[-1], seconds=60.0)
        else:
            run.refused(decision.placements[0], "no capacity")
    assert (decision.action, decision.exit_code, broken) == (Action.GIVE_UP, 3, 3)
    assert "3 attempts in a row ended without one new commit" in decision.words


def test_a_session_that_was_resumed_elsewhere_launches_nothing_more_and_ends_nothing(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    old, new = cloud.run(), cloud.run()
    decision = old.decide()
    assert (decision.action, decision.reason) == (Action.FINISH, StopReason.SUPERSEDED)
    old.close(decision)
    assert read_report(cloud.store) is None
    assert new.decide().action is Action.RELAUNCH


def test_a_run_in_two_parts_starts_each_on_its_own_machines_and_ends_with_the_last(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    big = tuple(replace(place, instance_type="m6i.8xlarge") for place in PLACES)
    cloud.session = replace(cloud.session, plan=replace(cloud.session.plan, candidates=big, generation=PLACES))
    number = put_session(cloud.store, cloud.session)
    rows, training = cloud.run(number, until="generate"), cloud.run(number)
    assert [run.decide().placements[0] for run in (rows, training)] == [PLACES[0], big[0]]
    cloud.attempt(1, PLACES[0], reason="preempted")
    assert rows.decide().placements[0] == PLACES[1]  # the region that was lost comes last
    cloud.attempt(2, PLACES[1])
    CommitWriter(cloud.store, LAYOUT, CommitRef("generate", 1, 2)).publish(meta={"complete": False, "rows_total": 4})
    assert [part.until for part in parts_left(cloud.store, cloud.session.plan)] == ["generate", None]
    CommitWriter(cloud.store, LAYOUT, CommitRef("generate", 2, 2)).publish(meta={"complete": True, "rows_total": 8})
    cloud.log.put_end(2, {"stop_reason": "part_done", "ended_at": utc_now(), "seconds": 60.0})
    assert rows.decide().action is Action.RELAUNCH  # so nobody says that the run is over
    assert view_run(cloud.root, "demo-x3fkd").state.value == "starting"
    decision = training.decide()
    assert (decision.action, decision.placements[0]) == (
        Action.RELAUNCH,
        big[0],
    )  # what small machines met is no matter
    assert [part.until for part in parts_left(cloud.store, cloud.session.plan)] == [None]
    cloud.attempt(3, big[0], reason="done")
    assert training.decide().action is Action.FINISH


def test_status_shows_what_each_recovery_of_a_run_took_while_it_goes_on(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    run = cloud.run()
    for number in (1, 2):
        if number == 2:
            run.tell(run.decide(), state="started", number=2, place=PLACES[1].name, placement=PLACES[1].to_json())
        cloud.attempt(number, PLACES[number - 1], commit=number, reason="lost" if number == 1 else None)
        node = EventWriter(cloud.store, number, "node")
        node.emit("step", step=number, total_steps=9)
        node.close()
    (recovery,) = view_run(cloud.root, "demo-x3fkd", is_alive=True).recoveries
    assert recovery.attempt == 2
    assert recovery.total_s < 10
    assert None not in (recovery.notice_s, recovery.buy_s, recovery.set_up_s, recovery.start_s)
    run.close(Decision(Action.GIVE_UP, "Enough.", exit_code=4, reason=StopReason.BUDGET))
    assert view_run(cloud.root, "demo-x3fkd").recoveries == ()  # the report has them
    assert [one["attempt"] for one in (read_report(cloud.store) or {})["recoveries"]] == [2]


def test_a_run_whose_next_machine_is_being_set_up_is_not_called_dead_and_one_that_stays_away_is(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    run = cloud.run()
    cloud.attempt(1, PLACES[0], commit=1, reason="lost")
    run.tell(run.decide(), state="started", number=2, place=PLACES[1].name, placement=PLACES[1].to_json())

    def seen(minutes: float) -> str:
        return view_run(cloud.root, "demo-x3fkd", now=time.time() + 60 * minutes, sample_s=0).state.value

    assert (seen(0), seen(20), seen(40)) == ("starting", "starting", "silent")
    cloud.attempt(2, PLACES[1], reason=None)
    node = EventWriter(cloud.store, 2, "node")
    node.emit("step", step=1, total_steps=9)
    node.close()
    assert seen(20) == "silent"  # it had begun: its own silence is another matter


def test_an_environment_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match="ALPACA_JOBS_STORE"):
        CloudRun.open({})


def test_a_task_carries_secrets_by_name_only_and_names_its_session(tmp_path: Path) -> None:
    cloud, sky = ACloud(tmp_path / "store"), FakeSky(None)
    zones = tuple(replace(place, zone=zone) for place in PLACES[:2] for zone in ("one", "two"))
    plan = replace(cloud.session.plan, store_uri="s3://bucket/runs", candidates=zones)
    submit_session(cloud.store, replace(cloud.session, plan=plan), Home(tmp_path / "home"), sky, {"API_KEY": "hush"})
    ((text, name, secrets),) = sky.submitted
    assert (name, secrets) == ("demo-x3fkd", {"API_KEY": "hush"})
    assert "hush" not in text
    assert "API_KEY: null" in text
    assert cloud.run("000001").plan.candidates == PLACES[:2]  # zones are SkyPilot's choice
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hush" in path.read_bytes()]


def test_a_resume_with_newer_code_ships_one_wheel_and_it_is_todays(tmp_path: Path) -> None:
    cloud, sky, home = ACloud(tmp_path / "store"), FakeSky(None), Home(tmp_path / "home")
    for version in (cloud.session.plan.code_version, code_version()):  # the launch's, and one that was mixed up before
        folder = home.root / "code" / version.replace("+", "-")
        folder.mkdir(parents=True)
        (folder / "alpaca_jobs-0+test-py3-none-any.whl").touch()
    submit_session(cloud.store, cloud.session, home, sky, {"API_KEY": "x"})
    ((text, _, _),) = sky.submitted
    shipped = Path(yaml.safe_load(text)["file_mounts"]["~/alpaca-jobs-code"])
    assert [path.name for path in shipped.glob("*.whl")] == [wheel_name()]


def test_a_resume_says_a_word_so_that_the_old_end_is_no_end_any_more(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path / "store")
    cloud.run()
    cancel_cloud_run(cloud.store, "demo-x3fkd", FakeSky(None), window_s=0.0)
    submit_session(cloud.store, cloud.session, Home(tmp_path / "home"), FakeSky(None), {"API_KEY": "x"})
    kinds = [event.kind for event in read_events(cloud.store)]
    assert kinds == ["end", "decision"]
    assert view_run(cloud.root, "demo-x3fkd").state.value == "starting"


def test_a_server_without_our_plugin_is_named_and_a_refused_submission_is_cancelled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cloud, sky = ACloud(tmp_path / "store"), FakeSky(None, plugin=False, refuses=True)
    with pytest.raises(LaunchFailed):
        submit_session(cloud.store, cloud.session, Home(tmp_path / "home"), sky, {"API_KEY": "x"})
    assert "alpaca-jobs plugin install" in caplog.text
    assert sky.cancelled == ["demo-x3fkd"]


def test_cancelling_ends_the_job_the_attempt_and_the_run(tmp_path: Path) -> None:
    cloud, sky = ACloud(tmp_path), FakeSky(WORKING)
    cloud.run()
    cloud.attempt(1, PLACES[0])
    said = cancel_cloud_run(cloud.store, "demo-x3fkd", sky, window_s=0.0)
    assert "told to end job 7 and to take its machine down" in said
    assert sky.cancelled == ["demo-x3fkd"]
    assert cloud.log.records()[0].end is not None
    assert (read_report(cloud.store) or {})["exit_code"] == 130


@pytest.mark.parametrize(
    ("job", "truth"),
    [
        (None, "knows no job of it, so nothing was taken down from here"),
        (JobStatus(7, "FAILED", True, ""), "job 7 was over already (FAILED)"),
        (JobStatus(7, "RUNNING", False, ""), "told to end job 7"),
    ],
)
def test_cancelling_a_run_that_has_stopped_keeps_its_end_and_says_what_was_done(
    tmp_path: Path, job: JobStatus | None, truth: str
) -> None:
    cloud = ACloud(tmp_path)
    cloud.attempt(1, PLACES[0], reason="budget")
    cloud.run().close(Decision(Action.GIVE_UP, "The budget is spent.", exit_code=4, reason=StopReason.BUDGET))
    said = cancel_cloud_run(cloud.store, "demo-x3fkd", FakeSky(job), window_s=0.0)
    assert "had stopped before: The budget is spent." in said
    assert truth in said
    view = view_run(cloud.root, "demo-x3fkd")
    assert (view.state.value, view.exit_code, view.words) == ("stopped", 4, "The budget is spent.")


def test_a_cancel_leaves_the_last_word_to_a_node_that_has_said_it(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    run = cloud.run()
    cloud.attempt(1, PLACES[0])

    def leave(_: float) -> None:  # what the node does when it sees the cancel
        cloud.log.put_end(1, {"stop_reason": "cancelled", "ended_at": utc_now(), "seconds": 60.0})
        run.close(Decision(Action.GIVE_UP, "Cancelled by the node.", exit_code=130, reason=StopReason.CANCELLED))

    cancel_cloud_run(cloud.store, "demo-x3fkd", FakeSky(WORKING), window_s=5.0, sleep=leave)
    assert [event.fields["words"] for event in read_events(cloud.store) if event.kind == "end"] == [
        "Cancelled by the node."
    ]


def test_a_cancel_from_elsewhere_does_not_call_a_run_stopped_that_works(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    cloud.run()
    cloud.attempt(1, PLACES[0])
    beats = count(1)
    said = cancel_cloud_run(
        cloud.store, "demo-x3fkd", FakeSky(None), window_s=0.0, sleep=lambda _: cloud.log.renew(1, next(beats))
    )
    assert "attempt 1 still works" in said
    assert cloud.log.records()[0].end is None
    assert read_report(cloud.store) is None


@pytest.mark.parametrize(("lives_s", "waited_s"), [(1000, 245), (100, 131), (0, 31)])
def test_a_cancel_waits_as_long_as_the_node_lives_and_saves_take_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives_s: int, waited_s: int
) -> None:
    cloud, said, now = ACloud(tmp_path), list[str](), [0.0]
    cloud.run()
    cloud.attempt(1, PLACES[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] <= lives_s:
            cloud.log.renew(1, int(now[0]))

    monkeypatch.setattr("cluster.cloud.launching.time.monotonic", lambda: now[0])
    cancel_cloud_run(cloud.store, "demo-x3fkd", FakeSky(WORKING), window_s=245.0, say=said.append, sleep=sleep)
    assert now[0] == waited_s  # a lease that stands still is believed after half a minute
    (words,) = said
    assert "at most 245 s" in words


def test_a_run_is_found_again_by_whoever_dies_while_skypilot_takes_it(tmp_path: Path) -> None:
    cloud, sky, home = ACloud(tmp_path / "old"), FakeSky(None, refuses=True), Home(tmp_path / "home")
    root = Store.open(f"file://{tmp_path}/new")
    train = cloud.session.plan.job.train.model_copy(update={"method": "command", "model": "mine", "command": ("true",)})
    job = cloud.session.plan.job.model_copy(update={"train": train})
    plan = replace(cloud.session.plan, store_uri=root.uri, job=job)
    seen: list[list[str]] = []
    sky.while_submitting = lambda: seen.append([*home.stores(), *list_runs(root)])
    for _ in range(2):
        with pytest.raises(LaunchFailed):
            start_run(plan, home, environ={"API_KEY": "x"}, jobs=sky)
        assert home.stores() == []  # nothing of it is left
    assert seen == [[root.uri, "demo-x3fkd"]] * 2


def test_resuming_without_a_region_keeps_every_part_away_from_it(tmp_path: Path) -> None:
    cloud, home, secrets = ACloud(tmp_path / "store"), Home(tmp_path / "home"), {"API_KEY": "x"}
    store = cloud.root.child("demo-x3fkp")
    big = tuple(replace(place, instance_type="m6i.8xlarge") for place in PLACES)
    plan = replace(cloud.session.plan, run_id="demo-x3fkp", candidates=big, generation=PLACES[:2])
    store.put_once("job.json", {**plan.to_json(), "launched_at": utc_now()})
    sky = FakeSky(None)
    resume_run(cloud.root, "demo-x3fkp", home, exclude_regions=["us-east-1"], environ=secrets, jobs=sky)
    ((text, _, _),) = sky.submitted
    assert "us-east-1" not in text
    assert text.count("us-east-2") == 2
    with pytest.raises(WrongInput, match="Every region of demo-x3fkp for its rows is excluded"):
        resume_run(
            cloud.root, "demo-x3fkp", home, exclude_regions=["us-east-1", "us-east-2"], environ=secrets, jobs=sky
        )
    log = AttemptLog(store, LAYOUT)
    log.claim(1, {"placement": PLACES[0].to_json(), "started_at": utc_now()})
    log.put_base(1, None)
    CommitWriter(store, LAYOUT, CommitRef("generate", 1, 1)).publish(meta={"complete": True, "rows_total": 8})
    log.put_end(1, {"stop_reason": "preempted", "ended_at": utc_now(), "seconds": 60.0})
    resume_run(cloud.root, "demo-x3fkp", home, exclude_regions=["us-east-1", "us-east-2"], environ=secrets, jobs=sky)
    assert "us-west-2" in sky.submitted[-1][0]  # the rows are there, and need no machine


def test_status_says_that_training_may_hang_until_there_is_a_step_again(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    cloud.attempt(1, PLACES[0])
    node = EventWriter(cloud.store, 1, "node")
    seen = []
    for kind, fields in (("step", {"step": 1}), ("stall", {"words": "Training may hang."}), ("step", {"step": 2})):
        node.emit(kind, **fields)
        node.flush()
        seen.append(view_run(cloud.root, "demo-x3fkd", is_alive=True).words)
        time.sleep(0.002)  # events are dated to the millisecond
    node.close()
    assert seen == ["", "Training may hang.", ""]


def test_resuming_on_other_machines_asks_skypilot_for_them(tmp_path: Path) -> None:
    cloud, sky = ACloud(tmp_path / "store"), FakeSky(None)
    plan = cloud.session.plan
    both = tuple(replace(place, num_nodes=2) for place in plan.candidates)
    job = change_job(plan.job, {"compute.num_nodes": 2})
    other = replace(plan, run_id="demo-other", job=job, candidates=both, world_size=2)
    for machines in (other, None):  # a later resume stays there
        resume_run(
            cloud.root, "demo-x3fkd", Home(tmp_path / "home"), machines=machines, environ={"API_KEY": "x"}, jobs=sky
        )
    for text, name, _ in sky.submitted:
        assert name == "demo-x3fkd"
        assert yaml.safe_load(text)["num_nodes"] == 2
    assert len(sky.submitted) == 2


def test_a_job_that_dies_without_a_word_is_noticed_at_the_second_look(tmp_path: Path) -> None:
    now = iter(range(0, 1000, 100))
    dead = JobStatus(7, "FAILED_SETUP", True, "no space left")
    watch = JobWatch(FakeSky(dead), "demo-x3fkd", every_s=60.0, clock=lambda: next(now))
    assert [watch.is_dead(), watch.is_dead()] == [False, True]
    assert "FAILED_SETUP (no space left)" in str(watch.error())
    with pytest.raises(RunActive, match="RUNNING"):
        refuse_active_job("demo-x3fkd", JobStatus(8, "RUNNING", False, ""))
    refuse_active_job("demo-x3fkd", dead)
