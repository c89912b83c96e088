"""Going on with a run on other machines: who sees them, and what is still known of those before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import change_job
from checkpoints.store import Store
from cluster.events import utc_now
from cluster.job_record import read_job
from cluster.launch.billed import read_paid
from cluster.launch.receipt import make_receipt
from cluster.other_machines import on_machines, put_machines, with_all_places
from cluster.plan import LaunchPlan, Placement, Pricing
from cluster.runs.run_view import read_launch, read_plan

RUN = "demo-x3fkd"
SMALL = Placement("gcp", "us-central1", None, "a2-highgpu-1g", Pricing.SPOT, 1.1, 1, "A100:1")
LARGE = Placement("gcp", "us-east1", None, "a2-highgpu-4g", Pricing.SPOT, 4.4, 2, "A100:4")
BODY = {
    "name": "demo", "store": "gs://b", "data": {"from": "gs://b/rows.json"},
    "train": {"recipe": "alpaca", "model": "tiny-llama"}, "compute": {"infra": ["gcp"], "gpus": "A100:1"},
}  # fmt: skip


def a_run(folder: Path) -> tuple[Store, LaunchPlan, LaunchPlan]:
    """A run that was launched on one GPU, and a plan of its job for two machines of four."""
    root = Store.open(f"file://{folder}")
    plan = LaunchPlan(RUN, JobSpec.model_validate(BODY), root.uri, (SMALL,), 1, "0+test")
    root.child(RUN).put_once("job.json", {**plan.to_json(), "launched_at": utc_now()})
    job = change_job(plan.job, {"compute.gpus": "A100:4", "compute.num_nodes": 2})
    return root, plan, replace(plan, run_id="demo-other", job=job, candidates=(LARGE,), world_size=8)


def test_nodes_and_whoever_looks_see_the_newest_machines_and_job_json_stays(tmp_path: Path) -> None:
    root, plan, other = a_run(tmp_path)
    store = root.child(RUN)
    before = store.get("job.json")
    assert read_plan(root, RUN)[0] == plan
    put_machines(store, on_machines(plan, replace(other, world_size=99)))
    put_machines(store, on_machines(plan, other))
    now, _ = read_plan(root, RUN)
    assert (now.run_id, now.candidates, now.world_size, now.num_nodes) == (RUN, (LARGE,), 8, 2)
    assert (read_job(store).compute.gpus, read_job(store).compute.num_nodes) == ("A100:4", 2)
    assert now.job.train == plan.job.train
    assert store.get("job.json") == before


def test_a_receipt_still_knows_what_the_machines_before_cost(tmp_path: Path) -> None:
    root, plan, other = a_run(tmp_path)
    store = root.child(RUN)
    put_machines(store, on_machines(plan, other))
    whole = with_all_places(store, read_launch(root, RUN))
    assert (whole.candidates, whole.num_nodes, whole.world_size) == ((LARGE, SMALL), 2, 8)
    record = {
        "infra": "gcp", "region": "us-central1", "instance_id": "one", "instance_type": "a2-highgpu-1g",
        "pricing": "spot", "run_id": RUN, "cluster": "", "state": "terminated", "started_at_s": 0.0,
        "ended_at_s": 3600.0,
    }  # fmt: skip
    store.put_once("machines/one.json", json.loads(json.dumps(record)))
    seen, paid, _ = read_paid(root, RUN)
    (line,) = [one for one in make_receipt(seen, paid, now=7200.0).lines if one.what.startswith("machines")]
    assert line.usd == 1.1
