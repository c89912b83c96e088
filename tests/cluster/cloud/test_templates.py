"""The task that SkyPilot gets: whole text against golden files, and SkyPilot's own parser over each.

ALPACA_JOBS_REFRESH_GOLDEN=1 pytest tests/cluster/cloud/test_templates.py      after a change that was meant
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from alpaca_jobs.spec import JobSpec, TeacherSpec
from cluster.cloud.templates import TaskSettings, render_tasks, secret_names
from cluster.errors import BackendMissing
from cluster.launch.planner import offers_for, plan_launch
from cluster.plan import LaunchPlan, Placement, Pricing
from cluster.price.offers import SNAPSHOT, PriceList, load_offers

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


def on_gpus(plan: LaunchPlan, *, num_nodes: int = 1) -> LaunchPlan:
    places = tuple(
        Placement(infra, region, None, machine, Pricing.SPOT, price, num_nodes, gpus="A100-80GB:8")
        for infra, region, machine, price in (
            ("aws", "us-east-1", "p4de.24xlarge", 12.0),
            ("gcp", "us-central1", "a2-ultragpu-8g", 14.0),
        )
    )
    return replace(plan, candidates=places, world_size=8 * num_nodes)


def of_own(infra: str, **compute: object) -> LaunchPlan:
    """A plan for machines of the user's own, as the planner makes it."""
    plan = a_plan(compute={"infra": infra, **compute})
    return plan_launch(plan.job, run_id=plan.run_id, offers=offers_for(plan.job), code_version="0.1.0+abc")


def of_own_teacher() -> LaunchPlan:
    """Rows by a model that the first machine serves, then training: as the planner makes it, two places of each."""
    teacher = {"serve": "Qwen/Qwen2.5-7B-Instruct", "server": {"gpus": "L4:1"}}
    compute = {"infra": ["gcp"], "gpus": "A100-80GB:8", "regions": ["us-central1"]}
    job = a_plan(data={"num_rows": 8, "teacher": teacher}, compute=compute).job
    offers = load_offers(["gcp"], catalogs=SNAPSHOT, machines="gpu")
    side = PriceList(tuple(one for one in offers if one.gpus == "L4:1"))
    plan = plan_launch(job, run_id="demo-x3fkd", offers=offers, side_offers=side, code_version="0.1.0+abc")
    return replace(plan, candidates=plan.candidates[:1])


A100S = {"infra": ["aws", "gcp"], "gpus": "A100-80GB:8"}
THIRTEEN_B = {"recipe": "alpaca", "model": "huggyllama/llama-13b"}
OWN_PROGRAM = {
    "method": "command",
    "command": ["python", "trl_sft.py"],
    "files": ["trl_sft.py"],
    "install": ["trl==1.16.0", "datasets>=5,<6"],
    "model": "Qwen/Qwen2.5-0.5B",
}
CASES = {
    "spot": (a_plan(), SETTINGS),
    "spot_then_on_demand_with_secrets_and_deadline": (
        on_demand_last(a_plan(secrets=["OPENAI_API_KEY", "HF_TOKEN"], limits={"deadline_h": 2})),
        replace(SETTINGS, end_at_s=1_800_000_119.2),
    ),
    "own_image": (a_plan(compute={"infra": ["aws"], "workers": 2, "image": "docker:me/train:1"}), SETTINGS),
    "server_without_our_plugin": (a_plan(), replace(SETTINGS, has_plugin=False)),
    "google_bucket": (replace(a_plan(), store_uri="gs://bucket/runs"), SETTINGS),
    "two_gpu_machines": (
        on_gpus(a_plan(compute={**A100S, "num_nodes": 2}, data={"from": "rows.json"}, train=THIRTEEN_B), num_nodes=2),
        SETTINGS,
    ),
    "rows_then_gpus": (replace(on_gpus(a_plan(compute=A100S)), generation=a_plan().candidates), SETTINGS),
    "own_teacher": (of_own_teacher(), SETTINGS),
    "own_program": (
        replace(a_plan(data={"from": "rows.json"}, train=OWN_PROGRAM), store_uri="gs://bucket/runs"),
        SETTINGS,
    ),
    "k8s": (of_own("k8s", gpus="A100-80GB:8", regions=["kind-lab"]), SETTINGS),
    "slurm": (of_own("slurm", workers=4), SETTINGS),
    "ssh": (of_own("ssh", workers=2, regions=["my-pool"], num_nodes=2), SETTINGS),
}


@pytest.mark.parametrize("name", CASES)
def test_a_task_is_rendered_as_the_golden_file_has_it(name: str) -> None:
    rendered, golden = render_tasks(*CASES[name]), GOLDEN / f"task_{name}.yaml"
    if os.environ.get("ALPACA_JOBS_REFRESH_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(rendered, encoding="utf-8")
    assert rendered == golden.read_text(encoding="utf-8")


@pytest.mark.slow
def test_skypilot_takes_every_golden_file_and_keeps_our_order(tmp_path: Path) -> None:
    """In a process of its own: importing SkyPilot takes seconds and reads its settings."""
    program = """
import sys
from sky.utils import dag_utils, registry
from cluster.cloud.sky_plugin import register
register(), register()
for path in sys.argv[1:]:
    text = open(path).read().replace('"/laptop/.alpaca-jobs/code/0.1.0-abc"', "/tmp")
    names = [name for name in ("OPENAI_API_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN") if f"{name}: null" in text]
    dag = dag_utils.load_chain_dag_from_yaml_str(text, secrets_overrides=[(name, "x") for name in names] or None)
    assert dag.name == "demo-x3fkd", dag.name
    for task in dag.tasks:
        assert isinstance(task.resources, list), task.resources
        places = [
            f"{one.cloud}/{one.region}/{one.instance_type or one.cpus}/{one.accelerators}/{one.use_spot}"
            for one in task.resources
        ]
        print(path.rpartition("task_")[2], task.name, task.num_nodes, *places)
"""
    shutil.copytree(SNAPSHOT, tmp_path / ".sky" / "catalogs" / "v8")  # it looks GPUs up, and fetches what is not there
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    files = [str(GOLDEN / f"task_{name}.yaml") for name in CASES]
    done = subprocess.run(
        [sys.executable, "-c", program, *files], capture_output=True, text=True, env=environ, timeout=110
    )
    assert done.returncode == 0, done.stderr
    spot = "AWS/us-east-1/m6i.large/None/True AWS/us-east-2/m6i.large/None/True"
    a100s = "{'A100-80GB': 8}"
    gpus = f"AWS/us-east-1/p4de.24xlarge/{a100s}/True GCP/us-central1/a2-ultragpu-8g/{a100s}/True"
    assert done.stdout.splitlines() == [
        f"spot.yaml demo-x3fkd 1 {spot}",
        f"spot_then_on_demand_with_secrets_and_deadline.yaml demo-x3fkd 1 {spot} {spot.replace('True', 'False')}",
        f"own_image.yaml demo-x3fkd 1 {spot}",
        f"server_without_our_plugin.yaml demo-x3fkd 1 {spot}",
        f"google_bucket.yaml demo-x3fkd 1 {spot}",
        f"two_gpu_machines.yaml demo-x3fkd 2 {gpus}",
        f"rows_then_gpus.yaml demo-x3fkd-rows 1 {spot}",
        f"rows_then_gpus.yaml demo-x3fkd-train 1 {gpus}",
        "own_teacher.yaml demo-x3fkd-rows 1 GCP/us-central1/g2-standard-4/{'L4': 1}/True",
        f"own_teacher.yaml demo-x3fkd-train 1 GCP/us-central1/a2-ultragpu-8g/{a100s}/True",
        f"own_program.yaml demo-x3fkd 1 {spot}",
        f"k8s.yaml demo-x3fkd 1 Kubernetes/kind-lab/None/{a100s}/False",
        "slurm.yaml demo-x3fkd 1 Slurm/None/4+/None/False",
        "ssh.yaml demo-x3fkd 2 SSH/ssh-my-pool/2+/None/False",
    ]


def run_lines(name: str) -> list[str]:
    """The first lines of a task's `run:`, that work out how long an attempt has."""
    text: str = yaml.safe_load(render_tasks(*CASES[name]).split("\n---\n")[-1])["run"]
    return text.splitlines()[:1]


@pytest.mark.parametrize(("now", "left"), [(1_800_000_000, 120), (1_799_999_000, 1120), (1_900_000_000, 120)])
def test_an_attempt_has_what_is_left_until_the_deadline_however_late_it_begins(
    now: int, left: int, tmp_path: Path
) -> None:
    date = tmp_path / "date"
    date.write_text(f"#!/bin/sh\necho {now}\n")
    date.chmod(0o755)
    lines = run_lines("spot_then_on_demand_with_secrets_and_deadline")
    done = subprocess.run(
        ["bash", "-c", "\n".join([*lines, 'echo "$left"'])], capture_output=True, text=True, timeout=20,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stdout == f"{left}\n"


def test_without_a_deadline_an_attempt_has_an_end_all_the_same() -> None:
    assert run_lines("spot")[0].startswith(f"left={7 * 24 * 3600} ")


@pytest.mark.parametrize(
    ("name", "uid", "asked"), [("spot", "0", "-h +60"), ("spot", "1000", "-n shutdown -h +60"), ("slurm", "1000", "")]
)
def test_the_set_up_asks_a_rented_machine_to_turn_itself_off_and_no_other(
    name: str, uid: str, asked: str, tmp_path: Path
) -> None:
    for program, script in {"shutdown": "exit 1", "sudo": "exit 1", "id": f"echo {uid}"}.items():
        tells = "" if program == "id" else f"printf '%s\\n' \"$*\" >> {tmp_path}/said\n"
        (tmp_path / program).write_text(f"#!/bin/sh\n{tells}{script}\n")
        (tmp_path / program).chmod(0o755)
    task = yaml.safe_load(render_tasks(*CASES[name]))
    before, _, _ = task["setup"].partition("set -e")
    done = subprocess.run(["bash", "-c", f"set -e\n{before}\necho went on"], capture_output=True, text=True, timeout=20,
                          env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})  # fmt: skip
    assert done.stdout == "went on\n"  # refused or not
    said = tmp_path / "said"
    assert (said.read_text().strip() if said.exists() else "") == asked
    assert bool(task["envs"]["ALPACA_JOBS_RENTED"]) is bool(asked)
    assert isinstance(task["envs"]["ALPACA_JOBS_RENTED"], str)


def test_a_part_that_is_done_is_not_in_the_task_of_a_resume() -> None:
    plan, settings = CASES["rows_then_gpus"]
    assert render_tasks(plan, settings, plan.parts[1:]).count("\nrun: |") == 1
    assert render_tasks(plan, settings).count("\nrun: |") == 2


def test_a_teacher_of_the_runs_own_is_installed_where_the_rows_are_written_and_nowhere_else() -> None:
    plan, settings = CASES["own_teacher"]
    rows, training = render_tasks(plan, settings).split("\n---\n")[1:]
    assert "accelerators: L4:1" in rows
    assert "pip install --quiet vllm==0.33.0" in rows
    assert "vllm" not in training
    on_own = of_own("k8s", gpus="A100-80GB:8")
    served = on_own.job.model_copy(
        update={"data": on_own.job.data.model_copy(update={"teacher": TeacherSpec.model_validate({"serve": "m"})})}
    )
    assert "alpaca-jobs-vllm" in render_tasks(replace(on_own, job=served), settings)


def test_machines_that_work_together_get_a_token_of_their_own_as_a_secret() -> None:
    assert secret_names(CASES["two_gpu_machines"][0]) == ("RAY_AUTH_TOKEN",)
    assert secret_names(CASES["rows_then_gpus"][0]) == ()
    assert secret_names(a_plan(secrets=["HF_TOKEN"])) == ("HF_TOKEN",)


def test_machines_of_ones_own_are_explained_and_not_sold() -> None:
    (note,) = of_own("k8s", workers=2).notes
    assert "k8s: machines of your own. Nothing is billed by the hour and nothing is spot" in note
    (place,) = of_own("k8s", workers=2).candidates
    assert (place.price_per_hour_usd, place.pricing) == (0.0, Pricing.ON_DEMAND)


def test_what_a_clouds_node_cannot_do_yet_is_refused_in_words() -> None:
    with pytest.raises(BackendMissing, match="store: s3://my-bucket/runs"):
        render_tasks(replace(a_plan(), store_uri="auto"), SETTINGS)


@pytest.mark.parametrize(
    ("failures", "code", "pauses"), [(0, 0, []), (2, 0, ["10", "30"]), (9, 65, ["10", "30", "60"])]
)
def test_a_set_up_outlasts_a_network_that_fails_for_a_while(
    tmp_path: Path, failures: int, code: int, pauses: list[str]
) -> None:
    """The real shell lines, with an installer whose first calls fail and a `sleep` that only notes how long."""
    programs = tmp_path / ".local" / "bin"
    programs.mkdir(parents=True)
    (tmp_path / "alpaca-jobs-code").mkdir()
    (tmp_path / "alpaca-jobs-code" / "alpaca_jobs-1-py3-none-any.whl").touch()
    for name, text in {
        "uv": f'echo "$*" >>"$HOME/calls"; [ "$(wc -l <"$HOME/calls")" -gt {failures} ]',
        "sleep": 'echo "$1" >>"$HOME/pauses"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    task = yaml.safe_load(render_tasks(a_plan(), SETTINGS))
    environ = {"HOME": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", task["setup"]], env=environ, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ((tmp_path / "pauses").read_text().split() if pauses else []) == pauses
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == (4 if code else 2 + failures)  # the environment, what goes into it, and the tries that failed
    if not code:
        assert calls[-1].endswith("alpaca_jobs-1-py3-none-any.whl[node]")


def test_the_disk_holds_a_model_whose_name_tells_no_size() -> None:
    plan = on_gpus(a_plan(train={"recipe": "alpaca", "model": "mistralai/Mixtral-8x7B-v0.1"}, compute=A100S))
    known = replace(plan, num_parameters=46_702_792_704, base_bytes=93_405_585_408)
    assert "disk_size: 100\n" in render_tasks(plan, SETTINGS)
    assert f"disk_size: {60 + 87 + 174}\n" in render_tasks(
        known, SETTINGS
    )  # fetched; exported, and while it is written
