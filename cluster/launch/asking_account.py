"""Asking AWS, before a job is planned and paid for, what this account may have; within seconds, or not at all.

plan -> which quotas count its places -> ask these -> plan again without what the account may not have, until every
place of the plan was asked about or the time is over. What cannot be asked is a note of the plan, never an error.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from alpaca_jobs.spec import JobSpec
from cluster.cloud.aws_account import AwsAccount
from cluster.cloud.aws_machines import regions_of
from cluster.errors import CloudError, NoCredentials, PlanError
from cluster.launch.planner import side_offers_for
from cluster.plan import LaunchPlan, Placement
from cluster.price.account_limits import NOT_ASKED, AccountLimits, QuotaKey, quota_key
from cluster.price.account_words import no_quota_left
from cluster.price.offers import Offer, PriceList

_K = TypeVar("_K")
PATIENCE_S: Final = 6.0
_QUESTIONS: Final = 12  # at a time; the places of a plan are asked about in its order
_UNKNOWN: Final = "NoSuchResourceException"
_VARIABLES: Final = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN",
                     "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")  # fmt: skip
_FILES: Final = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}


def has_credentials(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether credentials of AWS are at hand, without asking anybody."""
    if any(environ.get(name) for name in _VARIABLES):
        return True
    return any(Path(environ.get(name) or path).expanduser().is_file() for name, path in _FILES.items())


def plan_within_account(
    job: JobSpec,
    offers: PriceList,
    plan: Callable[[AccountLimits], LaunchPlan],
    *,
    account: AwsAccount | None = None,
    patience_s: float = PATIENCE_S,
) -> tuple[LaunchPlan, AccountLimits]:
    """Plan a job on what this account of AWS may have, and say in the plan's notes what was left out or not asked.

    Args:
        offers: `offers_for(job)`.
        plan: makes the plan; called again after answers.

    Returns:
        The plan, and what the account answered.

    Raises:
        PlanError: nothing fits; where it is the account's quotas that leave none, which ones and what to type.
    """
    if "aws" not in job.compute.infra:
        return plan(NOT_ASKED), NOT_ASKED
    asked = _Asked(account or AwsAccount(max_attempts=1), time.monotonic() + patience_s)
    limits = AccountLimits(enabled=asked.enabled())
    first = found = plan(limits)
    if not asked.is_signed_in:
        return replace(found, notes=(*found.notes, *asked.notes)), limits
    known = _by_place([*offers, *side_offers_for(job, offers)])
    while True:
        new = [key for key in _keys(found, known) if key not in asked.answers][:_QUESTIONS]
        if not new or not asked.quotas(new):
            break
        limits = replace(limits, vcpus={key: held for key, held in asked.answers.items() if held is not None})
        try:
            found = plan(limits)
        except PlanError:
            places = [known[place_of(one)] for one in first.candidates if place_of(one) in known]
            if any(not limits.has_quota(one, num_nodes=job.compute.num_nodes) for one in places):
                raise no_quota_left(job, places, limits) from None
            raise
    return replace(found, notes=(*found.notes, *asked.notes)), limits


def ask_quotas(
    account: AwsAccount, keys: Iterable[QuotaKey], *, patience_s: float = PATIENCE_S
) -> tuple[Mapping[QuotaKey, float | None], tuple[str, ...]]:
    """Ask for some quotas, all at once.

    Returns:
        vCPUs by quota, None where AWS does not know it or did not answer in time; and what could not be
        asked, in words.
    """
    asked = _Asked(account, time.monotonic() + patience_s)
    asked.quotas(keys)
    return asked.answers, asked.notes


def place_of(place: Placement | Offer) -> tuple[object, ...]:
    """What tells a place, and an offer of it, from others."""
    return (place.infra, place.region, place.zone, place.instance_type, place.pricing)


def _by_place(offers: Iterable[Offer]) -> dict[tuple[object, ...], Offer]:
    return {place_of(one): one for one in offers if one.infra == "aws"}


def _keys(plan: LaunchPlan, known: Mapping[tuple[object, ...], Offer]) -> list[QuotaKey]:
    """The quotas that count a plan's places, best place first, each once."""
    places = [known.get(place_of(one)) for one in (*plan.generation[:1], *plan.candidates, *plan.generation[1:])]
    keys = [quota_key(one) for one in places if one is not None]
    return list(dict.fromkeys(key for key in keys if key is not None))


class _Asked:
    """Questions to the account with one deadline for all of them.

    Attributes:
        answers: vCPUs by quota; None where AWS does not know the quota or did not answer.
        notes: what could not be asked, in sentences.
        is_signed_in: False once AWS has said that nobody is.
    """

    def __init__(self, account: AwsAccount, until_s: float) -> None:
        self._account, self._until_s = account, until_s
        self.answers: dict[QuotaKey, float | None] = {}
        self.notes: tuple[str, ...] = ()
        self.is_signed_in = True

    def enabled(self) -> frozenset[str] | None:
        """Regions that are switched on; None where that could not be asked."""
        answer = self._all({"": lambda: frozenset(regions_of(self._account))}).get("")
        if isinstance(answer, frozenset):
            return answer
        self.is_signed_in = not isinstance(answer, NoCredentials)
        self._note("Which regions this AWS account has switched on", answer)
        return None

    def quotas(self, keys: Iterable[QuotaKey]) -> bool:
        """Ask for some quotas; returns whether it makes sense to go on."""
        if time.monotonic() >= self._until_s:
            return False
        try:
            questions = {key: self._question(key) for key in keys}
        except CloudError as exc:
            self._note("What quotas this AWS account has", exc)
            return False
        answers = self._all(questions)
        for key in questions:
            answer = answers.get(key)
            self.answers[key] = answer if isinstance(answer, float) else None
        bad = [one for one in answers.values() if isinstance(one, CloudError) and one.code != _UNKNOWN]
        if bad or len(answers) < len(questions):
            self._note("Some quotas of this AWS account" if self._any() else "Its quotas", bad[0] if bad else None)
        return len(answers) == len(questions) and not bad

    def _any(self) -> bool:
        return any(held is not None for held in self.answers.values())

    def _question(self, key: QuotaKey) -> Callable[[], float]:
        code, region = key
        client = self._account.client("service-quotas", region)  # here: making clients is not for several threads

        def ask() -> float:
            def act() -> object:
                return client.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]

            return float(str(self._account.call(f"reading quota {code} in {region}", act)))

        return ask

    def _note(self, what: str, why: object) -> None:
        reason = str(why) if isinstance(why, CloudError) else "AWS took too long to answer."
        self.notes = (*self.notes, f"{what} could not be asked: {reason}")

    def _all(self, questions: Mapping[_K, Callable[[], object]]) -> dict[_K, object]:
        """Ask all at once; answers that came in time, errors among them. Threads that hang keep nobody from ending."""
        answers: queue.Queue[tuple[_K, object]] = queue.Queue()

        def ask(key: _K, act: Callable[[], object]) -> None:
            try:
                answers.put((key, act()))
            except CloudError as exc:
                answers.put((key, exc))

        for key, act in questions.items():
            threading.Thread(target=ask, args=(key, act), daemon=True).start()
        found: dict[_K, object] = {}
        while len(found) < len(questions):
            try:
                key, answer = answers.get(timeout=max(0.0, self._until_s - time.monotonic()))
            except queue.Empty:
                break
            found[key] = answer
        return found
