"""From nothing to the first priced plan: what is there already, and what each missing thing takes. Changes nothing.

Every step looks at the world as it is, so that it can be broken off and begun again; nothing remembers how far it came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from alpaca_jobs.errors import DataError, ModelError
from alpaca_jobs.job_inputs import check_inputs
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import change_job, load_job
from alpaca_jobs.training.base_look import look_at_base
from alpaca_jobs.training.base_model import BaseModel
from checkpoints.errors import CheckpointError
from checkpoints.store import Store
from cluster.cloud.aws_account import AwsAccount
from cluster.cloud.aws_bucket import Bucket, find_bucket
from cluster.cloud.aws_quota import quotas_of
from cluster.cloud.plugin_install import plugin_status
from cluster.cloud.sky_account import sky_version
from cluster.errors import CloudError, ClusterError, NoCredentials, PlanError
from cluster.launch.estimating import JobEstimate, estimate_plan, gather_facts, plan_with
from cluster.launch.planner import offers_for
from cluster.plan import LaunchPlan
from cluster.price.offers import PriceList

CLOUDS: Final = ("aws", "gcp", "azure")
_KEY_FILES: Final[Mapping[str, tuple[str, str]]] = {
    "gcp": (".config/gcloud/application_default_credentials.json", "gcloud auth application-default login"),
    "azure": (".azure/msal_token_cache.json", "az login"),
}


@dataclass(frozen=True)
class Step:
    """One thing that a first launch needs.

    Attributes:
        state: done; todo (a launch needs it); advised (a launch works without it); unknown (it could not be looked at).
        command: what to type; empty where there is nothing to do.
        offer: what `setup` can do itself when asked: job, plugin, bucket; empty for none.
    """

    name: str
    state: Literal["done", "todo", "advised", "unknown"]
    words: str
    command: str = ""
    offer: str = ""


@dataclass(frozen=True)
class Checklist:
    """All steps in order, and what they lead to.

    Attributes:
        plan, estimate: None where the job is not there or cannot be priced yet.
        bucket: what `store: auto` stands for; None where it is not wanted, or not known yet.
    """

    steps: tuple[Step, ...]
    plan: LaunchPlan | None
    estimate: JobEstimate | None
    bucket: Bucket | None

    @property
    def is_ready(self) -> bool:
        """Whether a launch would begin."""
        return all(step.state in ("done", "advised") for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        first = None if self.estimate is None else self.estimate.candidates[0].to_json()
        return {"ready": self.is_ready, "steps": [asdict(step) for step in self.steps], "estimate": first}


@dataclass(frozen=True)
class Surroundings:
    """Where to look.

    Attributes:
        home: the user's own, for credentials of clouds.
        check_clouds: lets SkyPilot try a cloud; None not to ask it (it starts a server and takes some seconds).
    """

    environ: Mapping[str, str]
    home: Path
    account: AwsAccount
    check_clouds: Callable[[Sequence[str]], Sequence[str]] | None


def look(infra: str, job_file: Path, around: Surroundings) -> Checklist:
    """Go through all steps for one cloud and one job file.

    Raises:
        SpecError: the job file is there, and is no job.
    """
    steps = [_skypilot(), _credentials(infra, around)]
    if steps[0].state == "done":
        steps += [_enabled(infra, around, signed_in=steps[1].state == "done"), _plugin()]
    if not job_file.is_file():
        command = f"alpaca-jobs init {job_file} --example alpaca-7b"
        steps.append(Step("job", "todo", f"{job_file} is not there", command, "job"))
        return Checklist(tuple(steps), None, None, None)
    job = change_job(load_job(job_file), {"compute.infra": [infra]})
    steps.append(Step("job", "done", f"{job_file}: {job.name}, {job.train.model}"))
    steps += [_inputs(job), _secrets(job, around.environ)]
    step, base = _base_model(job)
    steps.append(step)
    try:
        facts, offers = gather_facts(job, base=base), offers_for(job)
        plan = plan_with(job, facts, offers)
    except PlanError as exc:
        steps.append(Step("plan", "todo", str(exc), f"alpaca-jobs offers --infra {infra}"))
        return Checklist(tuple(steps), None, None, None)
    steps.append(Step("plan", "done", f"{plan.candidates[0]}"))
    if infra == "aws" and steps[1].state == "done":
        steps.append(_quota(plan, offers, around.account))
    store, bucket = _store(plan, around, signed_in=steps[1].state == "done")
    steps.append(store)
    try:
        estimate = estimate_plan(plan, facts, offers)
    except PlanError as exc:
        steps.append(Step("estimate", "advised", str(exc)))
        return Checklist(tuple(steps), plan, None, bucket)
    steps.append(Step("estimate", "done", _price(estimate), f"alpaca-jobs launch {job_file} --infra {infra}"))
    return Checklist(tuple(steps), plan, estimate, bucket)


def _skypilot() -> Step:
    version = sky_version()
    if version is None:
        return Step("SkyPilot", "todo", "not installed", "pip install 'alpaca-jobs[sky]'")
    return Step("SkyPilot", "done", f"version {version}")


def _credentials(infra: str, around: Surroundings) -> Step:
    name = f"credentials of {infra}"
    if infra == "aws":
        try:
            return Step(name, "done", f"account {around.account.identity()}")
        except NoCredentials as exc:
            return Step(name, "todo", str(exc), "aws configure")
        except CloudError as exc:
            return Step(name, "unknown", str(exc), "aws sts get-caller-identity")
    path, command = around.home / _KEY_FILES[infra][0], _KEY_FILES[infra][1]
    if infra == "gcp" and (named := around.environ.get("GOOGLE_APPLICATION_CREDENTIALS")):
        path = Path(named)
    return Step(name, "done", str(path)) if path.is_file() else Step(name, "todo", f"{path} is not there", command)


def _enabled(infra: str, around: Surroundings, *, signed_in: bool) -> Step:
    name, command = f"SkyPilot on {infra}", f"sky check {infra}"
    if not signed_in:
        return Step(name, "unknown", "needs credentials first", command)
    if around.check_clouds is None:
        return Step(name, "unknown", "not asked here", command)
    try:
        enabled = around.check_clouds([infra])
    except ClusterError as exc:
        return Step(name, "unknown", str(exc), command)
    if infra in enabled:
        return Step(name, "done", "enabled")
    return Step(name, "todo", "SkyPilot is not content with the credentials, and says why", command)


def _plugin() -> Step:
    command = "alpaca-jobs plugin install"
    try:
        status = plugin_status()
    except ClusterError as exc:
        return Step("plugin", "todo", str(exc))
    if status.is_installed:
        return Step("plugin", "done", "installed: SkyPilot recovers our runs by our rules")
    return Step(
        "plugin", "advised", "not installed: SkyPilot's own strategy goes back to a lost region", command, "plugin"
    )


def _inputs(job: JobSpec) -> Step:
    try:
        check_inputs(job)
    except (DataError, ModelError) as exc:
        return Step("seeds and rows", "todo", str(exc))
    return Step("seeds and rows", "done", job.data.from_ or f"seed tasks: {job.data.seed_tasks}")


def _secrets(job: JobSpec, environ: Mapping[str, str]) -> Step:
    missing = [name for name in job.secrets if not environ.get(name)]
    if missing:
        words = f"{', '.join(missing)} not set in this shell"
        return Step("teacher's key", "todo", words, f"export {missing[0]}=...")
    return Step("teacher's key", "done", f"{', '.join(job.secrets)} set" if job.secrets else "none is needed")


def _base_model(job: JobSpec) -> tuple[Step, BaseModel | None]:
    try:
        found = look_at_base(job)
    except ModelError as exc:
        return Step("base model", "todo", str(exc)), None
    words = " ".join(found.words)
    if found.base is None:
        return Step("base model", "advised" if words else "done", words or job.train.model), None
    return Step("base model", "advised" if words else "done", words or str(found.base)), found.base


def _quota(plan: LaunchPlan, offers: PriceList, account: AwsAccount) -> Step:
    first = plan.candidates[0]
    kind = (first.infra, first.region, first.zone, first.instance_type, first.pricing)
    fitting = (
        one for one in offers if (one.infra, one.region, one.zone, one.instance_type, one.pricing) == kind
    )  # fmt: skip
    offer = next(fitting)
    quota = quotas_of([offer], account, num_nodes=plan.num_nodes)[offer]
    words = f"{quota}; {first.instance_type} needs {quota.needed or 0:.0f}" + (f". {quota.why}" if quota.why else "")
    if quota.allows is False and quota.source == "account":
        command = f"https://console.aws.amazon.com/servicequotas/home/services/ec2/quotas?region={first.region}"
        return Step("quota", "todo", words, command)
    return Step("quota", "done" if quota.source == "account" and quota.allows else "advised", words)


def _store(plan: LaunchPlan, around: Surroundings, *, signed_in: bool) -> tuple[Step, Bucket | None]:
    if plan.store_uri != "auto":
        return _named_store(plan.store_uri, signed_in=signed_in), None
    first = plan.candidates[0]
    if first.infra != "aws":
        words = f"store is auto, and buckets are made by themselves on AWS only; the run goes to {first.name}"
        return Step("store", "todo", words, "store: gs://NAME/runs in the job"), None
    if not signed_in:
        return Step("store", "unknown", f"a private bucket in {first.region}; needs credentials first"), None
    try:
        bucket = find_bucket(around.account, first.region)
    except CloudError as exc:
        return Step("store", "unknown", str(exc)), None
    if bucket.exists:
        return Step("store", "done", str(bucket)), bucket
    return Step("store", "advised", f"{bucket}; `launch` makes it, too", "", "bucket"), bucket


def _named_store(uri: str, *, signed_in: bool) -> Step:
    if not signed_in:
        return Step("store", "unknown", f"{uri}; needs credentials first")
    try:
        Store.open(uri).list("index/")
    except CheckpointError as exc:
        return Step("store", "todo", str(exc))
    return Step("store", "done", f"{uri} can be read; `launch` tries whether it can be written to")


def _price(estimate: JobEstimate) -> str:
    first = estimate.candidates[0]
    if first.cost_usd is None or first.hours is None:
        return "; ".join(estimate.unpriced) or "its length is not known before a first run"
    cost, hours = first.cost_usd, first.hours
    return f"{cost.p50:.2f} USD ({cost.p10:.2f} to {cost.p90:.2f}) in {hours.p50:.1f} h, in {first.placement.name}"
