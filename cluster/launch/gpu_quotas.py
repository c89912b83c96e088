"""What an account of AWS may have of GPU machines, in every region that it has switched on: for `doctor`.

A new account has 0 vCPUs of them, spot and on demand apart, until it asks for more; a launch is refused then. So it is
said before. Source of the families and codes: cluster/price/quota.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cluster.cloud import aws_machines
from cluster.cloud.aws_account import AwsAccount
from cluster.launch.asking_account import ask_quotas
from cluster.launch.findings import Finding, Level
from cluster.price.account_limits import QuotaKey
from cluster.price.quota import GPU_QUOTAS

_ASK_FOR_MORE: Final = "https://console.aws.amazon.com/servicequotas/home/services/ec2/quotas?region={region}"


def gpu_quotas(account: AwsAccount) -> list[Finding]:
    """One finding for each kind of GPU machine and way of paying.

    Raises:
        CloudError: the account does not say which regions it has.
    """
    regions = aws_machines.regions_of(account)
    answers, why = ask_quotas(account, [(code, region) for code in GPU_QUOTAS.values() for region in regions])
    findings = [_finding(kind, code, regions, answers) for kind, code in GPU_QUOTAS.items()]
    known = [one for one in findings if one is not None]
    if why or not known:
        words = " ".join(why) or "AWS knows none of them in the regions that this account has switched on."
        known.append(Finding(Level.NOTE, "GPU quotas of AWS", words))
    return known


def _finding(
    kind: str, code: str, regions: list[str], answers: Mapping[QuotaKey, float | None]
) -> Finding | None:  # fmt: skip
    """None where no region has answered."""
    held = {region: vcpus for region in regions if (vcpus := answers.get((code, region))) is not None}
    if not held:
        return None
    some = {region: vcpus for region, vcpus in held.items() if vcpus > 0}
    by_most = sorted(some.items(), key=lambda one: (-one[1], one[0]))
    words = ", ".join(f"{region} {vcpus:.0f}" for region, vcpus in by_most)
    none = len(held) - len(some)
    if some:
        nothing = f"; 0 in {none} other region{'' if none == 1 else 's'}" if none else ""
        return Finding(Level.OK, f"quota {kind}", f"vCPUs: {words}{nothing}")
    first = "us-east-1" if "us-east-1" in held else min(held)
    where = f"all {len(held)} regions" if len(held) > 1 else first
    words = f"0 vCPUs in {where}: none can be started before AWS has granted some (hours to days)"
    return Finding(Level.NOTE, f"quota {kind}", words, _ASK_FOR_MORE.format(region=first))
