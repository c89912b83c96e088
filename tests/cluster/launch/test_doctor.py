"""Looking around in a pretend account: what bills that nobody wants, and that it can be ended by asking."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from checkpoints.attempts import AttemptLog
from checkpoints.store import Store
from cluster.cloud.aws_account import AwsAccount
from cluster.cloud.aws_bucket import find_bucket, make_bucket
from cluster.cloud.plugin_install import install_plugin, plugin_status
from cluster.cloud.sky_account import SkyJob
from cluster.cloud.sky_environments import SkyEnvironment
from cluster.events import EventWriter, utc_now
from cluster.launch import doctor
from cluster.launch.doctor import examine
from cluster.launch.findings import Finding, Level
from cluster.launch.leaks import empty_buckets, machines_that_bill, repair_machine, unwanted_jobs
from cluster.plan import LaunchPlan, Placement, Pricing
from cluster.runs.home import Home
from cluster.runs.run_view import index_key

REGIONS = ["us-east-1", "us-west-2"]
LATER_S = 3600.0


class Account:
    """A pretend account, a home and a store with runs, as a user has them after some weeks."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.aws = AwsAccount()
        self.home = Home(folder / "home")
        self.root = Store.open(f"file://{folder}/store")
        self.home.remember_store(self.root.uri)
        monkeypatch.setattr("cluster.cloud.aws_machines.regions_of", lambda _: REGIONS)  # moto is slow in thirty

    def run(self, run_id: str, *, ended: int | None = None) -> None:
        """A run in the store: claimed, and over with an exit code if one is given."""
        body = {
            "name": "demo", "store": "s3://b", "data": {"num_rows": 8, "teacher": "offline"},
            "train": {"recipe": "alpaca", "model": "tiny-llama"}, "compute": {"infra": ["aws"], "workers": 1},
        }  # fmt: skip
        place = Placement("aws", "us-east-1", None, "m6i.large", Pricing.SPOT, 0.03, 1)
        plan = LaunchPlan(run_id, JobSpec.model_validate(body), self.root.uri, (place,), 1, "0+test")
        store = self.root.child(run_id)
        store.put_once("job.json", {**plan.to_json(), "launched_at": utc_now()})
        self.root.put_once(index_key(run_id), {"launched_at": utc_now()})
        log = AttemptLog(store, LAYOUT)
        log.claim(1, {"placement": place.to_json(), "started_at": utc_now()})
        log.put_base(1, None)
        if ended is not None:
            log.put_end(1, {"stop_reason": "done", "ended_at": utc_now(), "seconds": 1})
            events = EventWriter(store, 1, "supervisor")
            events.emit("end", exit_code=ended, reason="done", words="over")
            events.close()

    def machine(self, run_id: str, region: str = "us-east-1", **tags: str) -> str:
        labels = {"alpaca-jobs-run": run_id} if run_id else {}
        named = [{"Key": key, "Value": value} for key, value in {**labels, **tags}.items()]
        answer = self.aws.client("ec2", region).run_instances(
            ImageId="ami-785db401", MinCount=1, MaxCount=1, InstanceType="m6i.large",
            TagSpecifications=[{"ResourceType": "instance", "Tags": named}],
        )  # fmt: skip
        return str(answer["Instances"][0]["InstanceId"])

    def found(self, jobs: list[SkyJob] | None = None, *, in_s: float = LATER_S) -> dict[str, Finding]:
        """What is said of each machine, by its id."""
        findings = machines_that_bill(self.home, self.aws, jobs, now=lambda: time.time() + in_s)
        return {one.words.split()[0]: one for one in findings}


@pytest.fixture
def account(aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    return Account(tmp_path, monkeypatch)


def test_a_machine_whose_run_is_over_bills_and_is_taken_down_by_asking(account: Account) -> None:
    account.run("demo-x3fkb", ended=0)
    name = account.machine("demo-x3fkb", "us-west-2")
    assert account.found(in_s=60)[name].level is Level.NOTE  # it goes by itself within ten minutes
    found = account.found()[name]
    assert (found.level, found.repair, found.target) == (Level.BILLING, "machine", f"us-west-2/{name}")
    assert "The run is over (done), and nobody takes the machine down." in found.words
    assert found.command == f"aws ec2 terminate-instances --region us-west-2 --instance-ids {name}"
    assert repair_machine(found.target, account.aws) == f"AWS was told to terminate {name} in us-west-2."
    assert account.found() == {"none": Finding(Level.OK, "machines of AWS", "none of ours runs, in any region")}


def test_a_machine_whose_node_is_dead_bills_unless_skypilot_works_on_it(account: Account) -> None:
    account.run("demo-x3fkc")
    name = account.machine("demo-x3fkc")
    found = account.found()[name]
    assert found.level is Level.BILLING
    assert "`alpaca-jobs resume demo-x3fkc` goes on with the run" in found.words
    assert "(SkyPilot could not be asked)" in found.words
    assert account.found([SkyJob(3, "demo-x3fkc", "RECOVERING")])[name].level is Level.OK


def test_a_machine_that_a_newer_one_has_replaced_bills_even_while_the_run_lives(account: Account) -> None:
    account.run("demo-x3fkd")
    old = account.machine("demo-x3fkd")
    time.sleep(1.1)  # AWS's records have whole seconds
    new = account.machine("demo-x3fkd", "us-west-2")
    found = account.found([SkyJob(3, "demo-x3fkd", "RUNNING")])
    assert (found[old].level, found[new].level) == (Level.BILLING, Level.OK)
    assert "works on newer machines" in found[old].words


def test_what_may_be_somebody_elses_is_never_called_unwanted(account: Account) -> None:
    name = account.machine("demo-x3fkf")
    watching = account.machine("", **{"skypilot-cluster-name": "sky-jobs-controller-1"})
    found = account.found([])
    assert {one.level for one in found.values()} == {Level.NOTE}
    assert "in no store that was used from here" in found[name].words
    assert found[watching].command == "sky down sky-jobs-controller-1"
    assert account.found([SkyJob(1, "other", "RUNNING")])[watching].level is Level.OK
    with pytest.raises(Exception, match="no machine of ours i-0123"):
        repair_machine("us-east-1/i-0123", account.aws)


def test_a_stopped_machine_of_a_run_that_is_over_still_has_a_disk_to_pay(account: Account) -> None:
    account.run("demo-x3fkb", ended=0)
    name = account.machine("demo-x3fkb")
    account.aws.client("ec2", "us-east-1").stop_instances(InstanceIds=[name])
    found = account.found()[name]
    assert found.level is Level.BILLING
    assert "is stopped: its disk is billed" in found.words


def test_jobs_of_runs_that_are_over_are_unwanted(account: Account) -> None:
    account.run("demo-x3fkb", ended=130)
    account.run("demo-x3fkg")
    jobs = [SkyJob(1, "demo-x3fkb", "RUNNING"), SkyJob(2, "demo-x3fkg", "RUNNING"), SkyJob(3, "mine", "RUNNING")]
    over, goes = unwanted_jobs(account.home, jobs)
    assert (over.level, over.repair, over.target) == (Level.BILLING, "job", "demo-x3fkb")
    assert over.command == "sky jobs cancel 1"
    assert goes.level is Level.OK


def test_a_bucket_without_runs_is_named(account: Account) -> None:
    bucket = find_bucket(account.aws, "us-east-1")
    make_bucket(account.aws, bucket)
    (found,) = empty_buckets(account.home, account.aws)
    assert (found.level, found.command) == (Level.NOTE, f"aws s3 rb s3://{bucket.name}")
    assert "holds no run" in found.words


def test_everything_is_looked_at_and_what_cannot_be_is_said(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "is_server_running", lambda: False)
    account.home.remember_store("s3://nobody-made-this/runs")
    account.run("demo-x3fkb", ended=0)
    account.machine("demo-x3fkb")
    found = _by_what(examine(account.home, account=account.aws))
    assert found["credentials of AWS"].words == "account 123456789012"
    assert [one.level for one in _all(examine(account.home, account=account.aws), "store")] == [Level.BROKEN, Level.OK]
    assert found["machine"].level is Level.NOTE
    assert "were not looked at (sky api start)" in found["SkyPilot"].words


def test_without_credentials_a_cloud_store_is_broken_and_nothing_is_claimed_about_machines(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "is_server_running", lambda: False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    here = _by_what(examine(account.home, account=AwsAccount(), environ={}))
    assert here["credentials of AWS"].level is Level.MISSING
    assert "Machines and buckets there were not looked for." in here["credentials of AWS"].words
    assert "machines of AWS" not in here
    account.home.remember_store("s3://mine/runs")
    assert _by_what(examine(account.home, account=AwsAccount(), environ={}))["credentials of AWS"].level is Level.BROKEN


def test_a_broken_plugin_is_written_anew(account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"SKYPILOT_SERVER_PLUGINS_CONFIG": str(tmp_path / "plugins.yaml")}
    here = [SkyEnvironment(tmp_path, "here", has_package=True)]
    monkeypatch.setattr(doctor, "plugin_status", lambda: plugin_status(settings, environments=here))
    monkeypatch.setattr(doctor, "is_server_running", lambda: False)
    install_plugin(plugin_status(settings, environments=here))
    (loader,) = plugin_status(settings, environments=here).loaders
    loader.write_text("# of an older version\n")
    assert _by_what(examine(account.home, account=account.aws))["plugin"].level is Level.BROKEN
    loader.unlink()  # say: the environment was made anew
    broken = _by_what(examine(account.home, account=account.aws))["plugin"]
    assert (broken.level, broken.repair) == (Level.BROKEN, "plugin")
    assert f"{loader} is missing: SkyPilot does not start from there" in broken.words
    assert "Written anew" in doctor.repair(broken)
    assert _by_what(examine(account.home, account=account.aws))["plugin"].level is Level.OK


def _by_what(findings: list[Finding]) -> dict[str, Finding]:
    return {one.what: one for one in findings}


def _all(findings: list[Finding], what: str) -> list[Any]:
    return [one for one in findings if one.what == what]
