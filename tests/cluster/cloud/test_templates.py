"""The task that SkyPilot gets: whole text against golden files, and SkyPilot's own parser over each.

ALPACA_JOBS_REFRESH_GOLDEN=1 pytest tests/cluster/test_templates.py      after a change that was meant
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from alpaca_jobs.spec import JobSpec
from cluster.cloud.templates import TaskSettings, render_task
from cluster.errors import BackendMissing
from cluster.plan import LaunchPlan, Placement, Pricing

GOLDEN = Path(__file__).parents[2] / "golden"
SETTINGS = TaskSettings(session="000001", code_folder="/laptop/.alpaca-jobs/code/0.1.0-abc", has_plugin=True)


def a_plan(**job: object) -> LaunchPlan:
    body = {
        "data": {"num_rows": 8, "teacher": "offline"},
        "name": "demo",
        "store": "s3://bucket/runs",
        "compute": {"infra": ["aws"], "workers": 2},
        **job,
    }
    spec = JobSpec.model_validate({"train": {"recipe": "alpaca", "model": "tiny-llama"}, **body})
    places = tuple(
        Placement("aws", region, zone, "m6i.large", Pricing.SPOT, price, 1)
        for region, zone, price in (
            ("us-east-1", "use1-az6", 0.03),
            ("us-east-1", "use1-az2", 0.031),
            ("us-east-2", "use2-az1", 0.04),
        )
    )
    return LaunchPlan("demo-x3fkd", spec, "s3://bucket/runs", places, 2, "0.1.0+abc")


def on_demand_last(plan: LaunchPlan) -> LaunchPlan:
    last = tuple(replace(place, pricing=Pricing.ON_DEMAND, price_per_hour_usd=0.096) for place in plan.candidates[::2])
    return replace(plan, candidates=(*plan.candidates, *last))


CASES = {
    "spot": (a_plan(), SETTINGS),
    "spot_then_on_demand_with_secrets_and_deadline": (
        on_demand_last(a_plan(secrets=["OPENAI_API_KEY", "HF_TOKEN"], limits={"deadline_h": 2})),
        replace(SETTINGS, time_limit_s=7319.2),
    ),
    "server_without_our_plugin": (a_plan(), replace(SETTINGS, has_plugin=False)),
    "google_bucket": (replace(a_plan(), store_uri="gs://bucket/runs"), SETTINGS),
}


@pytest.mark.parametrize("name", CASES)
def test_a_task_is_rendered_as_the_golden_file_has_it(name: str) -> None:
    rendered, golden = render_task(*CASES[name]), GOLDEN / f"task_{name}.yaml"
    if os.environ.get("ALPACA_JOBS_REFRESH_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(rendered, encoding="utf-8")
    assert rendered == golden.read_text(encoding="utf-8")


@pytest.mark.slow
def test_skypilot_takes_every_golden_file_and_keeps_our_order(tmp_path: Path) -> None:
    """In a process of its own: importing SkyPilot takes seconds and reads its settings."""
    program = """
import sys, sky
from sky.utils import yaml_utils
from cluster.cloud.sky_plugin import register, is_resource_of
register(), register()
for path in sys.argv[1:]:
    config = yaml_utils.safe_load(open(path))
    config["file_mounts"] = {"~/alpaca-jobs-code": "/tmp"}
    task = sky.Task.from_yaml_config(config, secrets_overrides=[(name, "x") for name in config["secrets"]] or None)
    assert isinstance(task.resources, list), task.resources
    print(*[f"{one.region}/{one.instance_type}/{one.use_spot}" for one in task.resources])
"""
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    files = [str(GOLDEN / f"task_{name}.yaml") for name in CASES]
    done = subprocess.run(
        [sys.executable, "-c", program, *files], capture_output=True, text=True, env=environ, timeout=110
    )
    assert done.returncode == 0, done.stderr
    spot = "us-east-1/m6i.large/True us-east-2/m6i.large/True"
    assert done.stdout.splitlines() == [spot, f"{spot} {spot.replace('True', 'False')}", spot, spot]


def test_what_a_clouds_node_cannot_do_yet_is_refused_in_words() -> None:
    plan = a_plan()
    with_gpus = replace(plan, candidates=tuple(replace(place, gpus="A100:8") for place in plan.candidates))
    with pytest.raises(BackendMissing, match="train on CPUs only"):
        render_task(with_gpus, SETTINGS)
    many = replace(plan, candidates=tuple(replace(place, num_nodes=2) for place in plan.candidates))
    with pytest.raises(BackendMissing, match="on one machine only"):
        render_task(many, SETTINGS)
    with pytest.raises(BackendMissing, match="store: s3://my-bucket/runs"):
        render_task(replace(plan, store_uri="auto"), SETTINGS)
