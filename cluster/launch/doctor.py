"""Looking around: what is installed, signed in, reachable, and what still bills although nobody wants it.

Reads only; `repair` does what one finding offers. Nothing here starts a server or a machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from checkpoints.errors import CheckpointError
from checkpoints.store import Store
from cluster.cloud.aws_account import HOW_TO_SIGN_IN, AwsAccount
from cluster.cloud.plugin_install import install_plugin, plugin_status
from cluster.cloud.sky_account import SkyJob, active_jobs, is_server_running, sky_version
from cluster.errors import CloudError, ClusterError, NoCredentials
from cluster.launch.findings import Finding, Level
from cluster.launch.gpu_quotas import gpu_quotas
from cluster.launch.leaks import empty_buckets, local_leftovers, machines_that_bill, repair_machine, unwanted_jobs
from cluster.runs.home import Home

_EXTRAS: Final[Mapping[str, tuple[str, str]]] = {
    "sky": ("skypilot", "clouds"),
    "node": ("torch", "running jobs on this machine"),
    "data": ("rouge_score", "asking teachers from this machine"),
    "gcs": ("gcsfs", "stores gs://"),
    "azure": ("adlfs", "stores az://"),
}
_KEYS: Final = ("AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE")


def examine(home: Home, *, account: AwsAccount | None = None, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Look at everything; whatever cannot be looked at is a finding, too."""
    signed_in = account or AwsAccount()
    findings = [*_installed(), *_plugin(), *_stores(home)]
    aws, number = _aws(signed_in, home, environ)
    findings += [aws, *_other_clouds(environ)]
    jobs = _jobs(findings)
    if number is not None:
        findings += _guarded("machines of AWS", lambda: machines_that_bill(home, signed_in, jobs))
        findings += _guarded("buckets of AWS", lambda: empty_buckets(home, signed_in))
        findings += _guarded("GPU quotas of AWS", lambda: gpu_quotas(signed_in))
    findings += unwanted_jobs(home, jobs or [])
    return [*findings, *local_leftovers(home)]


def repair(finding: Finding, *, account: AwsAccount | None = None) -> str:
    """Do what a finding offers; returns what was done, in words.

    Raises:
        ClusterError: it could not be done.
    """
    match finding.repair:
        case "plugin":
            install_plugin(plugin_status())
            return "Written anew. SkyPilot reads it when its API server starts: sky api stop, then sky api start."
        case "machine":
            return repair_machine(finding.target, account or AwsAccount())
        case "job":
            from cluster.cloud.sky_backend import SkyJobs

            SkyJobs().cancel(finding.target)
            return f"SkyPilot was told to end {finding.target}."
        case _:
            raise ValueError(f"nothing repairs {finding}")


def _installed() -> Iterator[Finding]:
    for extra, (module, use) in _EXTRAS.items():
        is_there = sky_version() is not None if extra == "sky" else find_spec(module) is not None
        if is_there:
            yield Finding(Level.OK, f"extra {extra}", f"installed, for {use}")
        else:
            command = f"pip install 'alpaca-jobs[{extra}]'"
            yield Finding(Level.MISSING, f"extra {extra}", f"not installed; it is for {use}", command)


def _plugin() -> Iterator[Finding]:
    """The plugin matters where SkyPilot is; half of it is a broken one."""
    if sky_version() is None:
        return
    install = "alpaca-jobs plugin install"
    try:
        status = plugin_status()
    except ClusterError as exc:
        yield Finding(Level.BROKEN, "SkyPilot's plugins", str(exc))
        return
    if status.is_installed:
        yield Finding(Level.OK, "plugin", "installed: SkyPilot recovers our runs by our rules")
    elif status.is_listed:
        words = f"listed in {status.settings}, but the rest of it is missing or of another version"
        if gone := [str(path) for path in status.missing if not path.exists()]:
            words = f"listed in {status.settings}, but {', '.join(gone)} is missing: SkyPilot does not start from there"
        yield Finding(Level.BROKEN, "plugin", words, install, "plugin")
    else:
        yield Finding(Level.MISSING, "plugin", "not installed: SkyPilot recovers by its own strategy", install)


def _stores(home: Home) -> Iterator[Finding]:
    for uri in home.stores():
        try:
            count = len(Store.open(uri).list("index/"))
        except CheckpointError as exc:
            yield Finding(Level.BROKEN, "store", f"{uri} cannot be read: {exc}")
        else:
            yield Finding(Level.OK, "store", f"{uri}: {count} run{'' if count == 1 else 's'}")


def _aws(account: AwsAccount, home: Home, environ: Mapping[str, str]) -> tuple[Finding, str | None]:
    """Whether somebody is signed in, and the account's number if so."""
    what = "credentials of AWS"
    is_wanted = any(uri.startswith("s3://") for uri in home.stores()) or any(environ.get(name) for name in _KEYS)
    try:
        number = account.identity()
    except NoCredentials as exc:
        words = f"{exc} Machines and buckets there were not looked for."
        return Finding(Level.BROKEN if is_wanted else Level.MISSING, what, words, "aws configure"), None
    except CloudError as exc:
        return Finding(Level.BROKEN if is_wanted else Level.NOTE, what, f"{exc} {HOW_TO_SIGN_IN}"), None
    return Finding(Level.OK, what, f"account {number}"), number


def _other_clouds(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Only whether there are credentials: their machines are SkyPilot's to list (`sky status`)."""
    home = Path.home()
    gcp = Path(
        environ.get("GOOGLE_APPLICATION_CREDENTIALS") or home / ".config/gcloud/application_default_credentials.json"
    )
    azure = home / ".azure" / "msal_token_cache.json"
    for name, path, command in (
        ("GCP", gcp, "gcloud auth application-default login"), ("Azure", azure, "az login"),
    ):  # fmt: skip
        what = f"credentials of {name}"
        if path.is_file():
            program = command.partition(" ")[0]
            words = f"{path} is there" + ("" if shutil.which(program) else f"; {program}, which SkyPilot wants, is not")
            yield Finding(Level.NOTE, what, f"{words}. What still runs there: sky status")
        else:
            yield Finding(Level.MISSING, what, "none found; needed for jobs there only", command)


def _jobs(findings: list[Finding]) -> list[SkyJob] | None:
    """SkyPilot's open jobs; None where they could not be looked at, which is said."""
    if sky_version() is None:
        return None
    if not is_server_running():
        words = "its API server does not run here, so its jobs were not looked at (sky api start)"
        findings.append(Finding(Level.NOTE, "SkyPilot", words))
        return None
    try:
        found = active_jobs()
    except ClusterError as exc:
        findings.append(Finding(Level.BROKEN, "SkyPilot", str(exc), "sky api info"))
        return None
    findings.append(Finding(Level.OK, "SkyPilot", f"{sky_version()}, its API server runs, {len(found)} open jobs"))
    return found


def _guarded(what: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except (ClusterError, CheckpointError) as exc:
        return [Finding(Level.BROKEN, what, f"They could not be looked at: {exc}")]
